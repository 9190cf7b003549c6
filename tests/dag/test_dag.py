"""The real DAG at its smallest size: an edit reruns what reads it, and nothing else."""

import re
import sys
from pathlib import Path

import pytest
import yaml

from tests.dag.repository import (
    DREAMBOOTH,
    PERSISTS,
    TEXT2IMG,
    VARIANTS,
    Repository,
    copy_tree,
    drawn,
    executed,
)

pytestmark = pytest.mark.stage


def test_workers_make_what_dvc_makes_and_take_what_its_cache_has(repository, tmp_path):
    pytest.importorskip("parsl")
    clone = copy_tree(tmp_path / "clone")
    (clone.root / ".dvc/config.local").write_text(f"[cache]\n    dir = {repository.root / '.dvc/cache'}\n")
    done = clone.run(sys.executable, "-m", "stages.pipeline.distribute")
    assert "failed" not in done.stderr
    assert (clone.root / "dvc.lock").read_text() == (repository.root / "dvc.lock").read_text()
    for path in sorted((repository.root / "data").rglob("*")):
        if path.is_file() and path.name != "lineage.html":
            assert (clone.root / path.relative_to(repository.root)).read_bytes() == path.read_bytes(), path
    assert clone.repro() == set()


def test_comment_in_a_shared_module_runs_only_sync(baseline):
    baseline.edit("stages/pipeline/config.py", "import re\n", "import re  # for the commit\n")
    output = baseline.dvc("repro").stdout
    assert executed(output) == {"sync"}


def test_comment_in_conf_and_a_preset_that_is_not_composed_run_nothing(baseline):
    with (baseline.root / "conf/config.yaml").open("a") as file:
        file.write("# a comment\n")
    baseline.edit("conf/experiment/asuka.yaml", "min_size: 256", "min_size: 512")
    assert baseline.repro() == set()


def test_what_was_made_before_comes_from_the_cache(baseline):
    baseline.edit("stages/export.py", "def stage(", "BEFORE = 1\n\n\ndef stage(")
    assert baseline.repro() == {"export@model-a0.7", f"export@{TEXT2IMG}", f"export@{DREAMBOOTH}"}
    baseline.edit("stages/report/templates/page.html.jinja", "<main>", "<main><!-- another -->")
    assert baseline.repro() == {"compare"}
    baseline.git("checkout", "-q", "--", "conf", "stages", "params.yaml")
    assert baseline.repro() <= PERSISTS
    assert baseline.repro() == set()


def test_a_value_of_conf_is_refused_until_it_is_composed(baseline):
    baseline.edit("conf/experiment/mini.yaml", "learning_rate: 0.003", "learning_rate: 0.004")
    refused = baseline.dvc("repro", check=False)
    assert refused.returncode != 0
    assert executed(refused.stdout) == {"sync"}
    assert "python -m stages.pipeline.compose experiment=smoke" in refused.stderr


def test_what_cannot_change_a_result_runs_nothing(baseline):
    baseline.compose("housekeeping.checkpointing_steps=1", "housekeeping.logging_steps=1")
    assert baseline.repro() == set()


def test_what_could_not_work_is_refused_before_any_work(baseline):
    """A hand edit, a wrong value, settings that do not go together, and a scalar in place of a list."""
    baseline.edit("params.yaml", "threads: ", "threads: 1")
    refused = baseline.dvc("repro", check=False)
    assert refused.returncode != 0
    assert "edited by hand" in refused.stderr

    baseline.compose("train_text2img.max_train_steps=-1")
    refused = baseline.dvc("repro", check=False)
    assert executed(refused.stdout) == {"sync"}
    assert "train_text2img.max_train_steps: given -1" in refused.stderr

    baseline.compose("generate.other_prompts=[a portrait, asuka]")
    refused = baseline.dvc("repro", check=False)
    assert executed(refused.stdout) == {"sync"}
    assert "generate.other_prompts: 'asuka' names the trigger 'asuka': put it among subject_prompts" in refused.stderr

    refused = baseline.dvc("exp", "run", "-S", "sweep.alpha=0.5", check=False)
    assert refused.returncode != 0
    assert "sync: error: sweep.alpha: given 0.5: a list is needed, [0.5]" in refused.stderr
    assert "support" not in refused.stdout + refused.stderr


def test_a_config_beside_a_single_file_is_read_again_when_it_is_edited(baseline):
    neighbour = baseline.root / "data/mini/toon.yaml"
    neighbour.write_text("model: {params: {parameterization: eps}}\n")
    baseline.compose()
    assert baseline.repro() == {"base@theta0"}
    neighbour.write_text("model: {params: {parameterization: eps}}  # as before\n")
    assert baseline.repro() == {"base@theta0"}


def test_a_prompt_in_place_of_another_is_drawn_by_every_variant_and_the_others_are_taken_over(baseline):
    baseline.compose("generate.subject_prompts=['asuka, green background',another asuka]")
    done = baseline.dvc("repro")
    assert executed(done.stdout) - {"sync"} == drawn(*VARIANTS) | {"compare"}
    said = done.stdout + done.stderr
    assert re.findall(r"^images: (\d+)/(\d+)", said, flags=re.MULTILINE) == [("1", "1")] * len(VARIANTS)


def test_code_edit_runs_its_users_only(baseline):
    baseline.edit("stages/export.py", "def stage(", "UNUSED = 1\n\n\ndef stage(")
    assert baseline.repro() == {"export@model-a0.7", f"export@{TEXT2IMG}", f"export@{DREAMBOOTH}"}


def test_a_setting_reruns_only_what_reads_it(baseline):
    baseline.compose("export.dtype=float32")
    assert baseline.repro() == {"export@model-a0.7"}
    baseline.compose("export.lora_dtype=float16")
    assert baseline.repro() == {f"export@{TEXT2IMG}", f"export@{DREAMBOOTH}"}


def test_a_plain_experiment_stays_with_the_preset(baseline):
    chosen = (baseline.root / "params.yaml").read_bytes()
    done = baseline.dvc("exp", "run")
    assert executed(done.stdout) <= {"sync"}
    assert (baseline.root / "params.yaml").read_bytes() == chosen
    assert yaml.safe_load(chosen)["name"] == "smoke"


def test_comparison_that_fails_leaves_the_old_report(baseline):
    files = [path for path in (baseline.root / "data/report").rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    baseline.edit("stages/report/templates/page.html.jinja", "<main>", "<main>{{ no_such_name }}")
    failed = baseline.dvc("repro", check=False)
    assert failed.returncode != 0
    assert executed(failed.stdout) == {"sync", "compare"}
    assert before
    assert {path: path.read_bytes() for path in files if path.exists()} == before


def test_plots_of_losses_and_grids_load(baseline):
    done = baseline.dvc("plots", "show", "--out", "plots")
    assert "failed to load" not in done.stdout + done.stderr
    page = (baseline.root / "plots" / "index.html").read_text()
    assert "Training loss" in page
    assert "grid.png" in page


def test_dvc_sees_one_vae(repository):
    """`encode_images` depends on data/vae alone, whose bytes every merge holds: more alphas encode nothing again."""
    stages = yaml.safe_load((repository.root / "dvc.lock").read_text())["stages"]
    vae = next(out for out in stages["vae"]["outs"] if out["path"] == "data/vae")
    read = {dep["path"]: dep["md5"] for dep in stages["encode_images"]["deps"]}
    assert read["data/vae"] == vae["md5"]
    assert not any(path.startswith("data/merged") for path in read)
    alone = (repository.root / "data/vae/diffusion_pytorch_model.safetensors").read_bytes()
    assert (repository.root / "data/merged/a0.7/vae/diffusion_pytorch_model.safetensors").read_bytes() == alone


def clone_with_remote(repository: Repository, folder: Path) -> Repository:
    """A fresh clone, whose DVC remote is a directory that has everything."""
    repository.dvc("remote", "add", "--default", "ci", str(folder / "remote"))
    repository.dvc("push", "--quiet")
    repository.git("add", ".")
    repository.git("commit", "-qm", "remote and lock")
    repository.git("clone", "-q", ".", str(folder / "clone"))
    return Repository(folder / "clone")


def test_ci_fetches_only_what_it_needs(baseline, tmp_path):
    """The commands of .github/workflows/grids.yml, in a fresh clone with a directory as remote."""
    fresh = clone_with_remote(baseline, tmp_path)
    clone = fresh.root
    done = fresh.run(sys.executable, "-m", "stages.pipeline.ci.regenerate")
    assert executed(done.stdout) <= {"sync"}
    fresh.compose("generate.subject_prompts=[another asuka,a third asuka]")
    done = fresh.run(sys.executable, "-m", "stages.pipeline.ci.regenerate", "--before", "HEAD", "--comment", "comment.md")
    ran = executed(done.stdout) - {"sync"}
    assert ran == drawn(*VARIANTS) | {"compare"}
    assert (clone / "data/embeddings/dataset.safetensors").is_file(), "it was fetched: the images are those of the remote"
    assert not (clone / "data/encoded").exists()
    assert not (clone / "data/vae").exists()
    assert not (clone / "data/class_images").exists()
    assert "![grid before](grid-before.png)" in (clone / "comment.md").read_text()
    assert (clone / "grid-before.png").read_bytes() == (baseline.root / "data/report/grid.png").read_bytes()


def test_ci_refuses_a_gpu_stage(baseline, tmp_path):
    """A stage that asks for a GPU fails where there is none, and the message says which stage and what changed for it."""
    fresh = clone_with_remote(baseline, tmp_path)
    fresh.compose("runtime.device=cuda")
    done = fresh.run(sys.executable, "-m", "stages.pipeline.ci.regenerate", check=False)
    assert done.returncode != 0
    assert "runtime.device: cuda asked for and there is no GPU" in done.stdout + done.stderr
    assert re.search(r"grids: stage \w+ had to run here and could not", done.stderr)
