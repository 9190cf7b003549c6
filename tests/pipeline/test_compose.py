"""Choosing and beginning presets."""

import shutil
from pathlib import Path

import pytest
import yaml

from stages.pipeline import preset
from stages.pipeline.compose import compose, main
from stages.pipeline.provenance import check
from stages.sync import check_together, validate_all

ROOT = Path(__file__).parents[2]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A folder with conf/ of its own and data/mini."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mini").symlink_to(ROOT / "data" / "mini")
    shutil.copyfile(ROOT / "LICENSE", tmp_path / "LICENSE")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stages.pipeline.resolvers.ROOT", tmp_path)
    return tmp_path


def params():
    return yaml.safe_load(Path("params.yaml").read_text())


def test_a_chosen_preset_stays_chosen(repository):
    main(["experiment=smoke"])
    assert params()["name"] == "smoke"
    chosen = Path("params.yaml").read_bytes()
    compose(Path("params.yaml"))  # what a plain `dvc exp run` does
    assert Path("params.yaml").read_bytes() == chosen
    check(params(), Path("conf"))
    main([])
    assert Path("params.yaml").read_bytes() == chosen


def test_other_overrides_choose_nothing(repository):
    before = Path("conf/config.yaml").read_text()
    main(["sweep.alpha=[0.5]"])
    assert Path("conf/config.yaml").read_text() == before
    assert params()["name"] == "mini"


@pytest.mark.parametrize("overrides", [["experiment=nope"], ["experiment=smoke", "sweep.nope=1"]])
def test_a_choice_that_cannot_be_composed_changes_nothing(repository, overrides, capsys):
    main([])
    before = [Path(name).read_bytes() for name in ("params.yaml", "conf/config.yaml")]
    with pytest.raises(SystemExit):
        main(overrides)
    assert [Path(name).read_bytes() for name in ("params.yaml", "conf/config.yaml")] == before
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_unknown_preset_is_answered_with_the_known_ones(repository, capsys):
    with pytest.raises(SystemExit):
        main(["experiment=nope"])
    said = capsys.readouterr().err
    assert said.startswith("compose: error: experiment: given 'nope': there is asuka, eight_bit, mini, mini_8bit, smoke;")


def test_a_mapping_is_given_whole_without_a_plus_sign(repository):
    given = {
        "train_text2img.peft": {"peft_type": "OFT", "r": 0, "oft_block_size": "rank"},
        "train_text2img.block_lr": {"M00": 0.5},
        "train_dreambooth.rank_pattern": {"attn2.to_k": 8},
        "train_dreambooth.optimizer_args": {"momentum": 0.9},
        "subjects": {"asuka": "asuka", "rei": "rei"},
    }
    main(
        [f"{setting}={yaml.safe_dump(value, default_flow_style=True, width=1000).strip()}" for setting, value in given.items()]
    )
    for setting, value in given.items():
        section, _, name = setting.rpartition(".")
        assert (params()[section] if section else params())[name] == value
    assert params()["compare"]["subjects"] == given["subjects"]
    main([])
    assert validate_all(params())[""].subjects == validate_all(params())["train_text2img"].block_lr == {}


def test_the_environment_does_not_get_into_params(repository, monkeypatch, capsys):
    monkeypatch.setenv("SECRET", "very secret")
    for override in ("compare.title=${oc.env:SECRET}", "compare.title=${oc.env:SECRET,x}"):
        with pytest.raises(SystemExit):
            main([override])
        assert "conf/ may not read the environment" in capsys.readouterr().err
    assert not Path("params.yaml").exists()


def test_a_preset_that_is_no_yaml_is_one_line(repository, capsys):
    Path("conf/experiment/mine.yaml").write_text("# @package _global_\nname: {mine\n")
    with pytest.raises(SystemExit):
        main(["experiment=mine"])
    assert capsys.readouterr().err.startswith("compose: error: not YAML: ")


def test_a_preset_of_ones_own_wants_what_only_its_owner_knows(repository, capsys):
    preset.main(["mine"])
    assert "make params EXPERIMENT=mine" in capsys.readouterr().out
    main(["experiment=mine"])
    with pytest.raises(ValueError, match=r"\Atrigger: is mandatory") as error:
        validate_all(params())
    leaves = {line.partition(": ")[0] for line in str(error.value).splitlines()}
    assert leaves == {"trigger", "download.source.path", "base.theta0.source", "base.theta1.source"}


def test_a_preset_of_ones_own_holds_nothing_of_the_small_world(repository, capsys):
    (repository / "my").mkdir()
    for number in range(1, 5):
        shutil.copyfile(ROOT / f"data/mini/asuka/{number:04d}.png", repository / "my" / f"{number}.png")
    for name in ("first.safetensors", "second.ckpt"):
        (repository / name).touch()
    path = preset.begin("mine", Path("conf"))
    own = yaml.safe_load(path.read_text())
    own["trigger"], own["download"]["source"]["path"] = "mychar", "my"
    own["base"]["theta0"]["source"]["path"], own["base"]["theta1"]["source"]["path"] = "first.safetensors", "second.ckpt"
    path.write_text("# @package _global_\n" + yaml.safe_dump(own, sort_keys=False))
    main(["experiment=mine"])
    written = Path("params.yaml").read_text().replace("deterministic", "")
    for word in ("mini", "asuka", "toon", "anime", "blond"):
        assert word not in written, word
    configs = validate_all(params())
    check_together(configs)
    assert capsys.readouterr().err == ""
    assert (configs["caption"].prefix, configs["train_dreambooth"].instance_prompt) == ("mychar", "mychar")
    assert all("mychar" in prompt for prompt in configs["generate"].subject_prompts)
    assert not any("mychar" in prompt for prompt in configs["generate"].other_prompts)
    assert (configs["compare"].names.theta0, configs["compare"].names.theta1) == ("first", "second")
    assert params()["inputs"]["images"] == "my"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mini", "is there already"),
        ("a b", "a preset's name"),
        ("2024", "a preset's name"),
        ("null", "a preset's name"),
        ("../x", "a preset's"),
    ],
)
def test_a_preset_begins_under_a_new_name_alone(repository, name, message, capsys):
    before = sorted((repository / "conf").rglob("*"))
    with pytest.raises(SystemExit):
        preset.main([name])
    assert message in capsys.readouterr().err
    assert sorted((repository / "conf").rglob("*")) == before
