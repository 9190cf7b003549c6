"""The stage encode_captions on tiny random models."""

import pytest

from tests.training.running import TEXT2IMG, run_stage, write_params

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
    assert found.file_names == [f"{number:04d}.png" for number in range(1, 7)]
    assert found.captions == [*(f"a portrait, {letter}" for letter in "abcde"), "a " * 90]
    tokenizer, text_encoder = load_text_encoder(encoded / "model", torch.device("cpu"))
    for text, embeds in zip(["", *found.captions], [found.empty_prompt_embeds, *found.prompt_embeds], strict=True):
        alone = embed_prompts(tokenizer, text_encoder, [text], clip_skip, 1)
        torch.testing.assert_close(embeds, alone[0])
    assert len({embeds.numpy().tobytes() for embeds in [found.empty_prompt_embeds, *found.prompt_embeds]}) == 7


def make_broken_inputs(world):
    for name in ("bare", "uncaptioned", "gone"):
        (world / name).mkdir(exist_ok=True)
    (world / "uncaptioned/metadata.csv").write_text("file_name,caption\n")
    (world / "gone/metadata.csv").write_text("file_name,caption\n0001.png,a portrait\n")


@pytest.mark.parametrize(
    ("options", "settings", "message"),
    [
        ({"dataset": "bare"}, {}, "no such file: bare/metadata.csv"),
        ({"dataset": "uncaptioned"}, {}, "uncaptioned/metadata.csv: holds no captions"),
        ({"dataset": "gone"}, {}, "gone/metadata.csv names 0001.png, which is not there"),
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
