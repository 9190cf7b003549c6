"""The stage class_images on tiny random models."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.training.running import RESOLUTION, ROOT, digests, run_stage, write_params

pytestmark = [pytest.mark.stage, pytest.mark.usefixtures("in_the_world")]


def test_light_parts_need_no_torch(world):
    """The help of every stage here, and class images where there are none."""
    write_params(world)
    script = """
import sys
for name in sys.argv[1:]:
    module = __import__(f"stages.{name}", fromlist=["stage"])
    try:
        module.run(module.stage, ["--help"])
    except SystemExit:
        pass
module.run(module.stage, ["--model", "model", "--out", "class-empty"])
assert "torch" not in sys.modules
"""
    stages = ("encode_images", "encode_captions", "train_text2img", "train_dreambooth", "class_images")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script, *stages], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.count("It is a stage of its own because") == len(stages)
    assert not list((world / "class-empty").glob("*.png"))


def test_seeds_count_up_and_each_image_says_what_it_was_drawn_from(world):
    from stages.drawing.image_files import read_image_recipe

    write_params(world, class_images={"num_class_images": 3, "seed": 7})
    run_stage("class_images", model="model", out="three")
    assert sorted(path.name for path in (world / "three").iterdir()) == ["0001.png", "0002.png", "0003.png"]
    for number in range(1, 4):
        path = world / f"three/{number:04d}.png"
        recipe = read_image_recipe(path)
        assert (recipe["prompt"], recipe["seed"]) == ("a portrait", 6 + number)
        assert recipe["seed"] in recipe["batch_seeds"]
        assert len(recipe["batch_seeds"]) <= recipe["batch_size"]
        assert Image.open(path).size == (RESOLUTION, RESOLUTION)
    assert len(set(digests(world / "three").values())) == 3
    write_params(world, class_images={"num_class_images": 1, "seed": 8})
    run_stage("class_images", model="model", out="second")
    alone, among_others = (np.asarray(Image.open(world / name), dtype=int) for name in ("second/0001.png", "three/0002.png"))
    assert np.abs(alone - among_others).max() <= 1  # the last bits depend on how many are drawn together


def test_several_prompts_are_taken_in_turn(world):
    """The n-th image is that of the n-th seed, whatever the others show."""
    from stages.drawing.image_files import read_image_recipe

    write_params(world, class_images={"num_class_images": 5, "seed": 7, "class_prompts": ["a cat", "a hat"]})
    run_stage("class_images", model="model", out="in-turn")
    texts = [read_image_recipe(path) for path in sorted((world / "in-turn").glob("*.png"))]
    assert [text["prompt"] for text in texts] == ["a cat", "a hat", "a cat", "a hat", "a cat"]
    assert [text["seed"] for text in texts] == [7, 8, 9, 10, 11]


def test_same_bytes_twice(world):
    write_params(world, class_images={"num_class_images": 2})
    for name in ("one", "two"):
        run_stage("class_images", model="model", out=name)
    assert digests(world / "one") == digests(world / "two")


def test_without_prior_preservation_there_is_a_note(world):
    write_params(world, class_images={"num_class_images": 0})
    run_stage("class_images", model="model", out="off")
    (note,) = (world / "off").iterdir()
    assert "Prior preservation is off: class_images.num_class_images is 0." in note.read_text()


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("raw", {"num_class_images": 1}, "raw: no unet, vae, text_encoder, tokenizer, scheduler in it; expected a model"),
        ("model", {"num_class_images": -1}, "class_images.num_class_images: given -1"),
        ("model", {"class_prompts": [""]}, "class_images.class_prompts.0: given ''"),
        ("model", {"class_prompts": []}, "class_images.class_prompts: "),
        ("model", {"class_prompts": ["a", "a"]}, "class_images.class_prompts: ['a', 'a'] holds a value twice"),
        ("model", {"num_class_images": 1, "clip_skip": 2}, "clip_skip: given 2: this text encoder has 2 layers"),
    ],
)
def test_wrong_inputs_are_one_line(world, capsys, model, settings, message):
    write_params(world, class_images=settings)
    with pytest.raises(SystemExit) as exit:
        run_stage("class_images", model=model, out="wrong")
    assert exit.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"class_images: error: {message}")
    assert not (world / "wrong").exists()
