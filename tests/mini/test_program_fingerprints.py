"""The pipeline of data/mini: its stages run again where their programs change, and nowhere else."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stages.mini.program_fingerprints import write_fingerprints
from stages.mini.rebuild import MADE
from stages.pipeline.fingerprints import fingerprint, import_closure, read_pins

ROOT = Path(__file__).parents[2]
PIPELINE = Path("data/mini/dvc.yaml")
STAGES = yaml.safe_load((ROOT / PIPELINE).read_text())["stages"]
CODE = STAGES.pop("code")
PROGRAMS = {name: re.findall(r"-m (\S+)", stage["cmd"]) for name, stage in STAGES.items()}
ALL = {program for programs in PROGRAMS.values() for program in programs}
DENOISERS = {"train_ancestor", "train_finetune"}
TRAININGS = {*DENOISERS, "train_vae", "train_judge", "train_captioner", "train_scorer", "train_dino"}
USERS = {
    "drawings/portraits.py": {*TRAININGS, "draw_sets", "evaluate"},
    "drawings/labelled.py": {"train_judge", "train_captioner", "train_scorer", "train_dino", "evaluate"},
    "drawings/sheets.py": {"evaluate"},
    "training/fitting.py": TRAININGS,
    "training/muon.py": TRAININGS,
    "training/denoiser.py": DENOISERS,
    "training/finetune_files.py": {"train_finetune"},
    "training/train_captioner.py": {"train_captioner"},
    "training/attribute_heads.py": {"train_captioner", "train_scorer"},
    "training/train_dino.py": {"train_dino"},
    "evaluation/nearest_drawings.py": {"train_dino", "evaluate"},
    "evaluation/judge.py": {"train_judge", "evaluate"},
    "evaluation/targets.py": {"evaluate"},
    "rebuild.py": set(),
}
"""Modules, and the programs that an edit of each reruns."""


def short(program: str) -> str:
    return program.rpartition(".")[2]


def outs(stage: dict) -> set[str]:
    return {path for out in stage["outs"] for path in out}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_fingerprint_of_its_program_and_on_no_file_of_code(name):
    deps = STAGES[name]["deps"]
    assert len(PROGRAMS[name]) == 1
    assert [dep for dep in deps if dep.startswith("${work}/code/")] == [f"${{work}}/code/{short(PROGRAMS[name][0])}"]
    assert all(dep.startswith("${work}/") for dep in deps)


def test_each_fingerprint_that_is_depended_on_is_written():
    assert set(CODE["cmd"].split()[CODE["cmd"].split().index("${work}/code") + 1 :]) == ALL
    assert outs(CODE) == {f"${{work}}/code/{short(program)}" for program in ALL}
    assert all(list(out.values()) == [{"cache": False}] for out in CODE["outs"])


def test_all_data_that_is_depended_on_is_made_by_a_stage():
    made = {out for stage in (CODE, *STAGES.values()) for out in outs(stage)}
    assert {dep for stage in STAGES.values() for dep in stage["deps"]} <= made


def test_all_of_the_small_world_that_presets_read_is_made_and_copied_to_its_place():
    texts = [path.read_text() for path in (ROOT / "conf").rglob("*.yaml")]
    read = {name for text in texts for name in re.findall(r"path: data/mini/([\w.]+)", text)}
    assert {"asuka", "scorer", "dino", "toon.ckpt"} <= read
    assert read <= set(MADE)
    assert {f"${{work}}/{name}" for name in MADE} <= {out for stage in STAGES.values() for out in outs(stage)}


def test_a_fine_tune_is_made_by_what_it_trains_with():
    closure = set(import_closure("stages.mini.training.train_finetune", ROOT)[0])
    made_by = ("training.denoiser", "training.fitting", "training.muon", "training.finetune_files", "drawings.portraits")
    assert {f"stages.mini.{module}" for module in made_by} | {"stages.encoding.prompts"} <= closure


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sources")
    shutil.copytree(ROOT / "stages", root / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    return root


def changed_by(text: str, module: str, sources: Path, tmp_path: Path) -> set[str]:
    """The programs whose fingerprints an addition to a module changes."""
    shutil.copytree(sources / "stages", tmp_path / "stages")
    with (tmp_path / "stages" / "mini" / module).open("a", encoding="utf-8") as file:
        file.write(text)
    return {short(program) for program in ALL if fingerprint(program, sources, {}) != fingerprint(program, tmp_path, {})}


@pytest.mark.parametrize("module", USERS)
def test_an_edit_changes_the_fingerprints_of_its_users_only(module, sources, tmp_path):
    assert changed_by("\nEDITED = True\n", module, sources, tmp_path) == USERS[module]


def test_a_comment_changes_no_fingerprint(sources, tmp_path):
    assert changed_by("\n# a comment\n", "drawings/portraits.py", sources, tmp_path) == set()


def test_another_version_of_what_draws_changes_what_is_drawn():
    pins = read_pins(ROOT / "requirements.lock")
    for name in ("dicebear-core", "dicebear-styles", "resvg-py"):
        assert fingerprint("stages.mini.drawings.draw_sets", ROOT, pins | {name: "0"}) != fingerprint(
            "stages.mini.drawings.draw_sets", ROOT, pins
        )


def test_a_file_a_program_is_written(tmp_path):
    write_fingerprints(sorted(ALL), ROOT / "requirements.lock", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {short(program) for program in ALL}
    assert all(re.fullmatch(r"[0-9a-f]{64}\n", path.read_text()) for path in tmp_path.iterdir())


def test_an_unknown_program_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"stages\.mini\.training\.train_nothing: there is no such module"):
        write_fingerprints(["stages.mini.training.train_nothing"], ROOT / "requirements.lock", tmp_path)


def test_evaluation_knows_nothing_of_training_and_drawings_nothing_of_either():
    for room, foreign in (("drawings", ("training", "evaluation")), ("evaluation", ("training",))):
        for path in (ROOT / "stages" / "mini" / room).glob("*.py"):
            closure = import_closure(f"stages.mini.{room}.{path.stem}", ROOT)[0]
            assert not [name for name in closure if name.startswith(tuple(f"stages.mini.{other}" for other in foreign))]


@pytest.mark.stage
def test_dvc_runs_the_code_stage_before_all_others():
    """DVC leaves out a pipeline in a folder that it takes for ignored by git."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "dag", "--dot", str(PIPELINE)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    edges = set(re.findall(rf'"{PIPELINE}:(\w+)" -> "{PIPELINE}:(\w+)"', done.stdout))
    assert {before for before, _ in edges} >= {"code", "draw_sets", "vae", "ancestor"}
    assert {after for before, after in edges if before == "code"} == set(STAGES)
