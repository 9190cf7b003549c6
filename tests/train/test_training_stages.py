"""The stages from encoded images to LoRA files, on tiny random models."""

import csv
import os
import random
import re
import subprocess
import sys
from typing import Any

import pytest

from tests.train.running import (
    ROOT,
    TEXT2IMG,
    digests,
    kill_at_a_checkpoint,
    run_stage,
    write_params,
)

pytestmark = pytest.mark.stage


def test_captions_that_are_cut_are_named(encoded, capsys):
    run_stage("encode_captions", dataset="dataset", model="model", out="again.safetensors")
    problem = "warning: 1 caption has more than 77 tokens; the rest is cut off: 0006.png (92)"
    assert problem in capsys.readouterr().err
    run_stage("train_text2img", **TEXT2IMG, out="told-again")
    assert problem in capsys.readouterr().err
    assert (encoded / "again.safetensors").read_bytes() == (encoded / "captions.safetensors").read_bytes()


def test_text2img_killed_and_run_again_ends_with_the_same_bytes(encoded, capsys):
    write_params(encoded, train_text2img={"max_train_steps": 60, "snr_gamma": 5.0, "noise_offset": 0.1})
    run_stage("train_text2img", **TEXT2IMG, out="whole")
    said = capsys.readouterr().out
    assert "6 images, 2 a step: 3 steps an epoch, 60 steps are 20 epochs: each image is seen about 20 times" in said
    assert re.search(r"expected: about 0 min \d+ s and \d+\.\d\d GiB of memory; the first 20 steps will tell better", said)
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


def test_dreambooth_with_and_without_class_images(encoded, capsys):
    for count, name in ((0, "none"), (3, "some")):
        write_params(encoded, class_images={"num_class_images": count})
        run_stage("class_images", model="model", out=f"class-{name}")
        assert len(list((encoded / f"class-{name}").glob("*.png"))) == count
        assert any((encoded / f"class-{name}").iterdir()), "of an empty folder DVC warns at each look"
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


def test_full_fine_tuning_writes_a_model_that_draws(encoded, capsys):
    import torch

    from stages.drawing.sampling import load_lora, load_models

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

    from stages.drawing.sampling import encode_prompt, load_lora, load_models

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
    assert not list((world / "class-empty").glob("*.png"))
