import json
from xml.dom import minidom

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from sd_parsers import ParserManager

from stages.drawing.image_files import GENERATED, XMP, parameters_text, read_image_recipe, write_image
from stages.drawing.noise_schedulers import NOISE_SCHEDULERS
from stages.pipeline.wording import PROGRAM

RECIPE = {
    "prompt": "1girl, red hair",
    "negative_prompt": "lowres",
    "noise_scheduler": "dpmsolver++_karras",
    "num_inference_steps": 20,
    "guidance_scale": 7.5,
    "seed": 4294967295,
    "resolution": 512,
    "clip_skip": 1,
    "model": "a0.7",
    "unet_sha256": "0123456789abcdef" * 4,
}
LORA = {"lora": "text2img-a0.7-r8-s0", "lora_scale": 0.5, "lora_sha256": "fedcba9876543210" * 4}


def draw(path, recipe):
    write_image(Image.new("RGB", (4, 4), (1, 2, 3)), path, recipe)
    return path


def text_of(path):
    with Image.open(path) as image:
        return image.text  # pyright: ignore[reportAttributeAccessIssue]


def test_a_recipe_comes_back_with_its_types_and_the_same_bytes(tmp_path):
    recipe = RECIPE | {"prompt": "ein Mädchen, 赤い髪 🎨\n\ttab", "batch_seeds": [3, 5]}
    assert read_image_recipe(draw(tmp_path / "one.png", recipe)) == recipe
    assert (tmp_path / "one.png").read_bytes() == draw(tmp_path / "two.png", dict(reversed(recipe.items()))).read_bytes()


def test_parameters_are_what_a1111_writes():
    assert parameters_text(RECIPE | LORA).splitlines() == [
        "1girl, red hair <lora:text2img-a0.7-r8-s0:0.5>",
        "Negative prompt: lowres",
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 4294967295, Size: 512x512, "
        "Model hash: 0123456789, Model: a0.7, Clip skip: 2, RNG: CPU, "
        'Lora hashes: "text2img-a0.7-r8-s0: fedcba987654", Version: sd-merge-lora 0.1.0',
    ]
    bare = parameters_text(RECIPE | {"negative_prompt": "", "clip_skip": 0, "noise_scheduler": "euler_a", "seed": 0})
    assert "Negative" not in bare
    assert "Clip skip" not in bare
    assert "Sampler: Euler a, CFG scale: 7.5, Seed: 0," in bare


@pytest.mark.parametrize("name", sorted(NOISE_SCHEDULERS))
def test_each_sampler_has_a_name_that_readers_do_not_break(name):
    sampler = NOISE_SCHEDULERS[name]
    assert sampler.a1111
    assert not set(sampler.a1111) & set(",:\n")
    assert (sampler.spacing or "") == name.partition("_karras")[1].strip("_") + name.partition("_exponential")[1].strip("_")


def test_no_key_of_another_program_holds_our_text(tmp_path):
    """ComfyUI takes `prompt` and `workflow` for its own JSON."""
    assert set(text_of(draw(tmp_path / "one.png", RECIPE))) == {"parameters", PROGRAM, XMP}


def test_the_file_says_that_a_model_made_it(tmp_path):
    xmp = minidom.parseString(text_of(draw(tmp_path / "one.png", RECIPE))[XMP])
    (said,) = xmp.getElementsByTagName("Iptc4xmpExt:DigitalSourceType")
    assert said.firstChild is not None
    assert said.firstChild.nodeValue == f"http://cv.iptc.org/newscodes/digitalsourcetype/{GENERATED}"


PROMPTS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=300)
LINES = st.lists(PROMPTS, min_size=1, max_size=3).map("\n".join)


def readable(text):
    """Whether A1111's own form can say a prompt: its words for the other parts stand for themselves."""
    return text.strip() == text and text and "Negative prompt:" not in text and "Steps:" not in text


@settings(max_examples=200, deadline=None)
@given(prompt=LINES.filter(readable), negative=st.just("") | LINES.filter(readable), seed=st.integers(0, 2**32 - 1))
@example(prompt="a, (b:1.2), [c|d] <lora:x:1>", negative='"{}": \\', seed=0)
@example(prompt="فتاة ذات شعر أحمر, 👩‍🎨", negative="", seed=1)
@example(prompt="1girl " * 300 + "end", negative="x", seed=2)
def test_two_readers_of_prompts_find_them(tmp_path_factory, prompt, negative, seed):
    recipe = RECIPE | {"prompt": prompt, "negative_prompt": negative, "seed": seed}
    path = draw(tmp_path_factory.mktemp("fuzz") / "x.png", recipe)
    assert read_image_recipe(path)["prompt"] == prompt
    found = ParserManager().parse(path)
    assert found is not None
    (sampler,) = found.samplers
    assert [each.value for each in sampler.prompts] == [prompt]
    assert [each.value for each in sampler.negative_prompts] == ([negative] if negative else [])
    assert sampler.name == "DPM++ 2M"
    assert sampler.model is not None
    assert (sampler.model.name, sampler.model.hash) == ("a0.7", "0123456789")
    assert {name: sampler.parameters[name] for name in ("seed", "steps", "cfg_scale", "scheduler")} == {
        "seed": str(seed),
        "steps": "20",
        "cfg_scale": "7.5",
        "scheduler": "Karras",
    }
    _read_by_sd_prompt_reader(path, prompt, negative, seed)


def _read_by_sd_prompt_reader(path, prompt, negative, seed):
    """It pins an old Pillow, so it stands in no lock file: `pip install --no-deps sd-prompt-reader` has it looked at, too."""
    try:
        from sd_prompt_reader.format import A1111  # pyright: ignore[reportMissingImports]
    except ImportError:
        return
    reader = A1111(info=text_of(path))
    assert reader.parse() is reader.Status.READ_SUCCESS
    assert (reader.positive, reader.negative, reader.parameter["seed"]) == (prompt, negative, str(seed))
    assert (reader.width, reader.height, reader.parameter["sampler"]) == ("512", "512", "DPM++ 2M")


@pytest.mark.parametrize("prompt", ["a\nNegative prompt: b\nSteps: 3", "a\0b", "\ud800", '{"x": 1}'])
def test_what_a1111_cannot_say_is_in_the_recipe(tmp_path, prompt):
    assert read_image_recipe(draw(tmp_path / "x.png", {"prompt": prompt}))["prompt"] == prompt


@pytest.mark.parametrize("text", ["no JSON", "[1]", "3"])
def test_a_file_of_another_program_has_no_recipe(tmp_path, text):
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_text(PROGRAM, text)
    chunks.add_text("prompt", json.dumps({"3": {"inputs": {}}}))
    Image.new("RGB", (2, 2)).save(tmp_path / "x.png", pnginfo=chunks)
    assert read_image_recipe(tmp_path / "x.png") == {}
