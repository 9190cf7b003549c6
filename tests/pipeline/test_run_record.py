import json
import subprocess
from pathlib import Path

import pytest

from stages.pipeline.lockfile import locked_stages
from stages.pipeline.run_record import commit, inputs, revisions, write_record
from stages.pipeline.timing import RUNS, read_runs, timed


def test_a_stage_that_dvc_runs_notes_its_time_and_memory(tmp_path):
    with timed("merge@0.7", tmp_path / "notes"):
        pass
    with timed(None, tmp_path / "notes"):
        pass
    with pytest.raises(ValueError, match="ended"), timed("broken", tmp_path / "notes"):
        raise ValueError("ended")
    runs = read_runs(tmp_path / "notes")
    assert list(runs) == ["merge@0.7"]
    assert runs["merge@0.7"]["seconds"] < 5
    assert 10 * 2**20 < runs["merge@0.7"]["peak_memory"] < 2**36
    with (tmp_path / "notes" / RUNS).open("a") as file:
        file.write(json.dumps({"stage": "merge@0.7", "seconds": 9}) + '\n{"stage": "cut sh')
    assert read_runs(tmp_path / "notes")["merge@0.7"]["seconds"] == 9
    assert read_runs(tmp_path / "nowhere") == {}


def test_inputs_are_what_no_stage_wrote(pipeline):
    stages = locked_stages()
    assert stages
    written = {out.path for stage in stages.values() for out in stage["outs"]}
    found = inputs(stages)
    assert found
    assert not written & {each.path for each in found}
    assert all(each.md5 for each in found)


def test_the_commit_and_what_changed_since(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert commit() == {}
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.test"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"]):
        if arguments[0] == "add":
            Path("params.yaml").write_text("a: 1\n")
            Path("notes.md").write_text("x")
        subprocess.run([*git, *arguments], check=True)
    assert commit()["Changed since"] == "nothing"
    Path("params.yaml").write_text("a: 2\n")
    Path("notes.md").write_text("y")
    found = commit()
    assert found["Changed since"] == "params.yaml"
    assert len(found["Commit"]) == 40


def test_revisions_of_the_hub_are_found_wherever_they_stand():
    source = {"repo": "a/b", "revision": "0" * 40, "path": None}
    params = {
        "base": {"theta0": {"source": source, "config": None}},
        "embed": {"clip": {"repo": None}},
        "sweep": {"alpha": [1]},
    }
    assert revisions(params) == {"base.theta0.source": f"a/b@{'0' * 40}"}


def test_the_page_names_stages_outputs_and_versions_and_dvc_does_not_look_at_it(pipeline):
    (pipeline / "data/report").mkdir(parents=True)
    (pipeline / "params.yaml").write_text((pipeline / "params.yaml").read_text() + "x: {repo: a/<b>, revision: main}\n")
    with timed("own", pipeline / "notes"):
        pass
    page = write_record(pipeline / "data/report", pipeline / "notes").read_text()
    for stage, read in locked_stages().items():
        assert f'<th scope="row">{stage}</th>' in page
        assert all(out.md5[:12] in page for out in read["outs"])
    assert page.count("not here: from DVC") == len(locked_stages()) - 1
    assert "a/&lt;b&gt;@main" in page
    for word in ("torch", "dvc.lock, sha256", "params.yaml, sha256"):
        assert word in page
    ignored = (Path(__file__).parents[2] / ".dvcignore").read_text().splitlines()
    assert "/data/report/lineage.html" in ignored


def test_without_a_report_it_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="run `dvc repro` first"):
        write_record(tmp_path / "report", tmp_path)
