"""conf/, dvc.yaml and the stages' configs fit together; every wrong setting is refused by its name."""

import copy
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.pipeline.command import config_schemas
from stages.pipeline.compose import compose
from stages.pipeline.config import ParamsError
from stages.sync import stage_modules, validate_all

ROOT = Path(__file__).parents[1]
PRESETS = sorted(file.stem for file in (ROOT / "conf/experiment").rglob("*.yaml"))
UNSET = {"asuka": {"download.source": {"repo": "someone/something", "revision": "0" * 40}}}
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = {name: stage.get("do", stage) for name, stage in DVC["stages"].items()}
NEUTRAL = {"housekeeping"}
"""Sections that cannot change a result: no stage of dvc.yaml depends on them."""


@pytest.fixture(scope="module", params=PRESETS)
def preset(request, tmp_path_factory) -> tuple[str, dict[str, Any]]:
    out = tmp_path_factory.mktemp("params") / "params.yaml"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        compose(out, [f"experiment={request.param}"])
    return request.param, yaml.safe_load(out.read_text())


def test_a_config_beside_a_single_file_is_watched(tmp_path):
    model = tmp_path / "model.safetensors"
    model.touch()
    watched = []
    for _ in range(2):
        compose(tmp_path / "params.yaml", [f"base.theta0.source.path={model}"])
        watched.append(yaml.safe_load((tmp_path / "params.yaml").read_text())["inputs"]["base"]["theta0"]["neighbour"])
        model.with_suffix(".yaml").touch()
    assert watched == ["data/code/base", str(tmp_path / "model.yaml")]
    assert "${item.neighbour}" in STAGES["base"]["deps"]


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_every_preset_composes_and_validates(preset):
    name, params = preset
    assert params["name"] == name
    if name in UNSET:
        with pytest.raises(ParamsError) as error:
            validate_all(params)
        lines = str(error.value).splitlines()
        assert lines
        assert all("is mandatory and not set" in line for line in lines), lines
    validate_all(filled(name, params))


def filled(name: str, params: dict[str, Any]) -> dict[str, Any]:
    params = copy.deepcopy(params)
    for path, values in UNSET.get(name, {}).items():
        section, leaf = path.split(".")
        params[section][leaf] |= {key: value for key, value in values.items() if params[section][leaf].get(key) == "???"}
    return params


def leaves(values: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield (*path, key), value
        yield from leaves(value, (*path, key))


def wrong_values(path: tuple, value: Any) -> list[Any]:
    if path[-1] == "path" and value is not None:
        return ["no/such/file"]
    if path[-1] == "repo" and value is not None:
        return ["no hub id", 7]
    if path[-1] == "revision" and value not in (None, "main"):  # a branch is allowed where a sha256 pins the file
        return ["abc"]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return ["many", -1000000.5, float("nan")]
    return []


def test_every_wrong_path_hub_id_and_number_is_one_line_that_names_its_setting(preset):
    name, params = preset
    params = filled(name, params)
    sections = {section for section in params if section in stage_modules() or section in ("sweep", "runtime")}
    tried = 0
    for path, value in list(leaves({section: params[section] for section in sections})):
        for wrong in wrong_values(path, value):
            edited = copy.deepcopy(params)
            place = edited
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = wrong
            with pytest.raises(ParamsError) as error:
                validate_all(edited)
            dotted = ".".join(map(str, path))
            lines = str(error.value).splitlines()
            assert any(line.startswith((f"{dotted}: ", f"{dotted}.")) for line in lines), (dotted, wrong, lines)
            tried += 1
    assert tried > 50


def test_sync_writes_a_fingerprint_for_every_stage():
    assert [next(iter(out)) for out in STAGES["sync"]["outs"]] == ["data/code"]
    read = {dep for stage in STAGES.values() for dep in stage["deps"] if dep.startswith("data/code/")}
    assert read == {f"data/code/{name}" for name in stage_modules()}


@pytest.mark.parametrize("name", [name for name in STAGES if name != "sync"])
def test_every_stage_lists_its_code_and_all_its_settings(name):
    stage = STAGES[name]
    module = stage["cmd"].split()[2]
    assert stage["cmd"].startswith("sh stages/run ")
    assert stage["desc"]
    assert f"data/code/{module}" in stage["deps"]
    parameters = config_schemas(stage_modules()[module].stage)
    expected = {module if parameter == "config" else parameter for parameter in parameters} - NEUTRAL
    expected = {"base": {"base.${key}", "base.dtype"}, "export": {"${item.setting}"}}.get(module, expected)
    assert set(stage["params"]) == expected


@pytest.mark.parametrize("name", [name for name in STAGES if name != "sync"])
def test_every_path_of_a_command_is_declared(name):
    stage = STAGES[name]
    outs = [out if isinstance(out, str) else next(iter(out)) for out in stage["outs"]]
    words = [
        word.replace("{", "${item.").replace("$${item.", "${") for word in stage["cmd"].split() if word.startswith("data/")
    ]
    assert words
    declared = {dep: "data/dataset" if dep == "${inputs.described}" else dep for dep in stage["deps"]}  # that, or no file
    assert set(words) <= {*declared.values(), *outs}, "and what is composed, ${item.model}, is a dependency as it is"
    assert set(re.findall(r"\$\{item\.(?:model|source)\}", stage["cmd"])) <= set(stage["deps"])
    assert name != "embed" or "${item}" in stage["deps"], "there it is a folder, and no mapping of options"
    assert all(out in words for out in outs)


def test_no_stage_that_takes_long_is_left_out_of_the_cache_of_runs():
    """DVC takes no output from it that persists while it is made anew."""
    persist = {name for name, stage in STAGES.items() for out in stage.get("outs", []) if isinstance(out, dict)}
    assert persist == {"sync", "compare"}


def test_a_training_is_run_once_for_each_alpha_rank_and_seed_and_its_folder_is_called_by_them():
    for name, rank in (("train_text2img", "rank"), ("train_dreambooth", "dreambooth_rank")):
        assert STAGES[name]["matrix"] == {"alpha": "${cells.alpha}", "rank": f"${{cells.{rank}}}", "seed": "${cells.seed}"}
        assert STAGES[name]["cmd"].endswith(" ${item}"), "--alpha, --rank and --seed"
        kind = name.removeprefix("train_")
        assert STAGES[name]["outs"] == [f"data/lora/{kind}-a${{item.alpha}}-r${{item.rank}}-s${{item.seed}}"]


def test_a_word_is_taught_once_for_each_alpha_number_of_vectors_and_seed():
    stage = STAGES["train_textual_inversion"]
    assert stage["matrix"] == {"alpha": "${cells.alpha}", "vectors": "${cells.vectors}", "seed": "${cells.seed}"}
    assert stage["cmd"].endswith(" ${item}")
    assert stage["outs"] == ["data/lora/textual_inversion-a${item.alpha}-v${item.vectors}-s${item.seed}"]


@pytest.mark.parametrize(
    ("templates", "described"), [("captions", "data/dataset"), ("subject", "data/code/train_textual_inversion")]
)
def test_captions_are_watched_only_where_a_word_is_described_by_them(tmp_path, templates, described):
    words = ["experiment=smoke", "sweep.vectors=[2]", f"train_textual_inversion.templates={templates}"]
    compose(tmp_path / "params.yaml", words)
    assert yaml.safe_load((tmp_path / "params.yaml").read_text())["inputs"]["described"] == described


def test_kept_steps_are_those_that_each_training_keeps(tmp_path):
    values = {"text2img": ("null", 9), "dreambooth": (4, 9), "textual_inversion": (5, 9)}
    overrides = [
        f"train_{kind}.{setting}={value}"
        for kind, of_kind in values.items()
        for setting, value in zip(("keep_every", "max_train_steps"), of_kind, strict=True)
    ]
    compose(tmp_path / "params.yaml", ["experiment=smoke", "sweep.rank=[4]", "sweep.vectors=[2]", *overrides])
    params = yaml.safe_load((tmp_path / "params.yaml").read_text())
    assert params["sweep"]["kept_steps"] == {"text2img": [], "dreambooth": [4, 8], "textual_inversion": [5]}
    dreambooth = [f"dreambooth-a0.7-r4-s0{step}" for step in ("-step4", "-step8", "")]
    words = [f"textual_inversion-a0.7-v2-s0{step}" for step in ("-step5", "")]
    assert list(params["cells"]["variants"]) == ["theta0", "a0.7", "text2img-a0.7-r4-s0", *dreambooth, *words]
    word = {"model": "data/merged/a0.7", "trained": f"data/lora/{words[1]}", "lora": {"embedding": f"data/lora/{words[1]}"}}
    assert params["cells"]["variants"][words[1]] == word
    assert params["cells"]["variants"]["dreambooth-a0.7-r4-s0-step4"]["trained"] == "data/lora/dreambooth-a0.7-r4-s0/step-4"
    assert list(params["cells"]["exports"]) == ["model-a0.7", "text2img-a0.7-r4-s0", "dreambooth-a0.7-r4-s0", words[1]]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_asks_with_and_without_the_subject_and_holds_images_out(name, tmp_path):
    """What is said of one prompt holds for no other, and a LoRA is best at the very images that it learnt."""
    compose(tmp_path / "params.yaml", [f"experiment={name}"])
    params = yaml.safe_load((tmp_path / "params.yaml").read_text())
    fewest = 2 if name == "smoke" else 6
    for prompts in ("subject_prompts", "other_prompts"):
        assert len(params["generate"][prompts]) >= fewest
    assert params["download"]["held_out_images"] >= 1
    assert all(params["trigger"] in prompt for prompt in params["generate"]["subject_prompts"])
    assert not any(params["trigger"] in prompt for prompt in params["generate"]["other_prompts"])


@pytest.mark.parametrize("name", STAGES)
def test_values_reach_a_shell_only_where_dvc_quotes_them(name):
    written = set(re.findall(r"\$\{([^}]*)\}", STAGES[name]["cmd"]))
    composed = {
        "generate": {"key", "item.model", "item.lora"},
        "embed": {"key", "item"},
        "export": {"key", "item.source"},
    }
    assert written <= {"base": {"key"}, **composed}.get(name, {"item"})
    assert isinstance(DVC["stages"]["base"]["foreach"], dict), "its keys stand in dvc.yaml itself"
    for composer in ("variants", "embedded", "exports"):
        assert f"${{{composer}:${{sweep}}}}" in (ROOT / "conf/config.yaml").read_text(), "the others are composed, of numbers"


def test_names_and_paths_of_variants_are_made_of_numbers_alone(tmp_path):
    """They stand in commands without quotes."""
    hostile = "'; touch hacked'"
    values = {"alpha": 0.5, "rank": 2, "seed": 3, "lora_scale": 0.5, "kept_steps.text2img": 7}
    lists = [f"sweep.{axis}=[{hostile},{value}]" for axis, value in values.items()]
    compose(tmp_path / "params.yaml", [*lists, f"sweep.bases=[{hostile}]"])
    cells = yaml.safe_load((tmp_path / "params.yaml").read_text())["cells"]
    loras = ("text2img-a0.5-r2-s3-step7-x0.5", "text2img-a0.5-r2-s3-x0.5", "dreambooth-a0.5-r2-s3-x0.5")
    assert list(cells["variants"]) == ["a0.5", *loras]
    assert list(cells["embedded"]) == ["dataset", "a0.5", *loras]
    assert "touch" not in yaml.safe_dump({name: cells[name] for name in ("variants", "embedded", "exports")})


HOSTILE = "0.5; touch hacked; $(touch hacked) `touch hacked` ' \" touch"


def test_a_hostile_value_is_one_word_of_a_command(tmp_path):
    shutil.copyfile(ROOT / "dvc.yaml", tmp_path / "dvc.yaml")
    compose(tmp_path / "params.yaml")
    params = yaml.safe_load((tmp_path / "params.yaml").read_text())
    params["cells"]["alpha"] = [HOSTILE]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))

    def dvc(*arguments):
        command = [sys.executable, "-m", "dvc", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    dvc("init", "--quiet", "--no-scm")
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n")
    for folder in ("code/merge", "base/theta0", "base/theta1", "base/theta2", "vae"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    printed = dvc("repro", "--dry", "--single-item", f"merge@{HOSTILE}")
    command = next(line for line in printed.splitlines() if line.startswith("> "))
    words = shlex.split(command.removeprefix("> "))
    assert words[words.index("--alpha") + 1] == HOSTILE
    assert words[words.index("--out") + 1] == "data/merged/a{alpha}"
    assert len(words) == 3 + 2 * 6


CHOICES = {
    "download/source=folder": ["download.source.path=data/mini/asuka"],
    "download/source=bing": [],
    "download/source=urls": ["download.source.list=README.md"],
    "download/source=hub_files": ["download.source.repo=a/b", f"download.source.revision={'0' * 40}"],
    "download/source=hub_dataset": ["download.source.repo=a/b", f"download.source.revision={'0' * 40}"],
    "caption/model=blip_base": [],
    "caption/model=folder": ["caption.model.path=data/mini/captioner"],
    "embed/clip=clip_vit_b_32": [],
    "embed/clip=folder": ["embed.clip.path=data/mini/scorer"],
    "embed/clip=mini": [],
    "embed/dino=dinov2_base": [],
    "embed/dino=folder": ["embed.dino.path=data/mini/dino"],
    "embed/dino=mini": [],
}


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("choice", CHOICES)
def test_another_source_captioner_or_encoder_can_be_chosen_with_every_preset(name, choice, tmp_path):
    compose(tmp_path / "params.yaml", [f"experiment={name}", choice, *CHOICES[choice]])
    validate_all(filled(name, yaml.safe_load((tmp_path / "params.yaml").read_text())))


def test_a_scalar_in_place_of_a_list_is_refused_by_its_name_and_dvc_can_still_read_the_pipeline(tmp_path):
    compose(tmp_path / "params.yaml", ["sweep.alpha=0.5"])
    params = yaml.safe_load((tmp_path / "params.yaml").read_text())
    assert params["cells"]["alpha"] == []
    with pytest.raises(ParamsError, match=r"^sweep\.alpha: given 0\.5: a list is needed, \[0\.5\]$"):
        validate_all(params)


@pytest.mark.parametrize(
    ("section", "leaf", "value"), [("inputs", "vae", "nowhere"), ("cells", "alpha", [True]), ("", "trigger", "")]
)
def test_what_is_computed_has_a_schema_too(preset, section, leaf, value):
    name, params = preset
    params = filled(name, params)
    (params[section] if section else params)[leaf] = value
    with pytest.raises(ParamsError, match=rf"^{section}\.?{leaf}"):
        validate_all(params)
