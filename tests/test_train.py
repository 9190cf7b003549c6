"""The stages from encoded images to LoRA files, on tiny random models."""

import csv
import hashlib
import importlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from stages.pipeline.command import run
from tests.lora.settings import conf_values

ROOT = Path(__file__).parents[1]
RESOLUTION = 32
PROMPTS = {"class_prompt": "a portrait", "clip_skip": 0}

pytestmark = pytest.mark.stage


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with images, captions and a model, in which the stages run."""
    from tests.comparison.tiny_models import save_tiny_checkpoint

    root = tmp_path_factory.mktemp("world")
    save_tiny_checkpoint(root / "model")
    (root / "raw").mkdir()
    random = np.random.default_rng(0)
    names = [f"{number:04d}.png" for number in range(1, 7)]
    for name in names:
        Image.fromarray(random.integers(0, 256, (RESOLUTION, RESOLUTION + 8, 3), dtype=np.uint8)).save(root / "raw" / name)
    dataset = root / "dataset"
    dataset.mkdir()
    for name in names:
        (dataset / name).write_bytes((root / "raw" / name).read_bytes())
    captions = [f"a portrait, {letter}" for letter in "abcde"] + ["a " * 90]
    rows = "".join(f'{name},"{caption}"\n' for name, caption in zip(names, captions, strict=True))
    (dataset / "metadata.csv").write_text("file_name,caption\n" + rows)
    return root


def write_params(root: Path, **changes) -> None:
    """params.yaml with the committed settings, made small; `changes` by section."""
    small = {"max_train_steps": 12, "train_batch_size": 2, "logging_steps": 5, "checkpointing_steps": 2}
    params = {
        "runtime": {"device": "cpu", "threads": 1, "dtype": "float32"},
        "encode_images": conf_values("encode_images", resolution=RESOLUTION),
        "encode_captions": conf_values("encode_captions"),
        "class_images": conf_values("class_images", resolution=RESOLUTION, clip_skip=0, num_inference_steps=2),
        "train_text2img": conf_values("train_text2img", **small),
        "train_dreambooth": conf_values("train_dreambooth", **small, **PROMPTS),
    }
    for section, values in changes.items():
        params[section] |= values
    (root / "params.yaml").write_text(yaml.safe_dump(params))


def arguments(**options) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def run_stage(name: str, **options) -> None:
    """Run a stage in this process as its command line does."""
    module = importlib.import_module(f"stages.{name}")
    run(module.stage, arguments(**options))


@pytest.fixture(autouse=True)
def in_the_world(world, monkeypatch):
    monkeypatch.chdir(world)
    monkeypatch.setenv("DVC_ROOT", str(world))


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def encoded(world) -> Path:
    """The world with its images and captions encoded."""
    write_params(world)
    if not (world / "images.safetensors").exists():
        run_stage("encode_images", images="raw", vae="model/vae", out="images.safetensors")
        run_stage("encode_captions", dataset="dataset", model="model", out="captions.safetensors")
    return world


TEXT2IMG: dict[str, Any] = {"images": "images.safetensors", "captions": "captions.safetensors", "model": "model", "rank": 2}


def test_captions_that_are_cut_are_named(encoded, capsys):
    run_stage("encode_captions", dataset="dataset", model="model", out="again.safetensors")
    problem = "warning: 1 captions have more than 77 tokens; the rest is cut off: 0006.png (92)"
    assert problem in capsys.readouterr().err
    run_stage("train_text2img", **TEXT2IMG, out="told-again")
    assert problem in capsys.readouterr().err
    assert (encoded / "again.safetensors").read_bytes() == (encoded / "captions.safetensors").read_bytes()


def test_text2img_killed_and_run_again_ends_with_the_same_bytes(encoded, capsys):
    write_params(encoded, train_text2img={"max_train_steps": 60, "snr_gamma": 5.0, "noise_offset": 0.1})
    run_stage("train_text2img", **TEXT2IMG, out="whole")
    said = capsys.readouterr().out
    assert "6 images, 2 a step: 3 steps an epoch, 60 steps are 20 epochs: each image is seen about 20 times" in said
    assert "GiB for weights, gradients and optimizer" in said
    assert "s for the 40 steps left; peak memory so far" in said
    assert "LoRA of rank 2, alpha 4" in said
    assert not list((encoded / ".checkpoints").rglob("checkpoint.pt"))
    history = (encoded / "whole" / "history.csv").read_text().splitlines()
    assert history[0] == "step,epoch,loss,learning_rate,grad_norm,validation_loss"
    assert [row.split(",")[0] for row in history[1:]] == [str(step) for step in range(5, 61, 5)]

    kill_at_a_checkpoint(encoded, "train_text2img", **TEXT2IMG, out="resumed")
    assert not (encoded / "resumed").exists()
    run_stage("train_text2img", **TEXT2IMG, out="resumed")
    assert "going on after step" in capsys.readouterr().out
    assert digests(encoded / "resumed") == digests(encoded / "whole")


def kill_at_a_checkpoint(root: Path, name: str, patience: float = 0.0, **options) -> None:
    """Run a stage in processes of its own and end them with SIGKILL, `patience` seconds after the first checkpoint."""
    command = [sys.executable, "-m", f"stages.{name}", *arguments(**options)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    before = newest_checkpoint(root)
    process = subprocess.Popen(command, cwd=root, env=environment, start_new_session=True)
    until = time.monotonic() + 600
    while newest_checkpoint(root) == before:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.002)
    time.sleep(patience)
    os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
    assert process.wait() == -signal.SIGKILL


def newest_checkpoint(root: Path) -> int:
    """When the last checkpoint was written; 0 where there is none."""
    return max((path.stat().st_mtime_ns for path in (root / ".checkpoints").rglob("checkpoint.pt")), default=0)


def test_dreambooth_with_and_without_class_images(encoded, capsys):
    for count, name in ((0, "none"), (3, "some")):
        write_params(encoded, class_images={"num_class_images": count})
        run_stage("class_images", model="model", out=f"class-{name}")
        assert len(list((encoded / f"class-{name}").iterdir())) == count
        options = {"images": "images.safetensors", "class_images": f"class-{name}", "model": "model", "rank": 2}
        capsys.readouterr()
        run_stage("train_dreambooth", **options, out=f"dreambooth-{name}")
        assert ("and 3 class images" in capsys.readouterr().out) == (count == 3)
    assert digests(encoded / "dreambooth-none") != digests(encoded / "dreambooth-some")


def test_killed_at_random_moments_it_ends_with_the_same_bytes(encoded):
    """SIGKILL three times, also while a checkpoint is being written: there is one after each step."""
    settings = {"max_train_steps": 60, "lora_dropout": 0.2, "validation_images": 2, "validation_steps": 10}
    write_params(encoded, train_text2img=settings | {"checkpointing_steps": 1})
    run_stage("train_text2img", **TEXT2IMG, out="unharmed")
    random.seed(0)
    for _ in range(3):
        kill_at_a_checkpoint(encoded, "train_text2img", patience=random.uniform(0, 0.1), **TEXT2IMG, out="harmed")
    run_stage("train_text2img", **TEXT2IMG, out="harmed")
    assert digests(encoded / "harmed") == digests(encoded / "unharmed")
    rows = list(csv.DictReader((encoded / "harmed" / "history.csv").open()))
    assert [row["step"] for row in rows if row["validation_loss"]] == ["10", "20", "30", "40", "50", "60"]


SAMPLES = {"sample_prompts": ["a portrait", "asuka"], "sample_steps": 5}
DRAWN = {f"samples/p{index}-step{step:06d}.png" for index in range(2) for step in (5, 10, 12)}


def test_images_on_the_way_change_nothing_and_survive_a_kill(encoded):
    """The weights learnt are the same without them; those drawn before a SIGKILL are there at the end."""
    write_params(encoded, train_text2img={"lora_dropout": 0.2, "max_train_steps": 12})
    run_stage("train_text2img", **TEXT2IMG, out="unseen")
    assert set(digests(encoded / "unseen")) == {"history.csv", "pytorch_lora_weights.safetensors"}
    write_params(encoded, train_text2img={"lora_dropout": 0.2, "max_train_steps": 12, "checkpointing_steps": 6} | SAMPLES)
    run_stage("train_text2img", **TEXT2IMG, out="seen")
    seen = digests(encoded / "seen")
    assert {name: digest for name, digest in seen.items() if name not in DRAWN} == digests(encoded / "unseen")
    assert set(seen) - set(digests(encoded / "unseen")) == DRAWN
    assert len({seen[name] for name in DRAWN}) == len(DRAWN), "the weights change, and so do the images"
    kill_at_a_checkpoint(encoded, "train_text2img", **TEXT2IMG, out="cut")
    assert len(list((encoded / ".checkpoints").rglob("*-step000005.png"))) == 2
    run_stage("train_text2img", **TEXT2IMG, out="cut")
    assert digests(encoded / "cut") == seen


def test_last_images_on_the_way_are_what_the_file_draws(encoded):
    """With the text encoder trained, at the run's settings, from the written file."""
    import numpy as np
    import torch

    from stages.comparison.cells import read_png_text
    from stages.comparison.sampling import Sampling, draw, load_lora, load_models
    from stages.lora.samples import INFERENCE_STEPS, NOISE_SCHEDULER, SEED

    write_params(encoded, class_images={"num_class_images": 0}, train_dreambooth={"train_text_encoder": True} | SAMPLES)
    run_stage("class_images", model="model", out="class-no")
    options = {"images": "images.safetensors", "class_images": "class-no", "model": "model", "rank": 2}
    run_stage("train_dreambooth", **options, out="drawn")
    models = load_models(encoded / "model", torch.device("cpu"))
    load_lora(models, encoded / "drawn")
    sampling = Sampling(NOISE_SCHEDULER, INFERENCE_STEPS, 3.0, RESOLUTION, 1)
    for index, image in enumerate(draw(models, ["a portrait", "asuka"], [SEED], sampling)):
        path = encoded / f"drawn/samples/p{index}-step000012.png"
        difference = np.abs(np.asarray(image, dtype=int) - np.asarray(Image.open(path), dtype=int))
        assert difference.max() <= 1
        assert read_png_text(path) == {"prompt": ["a portrait", "asuka"][index], "step": "12", "seed": "0"}


def test_images_on_the_way_in_half_precision(encoded):
    write_params(encoded, runtime={"dtype": "bfloat16"}, train_text2img=SAMPLES | {"max_train_steps": 2})
    run_stage("train_text2img", **TEXT2IMG, out="half")
    assert len(list((encoded / "half/samples").iterdir())) == 2


def test_divergence_names_the_images_and_keeps_the_last_good_checkpoint(encoded, capsys):
    import torch

    settings = {"learning_rate": 1e6, "lr_scheduler": "constant", "max_grad_norm": None, "gradient_accumulation_steps": 2}
    write_params(encoded, train_text2img=settings | {"checkpointing_steps": 1})
    with pytest.raises(SystemExit):
        run_stage("train_text2img", **TEXT2IMG, out="diverged")
    said = capsys.readouterr().err.splitlines()[-1]
    found = re.search(r"the loss is (\S+) at step (\d+): .*; the step learnt from ([\d.png, ]+); .* is kept: (.*)", said)
    assert found is not None, said
    assert set(found[3].split(", ")) <= {f"{number:04d}.png" for number in range(1, 7)}
    assert torch.load(found[4], weights_only=True)["step"] == int(found[2]) - 1
    assert not (encoded / "diverged").exists()


def test_full_disk_is_seen_before_training(encoded, capsys, monkeypatch):
    import shutil

    write_params(encoded)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(SystemExit):
        run_stage("train_text2img", **TEXT2IMG, out="no-room")
    said = capsys.readouterr()
    assert "are needed for 2 checkpoints and the result, and 0.00 GB are free" in said.err.splitlines()[-1]
    assert "training:" not in said.err


@pytest.fixture(scope="module")
def mixed(world) -> Path:
    """Wide, square and upright images, encoded each in its shape, and captions for them."""
    random = np.random.default_rng(1)
    for folder in ("mixed", "mixed-dataset"):
        (world / folder).mkdir()
    for number, (width, height) in enumerate([(120, 40), (96, 32), (70, 70), (64, 64), (64, 70), (32, 96), (192, 64)], start=1):
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for folder in ("mixed", "mixed-dataset"):
            image.save(world / folder / f"{number:04d}.png")
    rows = "".join(f"{number:04d}.png,a portrait {number}\n" for number in range(1, 8))
    (world / "mixed-dataset/metadata.csv").write_text("file_name,caption\n" + rows)
    return world


BUCKETS = {"resolution": 64, "max_aspect_ratio": 3}


def test_images_of_mixed_shapes_train_both_kinds_and_resume(mixed, capsys):
    settings = {"max_train_steps": 40, "validation_images": 2, "validation_steps": 10, "train_batch_size": 3}
    write_params(mixed, encode_images=BUCKETS, train_text2img=settings, train_dreambooth={"max_train_steps": 5})
    run_stage("encode_images", images="mixed", vae="model/vae", out="mixed.safetensors")
    said = capsys.readouterr()
    assert "1 images at 32x96, 3 images at 64x64, 3 images at 96x32" in said.out
    assert "enlarged" not in said.err
    run_stage("encode_captions", dataset="mixed-dataset", model="model", out="mixed-captions.safetensors")
    options: dict[str, Any] = TEXT2IMG | {"images": "mixed.safetensors", "captions": "mixed-captions.safetensors"}
    run_stage("train_text2img", **options, out="mixed-whole")
    kill_at_a_checkpoint(mixed, "train_text2img", **options, out="mixed-cut")
    run_stage("train_text2img", **options, out="mixed-cut")
    assert digests(mixed / "mixed-cut") == digests(mixed / "mixed-whole")
    write_params(mixed, class_images={"num_class_images": 2, "resolution": 64}, train_dreambooth={"max_train_steps": 5})
    run_stage("class_images", model="model", out="class-square")
    options = {"images": "mixed.safetensors", "class_images": "class-square", "model": "model", "rank": 2}
    run_stage("train_dreambooth", **options, out="mixed-dreambooth")
    assert (mixed / "mixed-dreambooth/pytorch_lora_weights.safetensors").exists()


def test_two_processes_killed_at_a_random_moment_end_with_the_same_bytes(mixed):
    """Images of several shapes, held-out images and images on the way included; the whole group is killed."""
    settings = {"num_processes": 2, "train_batch_size": 3, "max_train_steps": 40, "lora_dropout": 0.2, "checkpointing_steps": 1}
    settings |= {"validation_images": 2, "validation_steps": 10, "sample_prompts": ["a portrait"], "sample_steps": 15}
    write_params(mixed, encode_images=BUCKETS, train_text2img=settings)
    run_stage("encode_images", images="mixed", vae="model/vae", out="mixed.safetensors")
    run_stage("encode_captions", dataset="mixed-dataset", model="model", out="mixed-captions.safetensors")
    options: dict[str, Any] = TEXT2IMG | {"images": "mixed.safetensors", "captions": "mixed-captions.safetensors"}
    run_stage("train_text2img", **options, out="two-whole")
    kill_at_a_checkpoint(mixed, "train_text2img", patience=random.Random(1).uniform(0, 0.4), **options, out="two-cut")
    assert not (mixed / "two-cut").exists()
    run_stage("train_text2img", **options, out="two-cut")
    assert digests(mixed / "two-cut") == digests(mixed / "two-whole")


def test_full_fine_tuning_writes_a_model_that_draws(encoded, capsys):
    import torch

    from stages.comparison.sampling import load_lora, load_models

    write_params(encoded, train_text2img={"tuned": "full", "learning_rate": 1e-4})
    run_stage("train_text2img", **TEXT2IMG, out="full")
    assert "full fine-tuning: " in capsys.readouterr().out
    tuned, moved = (load_models(encoded / name, torch.device("cpu")) for name in ("full", "model"))
    before = {name: tensor.clone() for name, tensor in moved.unet.state_dict().items()}
    load_lora(moved, encoded / "full")
    for name, tensor in tuned.unet.state_dict().items():
        assert torch.equal(tensor, moved.unet.state_dict()[name])
    assert any(not torch.equal(tensor, before[name]) for name, tensor in moved.unet.state_dict().items())
    untouched = load_models(encoded / "model", torch.device("cpu"))
    load_lora(untouched, encoded / "full", lora_scale=0.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in untouched.unet.state_dict().items())
    assert str(encoded).encode() not in b"".join(path.read_bytes() for path in (encoded / "full").rglob("*.json"))


def test_dreambooth_with_its_text_encoder(encoded):
    import torch

    from stages.comparison.sampling import encode_prompt, load_lora, load_models

    write_params(
        encoded, class_images={"num_class_images": 3}, train_dreambooth={"train_text_encoder": True, "max_train_steps": 40}
    )
    run_stage("class_images", model="model", out="class-prior")
    options: dict[str, Any] = {"images": "images.safetensors", "class_images": "class-prior", "model": "model", "rank": 2}
    run_stage("train_dreambooth", **options, out="prompts-one")
    kill_at_a_checkpoint(encoded, "train_dreambooth", **options, out="prompts-two")
    run_stage("train_dreambooth", **options, out="prompts-two")
    assert digests(encoded / "prompts-one") == digests(encoded / "prompts-two")
    models = load_models(encoded / "model", torch.device("cpu"))
    before = encode_prompt(models, "asuka")
    load_lora(models, encoded / "prompts-one")
    assert not torch.allclose(encode_prompt(models, "asuka"), before, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "train_text2img: error: target_modules: 'to_z' names no layer"),
        ({"rank": 0}, "train_text2img: error: --rank: given 0"),
        ({"images": "captions.safetensors"}, "train_text2img: error: captions.safetensors: not a file of encoded images"),
        ({"model": "raw"}, "train_text2img: error: "),
    ],
)
def test_wrong_inputs_are_one_line(encoded, capsys, options, message):
    write_params(encoded, train_text2img={"target_modules": ["to_z"]})
    with pytest.raises(SystemExit) as exit:
        run_stage("train_text2img", **TEXT2IMG | options, out="wrong")
    assert exit.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)
    assert not (encoded / "wrong").exists()


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
    assert list((world / "class-empty").iterdir()) == []
