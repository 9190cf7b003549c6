"""The plan of the study, what its tables say of planted embeddings, and a small one on tiny models."""

import importlib
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from stages.dataset.metadata import TEST, TRAIN, ManifestRow, write_manifest
from stages.drawing.cells import cells_of, write_cells
from stages.lora.config import DreamboothConfig, Text2imgConfig
from stages.measures.embedded_files import Embedded, write_embedded
from stages.pipeline.compose import compose
from stages.pipeline.config import read_params, validate
from tests.training.running import RESOLUTION, environment, run_stage, write_params
from tests.training.world import HELD_OUT, NAMES, noise, write_dataset, write_raw

ROOT = Path(__file__).parents[2]
PROMPTS, SEEDS, SIZE = 4, 4, 16


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("study_plan")


@pytest.fixture
def params(tmp_path):
    compose(tmp_path / "composed.yaml", ["experiment=mini"], ROOT / "conf")
    return read_params(tmp_path / "composed.yaml")


def test_every_way_of_the_plan_can_be_trained_and_has_a_place_of_its_own(study, params, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    planned = study.Study(params, 400, 5, 1, root=tmp_path)
    assert len({cell.name for cell in planned.cells()}) == len(planned.cells()) == 1 + 27 * 3 * 5
    assert {arm for pair in study.CONTRASTS for arm in pair} == set(study.ARMS)
    for arm in study.ARMS:
        settings = arm.settings(params[f"train_{arm.method}"])
        schema = Text2imgConfig if arm.method == "text2img" else DreamboothConfig
        config = validate("train", schema, settings)
        assert bool(config.prior_loss_weight) == arm.regularised
        assert config.train_text_encoder == arm.text_encoder


def test_another_setting_that_all_share_is_another_study(study, params, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in study.Study(params, 400, 5, 1).inputs():
        path.mkdir(parents=True)
    one = study.Study(params, 400, 5, 1, root=tmp_path)
    assert study.Study(params, 400, 3, 1, study.ARMS[:1], root=tmp_path).folder == one.folder  # more may be added to it
    assert study.Study(params, 401, 5, 1, root=tmp_path).folder != one.folder
    assert study.Study(params, 400, 5, 2, root=tmp_path).folder != one.folder
    ranked = params | {"sweep": params["sweep"] | {"dreambooth_rank": [2]}}
    assert study.Study(ranked, 400, 5, 1, root=tmp_path).folder != one.folder


def normalized(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def write_training(folder: Path, generator, named: float) -> None:
    """Embeddings of images that show the subject so strongly where it is named, and not at all elsewhere."""
    asks = np.repeat(np.arange(2 * PROMPTS) < PROMPTS, SEEDS)
    rows = generator.normal(size=(len(asks), SIZE)) * 0.2
    rows[:, 0] += named * asks
    rows[:, 1] += 1
    names = [cell.file_name for cell in cells()]
    texts = normalized(generator.normal(size=(2 * PROMPTS, SIZE)))
    images = {"clip": normalized(rows), "dino": normalized(rows)}
    write_embedded(Embedded(images, texts, names, names, [str(number) for number in range(2 * PROMPTS)], {}, ""), folder)


def cells():
    words = [str(number) for number in range(2 * PROMPTS)]
    return cells_of(words[:PROMPTS], words[PROMPTS:], range(SEEDS))


@pytest.fixture
def planned(study, params, tmp_path, monkeypatch):
    """A study in a folder of its own, its dataset, and the model without LoRA."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    names = [f"{number:02d}.png" for number in range(60)]
    (tmp_path / "data/raw").mkdir(parents=True)
    rows = [ManifestRow(name, "", "", "", "", 8, 8, TEST if number < 6 else TRAIN) for number, name in enumerate(names)]
    for name in names:
        (tmp_path / "data/raw" / name).touch()
    write_manifest(tmp_path / "data/raw", rows)
    real = generator.normal(size=(60, SIZE)) * 0.2
    real[:, :2] += 1
    images = {"clip": normalized(real), "dino": normalized(real)}
    nothing = np.zeros((0, SIZE), dtype=np.float32)
    write_embedded(Embedded(images, nothing, names, names, [], {}, ""), tmp_path / study.DATASET_EMBEDDINGS)
    found = study.Study(params, 400, 5, 1, study.ARMS[:3])
    for path in found.inputs():
        path.mkdir(parents=True)
    folder = found.folder / "base"
    (folder / "images").mkdir(parents=True)
    for cell in cells():
        (folder / "images" / cell.file_name).touch()
    write_cells(folder / "images", cells())
    write_training(folder / "embeddings.safetensors", generator, 0)
    return found


def write_arm(planned, study, arm, strengths: dict[float, float], seeds: int = 5) -> None:
    """The trainings of an arm: by learning rate, how strongly the subject shows where it is named."""
    from safetensors.numpy import save_file

    for rate, named in strengths.items():
        for seed in range(seeds):
            generator = np.random.default_rng([int(1e6 * rate), seed, study.ARMS.index(arm)])
            folder = planned.folder / study.Cell(arm, rate, seed).name
            write_training(folder / "embeddings.safetensors", generator, named + 0.05 * generator.normal())
            (folder / "lora").mkdir()
            save_file({"a": np.zeros((3, 7))}, folder / "lora/pytorch_lora_weights.safetensors")


def tables(planned) -> str:
    return "\n".join(importlib.import_module("study_tables").tables(planned))


def test_the_better_way_at_its_best_learning_rate_is_found(study, params, planned, tmp_path):
    better, worse, _ = planned.arms
    write_arm(planned, study, better, {0.003: 0.2, 0.009: 1.0, 0.027: 0.4})
    write_arm(planned, study, worse, {0.003: 0.0, 0.009: 0.0, 0.027: 0.2})
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    program = [sys.executable, ROOT / "benchmarks/study.py", "--report"]
    said = subprocess.run(program, env=environment(), capture_output=True, text=True, check=True).stdout
    assert "| DreamBooth | LoRA | yes | yes | 0.009 | 21 | 5 |" in said
    assert "| text2img | LoRA | yes | yes | 0.027 | 21 | 5 |" in said
    assert (
        "- The main question: DreamBooth (LoRA, text encoder) against text2img (LoRA, text encoder): better by the likeness "
        "gained by naming the subject: +0." in said
    )
    assert "Not trained often enough yet: text2img (LoRA); DreamBooth (LoRA, text encoder, no class images); " in said
    assert "A higher learning rate than those tried may be better for text2img (LoRA, text encoder)." in said
    assert "A lower learning rate" not in said
    assert "of 12 pairs of trainings that differ in their seed, " in said
    assert "of 6 pairs of two trainings against two, " in said


def test_a_learning_rate_that_diverged_once_is_not_chosen(study, planned):
    arm = planned.arms[0]
    write_arm(planned, study, arm, {0.003: 0.2, 0.009: 0.4, 0.027: 1.0})
    folder = planned.folder / study.Cell(arm, 0.027, 3).name
    (folder / "embeddings.safetensors").unlink()
    (folder / "diverged.txt").write_text("the loss is nan\n")
    said = tables(planned)
    assert "| DreamBooth | LoRA | yes | yes | 0.009 |" in said
    assert "trainings diverged at the learning rate 0.027" in said


def test_at_one_learning_rate_nothing_is_chosen_and_all_is_reported(study, planned):
    planned = replace(planned, tried=[1])
    write_arm(planned, study, planned.arms[0], {0.003: 0.2})
    evidence = importlib.import_module("study_tables").Evidence(planned)
    values = evidence.reported_values([study.Cell(planned.arms[0], 0.003, 0)])
    assert {each.shape for each in values.values()} == {(1, 2 * PROMPTS)}
    said = tables(planned)
    assert "400 optimizer steps at one learning rate. The units are trainings" in said
    assert "chosen" not in said
    assert "learning rate than those tried" not in said


def test_without_the_ways_of_the_main_question_there_is_none(study, planned):
    changed, plain = replace(study.TEXT2IMG, text_encoder=False, change="min-SNR"), replace(study.TEXT2IMG, text_encoder=False)
    planned = replace(planned, tried=[1], arms=[plain, changed])
    for arm, named in ((plain, 0.2), (changed, 0.9)):
        write_arm(planned, study, arm, {0.003: named})
    said = tables(planned)
    assert "main question" not in said
    assert (
        "- text2img (LoRA, min-SNR) against text2img (LoRA): better by the likeness gained by naming the subject: +0." in said
    )


def test_ways_that_are_alike_are_told_apart_by_chance_alone(study, planned):
    for arm in planned.arms:
        write_arm(planned, study, arm, {0.003: 0.5, 0.009: 0.5, 0.027: 0.5})
    evidence = importlib.import_module("study_tables").Evidence(planned)
    assert not any(contrast.told_apart for contrast in evidence.contrasts)
    files, _, methods, as_methods = evidence.by_chance()
    assert (files, methods) == (18, 9)
    assert as_methods <= 2


def test_of_one_training_nothing_is_said(study, planned):
    write_arm(planned, study, planned.arms[0], {0.003: 0.2, 0.009: 1.0, 0.027: 0.4}, seeds=1)
    assert tables(planned).startswith("nothing to report yet")


@pytest.mark.stage
def test_a_study_of_tiny_models_goes_on_where_it_was(study, params, tmp_path, monkeypatch):
    make_world(tmp_path, params, monkeypatch)

    def run(*more: str) -> str:
        words = [
            sys.executable,
            ROOT / "benchmarks/study.py",
            "--only",
            "dreambooth-lora",
            "--steps",
            "1",
            "--seeds",
            "2",
            "--rates",
            "1",
            *more,
        ]
        done = subprocess.run(words, env=environment(), capture_output=True, text=True)
        assert not done.returncode, done.stderr[-3000:]
        return done.stdout

    assert "3 in all, with the model itself; 0 are in" in run("--plan")
    assert "nothing to report yet" in run("--hours", "0")
    assert "0 are in" in run("--plan")
    assert "| DreamBooth | LoRA | no | yes | " in run()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / ".study").rglob("*.safetensors")}
    assert len(before) == 3 + 2
    assert "3 are in" in run()
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / ".study").rglob("*.safetensors")}


@pytest.mark.stage
def test_a_study_that_is_told_to_end_leaves_checkpoints_and_no_process(params, tmp_path, monkeypatch):
    make_world(tmp_path, params, monkeypatch)
    words = [sys.executable, ROOT / "benchmarks/study.py", "--only", "dreambooth-lora", "--steps", "5000", "--seeds", "1"]
    with subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        logs: list[Path] = []
        while not any("ms a step" in log.read_text() for log in logs):
            assert process.poll() is None
            time.sleep(0.1)
            logs = list(tmp_path.glob(".study/*/dreambooth-lora/*/s0/log.txt"))
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "study: interrupted; the same command goes on" in errors
    assert list(tmp_path.rglob("checkpoint.pt"))
    assert not [each for each in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(each.info["cmdline"] or ())]


def make_world(root: Path, params, monkeypatch) -> None:
    """A folder with tiny models, and what the stages before the trainings make with them."""
    from tests.drawing.tiny_models import save_tiny_checkpoint, save_tiny_dino, save_tiny_scorer

    monkeypatch.chdir(root)
    save_tiny_scorer(root / "clip")
    save_tiny_dino(root / "dino")
    model = save_tiny_checkpoint(root / "data/merged/a0.7")
    write_raw(root / "data/raw", dict(zip(NAMES, noise([(RESOLUTION, RESOLUTION)] * 6), strict=True)), HELD_OUT)
    write_dataset(root / "data/dataset", root / "data/raw", {name: f"a {name}" for name in NAMES}, HELD_OUT)
    write_params(root, train_dreambooth={"train_batch_size": 1}, class_images={"num_class_images": 1})
    sections = yaml.safe_load((root / "params.yaml").read_text())
    drawn = {"subject_prompts": ["a cat", "hat"], "other_prompts": ["green", "a hat"], "seeds": [0, 1]}
    sections["generate"] = params["generate"] | drawn | {"resolution": RESOLUTION, "num_inference_steps": 1}
    source = {"repo": None, "revision": None, "file": None, "sha256": None}
    sections["embed"] = {name: source | {"path": name} for name in ("clip", "dino")}
    sections["sweep"] = params["sweep"] | {"rank": [2], "dreambooth_rank": [2]}
    (root / "params.yaml").write_text(yaml.safe_dump(sections))
    run_stage("encode_images", images="data/raw", vae=model / "vae", out="data/encoded/images.safetensors")
    run_stage("encode_captions", dataset="data/dataset", model=model, out="data/encoded/captions-a0.7.safetensors")
    run_stage("class_images", model=model, out="data/class_images/a0.7")
    run_stage("embed", images="data/raw", out="data/embeddings/dataset.safetensors")


def test_what_a_study_needs_is_named(study, params, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.setattr(sys, "argv", ["study.py", "--plan"])
    with pytest.raises(SystemExit):
        importlib.import_module("study").main()
    assert "data/merged/a0.7: missing; make study runs the stages that make it" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["study.py", "--only", "lora"])
    with pytest.raises(SystemExit):
        importlib.import_module("study").main()
    assert "--only: given 'lora': there is dreambooth-lora-text-encoder, " in capsys.readouterr().err
    assert replace(study.TEXT2IMG, text_encoder=False) in study.ARMS


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("sweep", {"dreambooth_rank": []}),
        ("class_images", {"num_class_images": 0}),
        ("train_text2img", {"prior_loss_weight": 0}),
        ("train_dreambooth", {"prior_loss_weight": 0}),
    ],
)
def test_an_experiment_that_leaves_out_what_is_compared_is_refused(study, params, section, change):
    study.check_experiment(params)
    with pytest.raises(ValueError, match=f"{section}.{next(iter(change))}: is "):
        study.check_experiment(params | {section: params[section] | change})
