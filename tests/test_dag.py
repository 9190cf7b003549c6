"""The real DAG at its smallest size (experiment=smoke): an edit reruns what reads it, and nothing else."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TEXT2IMG, DREAMBOOTH = LORAS = ("text2img-a0.7-r8-s0", "dreambooth-a0.7-r8-s0")
VARIANTS = ("theta0", "a0.7", *LORAS)
ONE_CELL = {f"generate@{TEXT2IMG}", f"embed@{TEXT2IMG}", f"export@{TEXT2IMG}"}
PERSISTS = {"compare"}
"""The stage whose output persists while it is made anew, and that DVC therefore does not take from its cache of runs."""

pytestmark = pytest.mark.stage


class Repository:
    """A clone with its own DVC cache, in which commands run as a user would run them."""

    def __init__(self, root: Path):
        self.root = root
        self.env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONWARNINGS": "ignore"}

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(command, cwd=self.root, env=self.env, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    def git(self, *arguments: str) -> None:
        self.run("git", "-c", "user.name=test", "-c", "user.email=test@example.org", *arguments)

    def dvc(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "dvc", *arguments, check=check)

    def compose(self, *overrides: str) -> None:
        self.run(sys.executable, "-m", "stages.pipeline.compose", "experiment=smoke", *overrides)

    def repro(self) -> set[str]:
        """Run `dvc repro`; the stages that were executed, `sync` left out."""
        return executed(self.dvc("repro").stdout) - {"sync"}

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.root / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))


def executed(output: str) -> set[str]:
    return set(re.findall(r"^Running stage '([^']+)'", output, flags=re.MULTILINE))


def copy_tree(target: Path) -> Repository:
    """Everything that git tracks or would track, as a repository of its own."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in names:
        if name.startswith(("tests/", "benchmarks/", ".github/")) or name == "dvc.lock" or not (ROOT / name).is_file():
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target / name)
    repository = Repository(target)
    repository.git("init", "-q", ".")
    repository.compose()
    repository.git("add", ".")
    repository.git("commit", "-qm", "all")
    return repository


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Repository:
    """The experiment at its smallest size, run once."""
    repository = copy_tree(tmp_path_factory.mktemp("clone"))
    ran = repository.repro()
    assert {"download", "merge@0.7", "train_text2img@0.7-8-0", "embed@dataset", "compare", "export@model-a0.7"} <= ran
    assert repository.repro() == set()
    return repository


@pytest.fixture
def baseline(repository, tmp_path) -> Iterator[Repository]:
    """A copy of the repository with the same cache, for a test to change."""
    clone = Repository(tmp_path / "copy")
    shutil.copytree(repository.root, clone.root, ignore=lambda folder, _: ["cache"] if folder.endswith("/.dvc") else [])
    (clone.root / ".dvc/config.local").write_text(f"[cache]\n    dir = {repository.root / '.dvc/cache'}\n")
    yield clone
    shutil.rmtree(clone.root)


def drawn(*variants: str) -> set[str]:
    """The stages that draw these variants and embed what they drew."""
    return {f"{verb}@{variant}" for verb in ("generate", "embed") for variant in variants}


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


def test_another_strength_of_the_loras_is_drawn_and_nothing_else(baseline):
    baseline.compose("sweep.lora_scale=[1.0,0.5]")
    assert baseline.repro() == drawn(*(f"{lora}-x0.5" for lora in LORAS)) | {"compare"}


def test_another_training_seed_trains_and_draws_its_loras_and_nothing_else(baseline):
    baseline.compose("sweep.seed=[0,1]")
    loras = [lora.replace("-s0", "-s1") for lora in LORAS]
    trainings = {"train_text2img@0.7-8-1", "train_dreambooth@0.7-8-1"}
    assert baseline.repro() == trainings | drawn(*loras) | {f"export@{lora}" for lora in loras} | {"compare"}


def test_a_lora_that_is_kept_on_the_way_is_drawn_and_the_end_of_its_training_stays_what_it_was(baseline):
    """Its pictures come out as they were, so that nothing that reads them runs."""
    baseline.compose("train_text2img.keep_every=1")
    new = drawn(f"{TEXT2IMG}-step1")
    assert baseline.repro() == {"train_text2img@0.7-8-0", f"generate@{TEXT2IMG}", *new, f"export@{TEXT2IMG}", "compare"}


def test_another_image_held_out_is_held_out_of_both_trainings(baseline):
    baseline.compose("download.held_out_images=2")
    data = {"download", "caption", "encode_images", "encode_captions@0.7", "embed@dataset"}
    trainings = {"train_text2img@0.7-8-0", "train_dreambooth@0.7-8-0", *(f"export@{lora}" for lora in LORAS)}
    assert baseline.repro() == data | trainings | drawn(*LORAS) | {"compare"}
    assert {len(list((baseline.root / "data/dataset" / split).glob("*.png"))) for split in ("train", "test")} == {2}


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


def test_text2img_learning_rate(baseline):
    baseline.compose("train_text2img.learning_rate=5e-4")
    assert baseline.repro() == {"train_text2img@0.7-8-0", *ONE_CELL, "compare"}


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


def test_one_alpha_more_and_one_less(baseline):
    baseline.compose("sweep.alpha=[0.7,0.3]")
    new = {"merge@0.3", "encode_captions@0.3", "class_images@0.3", "export@model-a0.3", "generate@a0.3", "embed@a0.3"}
    for kind in ("text2img", "dreambooth"):
        new |= {f"train_{kind}@0.3-8-0", *(f"{verb}@{kind}-a0.3-r8-s0" for verb in ("generate", "embed", "export"))}
    assert baseline.repro() == {*new, "compare"}
    baseline.compose("sweep.alpha=[0.3]")
    assert baseline.repro() == {"compare"}
    for gone in ("images/a0.7", "embeddings/a0.7.safetensors", f"lora/{TEXT2IMG}"):
        assert not (baseline.root / "data" / gone).exists()
    assert (baseline.root / "data/embeddings/dataset.safetensors").exists()


def test_caption_editing_leaves_dreambooth_alone(baseline):
    baseline.compose("caption.prefix=someone")
    assert baseline.repro() == {"caption", "encode_captions@0.7", "train_text2img@0.7-8-0", *ONE_CELL, "compare"}


def test_code_edit_runs_its_users_only(baseline):
    baseline.edit("stages/export.py", "def stage(", "UNUSED = 1\n\n\ndef stage(")
    assert baseline.repro() == {"export@model-a0.7", f"export@{TEXT2IMG}", f"export@{DREAMBOOTH}"}


def test_a_setting_reruns_only_what_reads_it(baseline):
    baseline.compose("export.dtype=float32")
    assert baseline.repro() == {"export@model-a0.7"}
    baseline.compose("export.lora_dtype=float16")
    assert baseline.repro() == {f"export@{TEXT2IMG}", f"export@{DREAMBOOTH}"}


def test_other_class_images_train_both_loras_again_and_leave_the_models_alone(baseline):
    baseline.compose("class_images.class_prompts=[something else]")
    trainings = {"train_text2img@0.7-8-0", "train_dreambooth@0.7-8-0", *(f"export@{lora}" for lora in LORAS)}
    assert baseline.repro() == {"class_images@0.7", "compare"} | trainings | drawn(*LORAS)


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


def test_plots_of_losses_and_grids_load(repository):
    done = repository.dvc("plots", "show", "--out", "plots")
    assert "failed to load" not in done.stdout + done.stderr
    page = (repository.root / "plots" / "index.html").read_text()
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


def test_ci_fetches_only_what_it_needs(repository, tmp_path):
    """The commands of .github/workflows/grids.yml, in a fresh clone with a directory as remote."""
    remote, clone = tmp_path / "remote", tmp_path / "clone"
    repository.dvc("remote", "add", "--force", "--default", "ci", str(remote))
    repository.dvc("push", "--quiet")
    repository.git("add", ".")
    repository.git("commit", "-qm", "remote and lock")
    repository.git("clone", "-q", ".", str(clone))
    fresh = Repository(clone)
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
    assert (clone / "grid-before.png").read_bytes() == (repository.root / "data/report/grid.png").read_bytes()


def test_ci_refuses_a_gpu_stage(repository, tmp_path):
    """A stage that asks for a GPU fails where there is none, and the message says which stage and what changed for it."""
    clone = tmp_path / "clone"
    repository.git("clone", "-q", ".", str(clone))
    fresh = Repository(clone)
    fresh.compose("runtime.device=cuda")
    done = fresh.run(sys.executable, "-m", "stages.pipeline.ci.regenerate", check=False)
    assert done.returncode != 0
    assert "runtime.device: cuda asked for and there is no GPU" in done.stdout + done.stderr
    assert re.search(r"grids: stage \w+ had to run here and could not", done.stderr)
