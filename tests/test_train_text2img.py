"""The stage train_text2img on tiny random models."""

import random
import re
from typing import Any

import pytest

from tests.training.running import TEXT2IMG, digests, held_out_losses, kill_at_a_checkpoint, run_stage, write_params

pytestmark = [pytest.mark.stage, pytest.mark.usefixtures("in_the_world")]


def test_text2img_killed_and_run_again_ends_with_the_same_bytes(encoded, capsys):
    write_params(encoded, train_text2img={"max_train_steps": 60, "snr_gamma": 5.0, "noise_offset": 0.1})
    run_stage("train_text2img", **TEXT2IMG, out="whole")
    said = capsys.readouterr().out
    assert "6 images, 2 a step: 3 steps an epoch, 60 steps are 20 epochs: each image is seen about 20 times" in said
    assert "60 steps: after the first 20 it is said how long they take" in said
    assert "s for the 40 steps left; peak memory so far" in said
    assert "LoRA of rank 2, alpha 4" in said
    assert not list((encoded / ".checkpoints").rglob("checkpoint.pt"))
    history = (encoded / "whole" / "history.csv").read_text().splitlines()
    assert history[0] == "step,epoch,loss,learning_rate,grad_norm,held_out_loss"
    assert [row.split(",")[0] for row in history[1:]] == [str(step) for step in range(1, 61)]

    kill_at_a_checkpoint(encoded, "train_text2img", **TEXT2IMG, out="resumed")
    assert not (encoded / "resumed").exists()
    run_stage("train_text2img", **TEXT2IMG, out="resumed")
    assert "going on after step" in capsys.readouterr().out
    assert digests(encoded / "resumed") == digests(encoded / "whole")


def test_killed_at_random_moments_it_ends_with_the_same_bytes(held_out):
    """SIGKILL three times, also while a checkpoint is being written: there is one after each step."""
    settings = {"max_train_steps": 60, "lora_dropout": 0.2, "held_out_steps": 10, "checkpointing_steps": 1}
    write_params(held_out, train_text2img=settings)
    options: dict[str, Any] = TEXT2IMG | {"images": "images-held-out.safetensors"}
    run_stage("train_text2img", **options, out="unharmed")
    random.seed(0)
    for _ in range(3):
        kill_at_a_checkpoint(held_out, "train_text2img", patience=random.uniform(0, 0.1), **options, out="harmed")
    run_stage("train_text2img", **options, out="harmed")
    assert digests(held_out / "harmed") == digests(held_out / "unharmed")
    assert list(held_out_losses(held_out / "harmed")) == [10, 20, 30, 40, 50, 60]


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
    write_params(encoded, train_text2img={"keep_every": 5})
    with pytest.raises(SystemExit):
        run_stage("train_text2img", **TEXT2IMG, out="no-room")
    said = capsys.readouterr().err.splitlines()[-1]
    assert "2 checkpoints, 2 files kept on the way (keep_every) and the result" in said


def test_full_fine_tuning_writes_a_model_that_draws(encoded, capsys):
    import torch

    from stages.drawing.loaded_models import load_lora, load_models

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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "train_text2img: error: target_modules: 'to_z' names no layer"),
        ({"rank": 0}, "train_text2img: error: --rank: given 0"),
        ({"seed": -1}, "train_text2img: error: --seed: given -1"),
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


def test_captions_that_vary_give_the_same_whether_they_are_embedded_before_or_while_training(encoded, monkeypatch, capsys):
    import torch
    from safetensors.torch import load_file

    from stages.checkpoints.file_names import LORA_FILE

    write_params(encoded, train_text2img={"shuffle_caption": True, "caption_tag_dropout": 0.3, "keep_tokens": 0})
    run_stage("train_text2img", **TEXT2IMG, out="before")
    assert "embedded beforehand" in capsys.readouterr().out
    monkeypatch.setattr("stages.lora.text2img.MOST_BYTES", 0)
    run_stage("train_text2img", **TEXT2IMG, out="while")
    assert "embedded while training" in capsys.readouterr().out
    write_params(encoded)
    run_stage("train_text2img", **TEXT2IMG, out="plain")
    before, beside, plain = (load_file(encoded / name / LORA_FILE) for name in ("before", "while", "plain"))
    assert all(torch.allclose(before[name], beside[name], atol=1e-5) for name in before)
    assert not all(torch.allclose(before[name], plain[name], atol=1e-4) for name in before)
