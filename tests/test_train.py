"""The stages from encoded images to LoRA files, on tiny random models."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

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


def environment(root: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(root), "PYTHONWARNINGS": "ignore"}


def run_stage(root: Path, stage: str, **options) -> subprocess.CompletedProcess[str]:
    arguments = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", f"stages.{stage}", *arguments]
    return subprocess.run(command, cwd=root, env=environment(root), capture_output=True, text=True, check=False)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def encoded(world) -> Path:
    """The world with its images and captions encoded."""
    write_params(world)
    images = run_stage(world, "encode_images", images="raw", vae="model/vae", out="images.safetensors")
    assert images.returncode == 0, images.stderr
    captions = run_stage(world, "encode_captions", dataset="dataset", model="model", out="captions.safetensors")
    assert captions.returncode == 0, captions.stderr
    assert "warning: 0006.png: its caption has 92 tokens; what comes after 77 is cut off" in captions.stderr
    return world


TEXT2IMG = {"images": "images.safetensors", "captions": "captions.safetensors", "model": "model", "rank": 2}


def test_text2img_killed_and_run_again_ends_with_the_same_bytes(encoded):
    write_params(encoded, train_text2img={"max_train_steps": 60, "snr_gamma": 5.0, "noise_offset": 0.1})
    whole = run_stage(encoded, "train_text2img", **TEXT2IMG, out="whole")
    assert whole.returncode == 0, whole.stderr
    assert "6 images, 2 a step: 3 steps an epoch, 60 steps are 20 epochs" in whole.stdout
    assert "LoRA of rank 2, alpha 4" in whole.stdout
    assert not list((encoded / ".checkpoints").rglob("checkpoint.pt"))
    history = (encoded / "whole" / "history.csv").read_text().splitlines()
    assert history[0] == "step,epoch,loss,learning_rate,grad_norm"
    assert [row.split(",")[0] for row in history[1:]] == [str(step) for step in range(5, 61, 5)]

    command = [sys.executable, "-m", "stages.train_text2img", "--out", "resumed"]
    command += [part for name, value in TEXT2IMG.items() for part in (f"--{name}", str(value))]
    process = subprocess.Popen(command, cwd=encoded, env=environment(encoded), stderr=subprocess.DEVNULL)
    until = time.monotonic() + 300
    while not list((encoded / ".checkpoints").rglob("checkpoint.pt")):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (encoded / "resumed").exists()
    resumed = run_stage(encoded, "train_text2img", **TEXT2IMG, out="resumed")
    assert "going on after step" in resumed.stdout
    assert digests(encoded / "resumed") == digests(encoded / "whole")


def test_dreambooth_with_and_without_class_images(encoded):
    for count, name in ((0, "none"), (3, "some")):
        write_params(encoded, class_images={"num_class_images": count})
        drawn = run_stage(encoded, "class_images", model="model", out=f"class-{name}")
        assert drawn.returncode == 0, drawn.stderr
        assert len(list((encoded / f"class-{name}").iterdir())) == count
        options = {"images": "images.safetensors", "class_images": f"class-{name}", "model": "model", "rank": 2}
        trained = run_stage(encoded, "train_dreambooth", **options, out=f"dreambooth-{name}")
        assert trained.returncode == 0, trained.stderr
        assert ("and 3 class images" in trained.stdout) == (count == 3)
    assert digests(encoded / "dreambooth-none") != digests(encoded / "dreambooth-some")


def test_no_class_images_need_no_torch(world):
    write_params(world)
    script = (
        "import sys; from stages.class_images import stage, run; run(stage, ['--model', 'model', '--out', 'class-empty']);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], cwd=world, env=environment(world), check=True)
    assert list((world / "class-empty").iterdir()) == []


def test_wrong_inputs_are_one_line(encoded):
    write_params(encoded, train_text2img={"target_modules": ["to_z"]})
    for options, message in (
        ({}, "train_text2img: error: target_modules: 'to_z' names no layer"),
        ({"rank": 0}, "train_text2img: error: --rank: given 0"),
        ({"images": "captions.safetensors"}, "train_text2img: error: captions.safetensors: not a file of encoded images"),
    ):
        done = run_stage(encoded, "train_text2img", **TEXT2IMG | options, out="wrong")
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(message)
        assert "Traceback" not in done.stderr
        assert not (encoded / "wrong").exists()


@pytest.mark.parametrize("stage", ["encode_images", "encode_captions", "train_text2img", "train_dreambooth", "class_images"])
def test_help_explains_the_stage_without_torch(stage):
    script = f"import sys, stages.{stage} as s; print('torch' in sys.modules, flush=True); s.run(s.stage, ['--help'])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False")
    assert "It is a stage of its own because" in done.stdout
    assert "--out" in done.stdout
