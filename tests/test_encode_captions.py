"""The stage encode_captions on tiny random models."""

import pytest

from tests.training.running import TEXT2IMG, run_stage, write_params
from tests.training.world import NAMES, write_dataset

pytestmark = [pytest.mark.stage, pytest.mark.usefixtures("in_the_world")]


def test_captions_that_are_cut_are_named(encoded, capsys):
    run_stage("encode_captions", dataset="dataset", model="model", out="again.safetensors")
    problem = "warning: 1 caption has more than 77 tokens; the rest is cut off: 0006.png (92)"
    assert problem in capsys.readouterr().err
    run_stage("train_text2img", **TEXT2IMG, out="told-again")
    assert problem in capsys.readouterr().err
    assert (encoded / "again.safetensors").read_bytes() == (encoded / "captions.safetensors").read_bytes()


@pytest.mark.parametrize("clip_skip", [0, 1])
def test_every_caption_and_the_empty_one_are_embedded(encoded, clip_skip):
    """As each alone, by the layer that is asked for."""
    import torch

    from stages.encoding.encoded_files import read_encoded_captions
    from stages.encoding.prompts import embed_prompts, load_text_encoder

    write_params(encoded, encode_captions={"clip_skip": clip_skip})
    run_stage("encode_captions", dataset="dataset", model="model", out=f"captions-{clip_skip}.safetensors")
    found = read_encoded_captions(encoded / f"captions-{clip_skip}.safetensors")
    assert found.file_names == NAMES
    assert found.captions == [*(f"a portrait, {letter}" for letter in "abcde"), "a " * 90]
    tokenizer, text_encoder = load_text_encoder(encoded / "model", torch.device("cpu"))
    for text, embeds in zip(["", *found.captions], [found.empty_prompt_embeds, *found.prompt_embeds], strict=True):
        alone = embed_prompts(tokenizer, text_encoder, [text], clip_skip, 1)
        torch.testing.assert_close(embeds, alone[0])
    assert len({embeds.numpy().tobytes() for embeds in [found.empty_prompt_embeds, *found.prompt_embeds]}) == 7


def test_captions_of_both_splits_are_embedded_and_those_of_training_first(encoded):
    import torch

    from stages.encoding.encoded_files import read_encoded_captions

    captions = {name: f"a portrait, {letter}" for name, letter in zip(NAMES, "abcdef", strict=True)}
    write_dataset(encoded / "split", encoded / "raw", captions, held_out=("0002.png", "0005.png"))
    write_dataset(encoded / "whole", encoded / "raw", captions)
    write_params(encoded)
    for name in ("split", "whole"):
        run_stage("encode_captions", dataset=name, model="model", out=f"of-{name}.safetensors")
    split, whole = (read_encoded_captions(encoded / f"of-{name}.safetensors") for name in ("split", "whole"))
    assert split.file_names == ["0001.png", "0003.png", "0004.png", "0006.png", "0002.png", "0005.png"]
    assert split.captions == [f"a portrait, {letter}" for letter in "acdfbe"]
    assert len(split.prompt_embeds) == 6
    for name, embeds in zip(split.file_names, split.prompt_embeds, strict=True):
        torch.testing.assert_close(embeds, whole.prompt_embeds[whole.file_names.index(name)])
    assert torch.equal(split.empty_prompt_embeds, whole.empty_prompt_embeds)


def test_problems_are_told_of_captions_that_are_trained_on_alone(encoded, capsys):
    from stages.encoding.encoded_files import read_encoded_captions

    captions = dict(zip(NAMES, ["a", "a", "a " * 80, "a " * 90, "b", "b"], strict=True))
    write_dataset(encoded / "long", encoded / "raw", captions, held_out=("0002.png", "0004.png"))
    write_params(encoded)
    run_stage("encode_captions", dataset="long", model="model", out="long.safetensors")
    problems = [
        "1 caption has more than 77 tokens; the rest is cut off: 0003.png (82)",
        "1 caption is of several images, which cannot be told apart by it: 2 times “b”",
    ]
    assert list(read_encoded_captions(encoded / "long.safetensors").problems) == problems
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")] == [
        f"warning: {problem}" for problem in problems
    ]


def make_broken_inputs(world):
    for name in ("bare", "uncaptioned/train", "gone/train"):
        (world / name).mkdir(parents=True, exist_ok=True)
    (world / "uncaptioned/train/metadata.csv").write_text("file_name,caption\n")
    (world / "gone/train/metadata.csv").write_text("file_name,caption\n0001.png,a portrait\n")
    if not (world / "untold").exists():
        write_dataset(world / "untold", world / "raw", {"0001.png": "a portrait"})
        (world / "untold/test").mkdir()


@pytest.mark.parametrize(
    ("options", "settings", "message"),
    [
        ({"dataset": "bare"}, {}, "no such file: bare/train/metadata.csv"),
        ({"dataset": "uncaptioned"}, {}, "uncaptioned/train/metadata.csv: holds no captions"),
        ({"dataset": "gone"}, {}, "gone/train/metadata.csv names 0001.png, which is not there"),
        ({"dataset": "untold"}, {}, "no such file: untold/test/metadata.csv"),
        ({}, {"clip_skip": 2}, "clip_skip: given 2: this text encoder has 2 layers"),
        ({}, {"clip_skip": -1}, "encode_captions.clip_skip: given -1"),
    ],
)
def test_wrong_inputs_are_one_line(world, capsys, options, settings, message):
    make_broken_inputs(world)
    write_params(world, encode_captions=settings)
    with pytest.raises(SystemExit) as exit:
        run_stage("encode_captions", **{"dataset": "dataset", "model": "model"} | options, out="wrong.safetensors")
    assert exit.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"encode_captions: error: {message}")
    assert not (world / "wrong.safetensors").exists()
