import subprocess
import sys

import pytest

from stages.pipeline.resume import CHECKPOINTS, resumable, run_digest


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "root"))
    return tmp_path / "root"


def test_interrupted_run_finds_its_folder_again(root, tmp_path):
    (tmp_path / "input").write_text("one")
    with pytest.raises(KeyboardInterrupt), resumable("train", {"rank": 4}, [tmp_path / "input"]) as folder:
        (folder / "checkpoint").write_text("half")
        raise KeyboardInterrupt
    with resumable("train", {"rank": 4}, [tmp_path / "input"]) as again:
        assert (again / "checkpoint").read_text() == "half"
        assert again.is_relative_to(root / CHECKPOINTS / "train")
    assert not again.exists()


def test_digest_is_of_settings_and_content_and_not_of_places(tmp_path):
    for name, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / name / "unet").mkdir(parents=True)
        (tmp_path / name / "unet" / "weights").write_text(text)
        (tmp_path / name / "__pycache__").mkdir()
        (tmp_path / name / "__pycache__" / name).write_text(name)
    digest = run_digest({"rank": 4}, [tmp_path / "a"])
    assert digest == run_digest({"rank": 4}, [tmp_path / "b"])
    others = {
        run_digest({"rank": 8}, [tmp_path / "a"]),
        run_digest({"rank": 4}, [tmp_path / "c"]),
        run_digest({"rank": 4}, [tmp_path / "a", tmp_path / "b"]),
        run_digest({"rank": 4}, [tmp_path / "a" / "unet"]),
    }
    patterns = {"to_q": 6, "attn1.to_q": 2}  # the first that fits counts
    others |= {run_digest({"rank": each}, [tmp_path / "a"]) for each in (patterns, dict(reversed(patterns.items())))}
    assert len(others) == 6
    assert digest not in others


def test_same_run_in_two_processes_is_refused(root):
    script = (
        "from stages.pipeline.resume import resumable\n"
        "try:\n    with resumable('train', {}, []): pass\n"
        "except OSError as error: print(error)"
    )
    with resumable("train", {}, []):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "another process is at this very run" in done.stdout
    assert not subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
