"""The benchmarks give the stages settings that they take: a new setting would otherwise end them on a GPU that is rented."""

import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import yaml

from benchmarks import contenders
from stages.pipeline.command import config_schemas
from stages.pipeline.config import validate
from stages.sync import stage_modules

ROOT = Path(__file__).parents[2]
OPTIONS = Namespace(steps=4, batch_size=2, device="cpu", threads=1, dtype="float32", resolution=64)
BUILD = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/benchmarks"]
import argparse, torch
import bare_unet, gpu, rescore, sd1_size
from pathlib import Path
device = torch.device("cpu")
bench = gpu.Bench(device, gpu.MINI, 8, 4, 2, 1)
for changes in ({}, {"classes": True}, {"train_text_encoder": True}):
    gpu.prepare_model(gpu.make_run(bench, "float32", **changes))
bare_unet.prepare_unet(argparse.Namespace(model=gpu.MINI, mode=bare_unet.LIMIT, rank=2, dtype="float32"), device)
assert not rescore.report_config().subjects
options = argparse.Namespace(steps=4, rank=2, threads=1, dtype="float32")
sd1_size.write_params(Path(sys.argv[2]), options, gradient_checkpointing=True)
"""


def check(path, sections):
    params = yaml.safe_load(path.read_text())
    modules = stage_modules()
    for section in sections:
        schemas = config_schemas(modules[section].stage)
        for parameter, schema in schemas.items():
            name = section if parameter == "config" else parameter
            validate(name, schema, params[name])


def test_the_stages_take_what_the_races_of_trainings_give_them(tmp_path):
    contenders.write_params(contenders.Setup(tmp_path, tmp_path, OPTIONS), tmp_path)
    check(tmp_path / "params.yaml", ["encode_images", "encode_captions", *(f"train_{kind}" for kind in contenders.SCRIPTS)])


def test_benchmarks_build_what_they_measure(tmp_path):
    done = subprocess.run([sys.executable, "-c", BUILD, ROOT, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check(tmp_path / "params.yaml", ["train_text2img"])
