"""Stages on workers that share nothing with this machine but a remote of DVC."""

import hashlib
import shutil
import sys

import pytest

from tests.pipeline.distribute.toy import Toy

pytestmark = [
    pytest.mark.stage,
    pytest.mark.skipif(sys.platform != "linux", reason="tried on Linux alone"),
]
pytest.importorskip("parsl")


@pytest.fixture
def toy(tmp_path) -> Toy:
    toy = Toy(tmp_path / "toy")
    toy.add_remote()
    return toy


def md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


def away(toy: Toy, *words: str) -> tuple[str, ...]:
    return ("cluster.remote=storage", f"cluster.scratch={toy.root.parent / 'scratch'}", *words)


def test_the_result_is_that_of_dvc(toy, tmp_path):
    serial = Toy(tmp_path / "serial")
    serial.dvc("repro")
    toy.distribute(*away(toy))
    assert toy.lock() == serial.lock()
    assert toy.data() == serial.data()
    toy.dvc("repro")
    assert toy.lock() == serial.lock()
    assert "step 1" in (toy.root / ".checkpoints/logs/make-1.log").read_text()
    assert list((toy.root.parent / "storage").rglob("*.dir")) and not list(toy.root.rglob("storage"))
    assert toy.ran("make-1") == 0  # it notes that where the worker's folder is
    toy.distribute(*away(toy))
    assert len(toy.events("unchanged")) == 8


def test_what_dvc_has_made_goes_to_workers_and_what_they_made_into_the_cache_of_runs(toy):
    toy.dvc("repro")
    toy.set(numbers=[1, 2, 3, 4])
    toy.distribute(*away(toy))
    assert [event["stage"] for event in toy.events("done")] == ["make@4", "use@4", "all"]
    had = {path.name for path in (toy.root.parent / "scratch/cache").rglob("*") if path.is_file()}
    assert md5("OF A USER'S OWN\n")[2:] in had  # data/first, which make@4 reads
    assert md5("of a user's own\n")[2:] not in had  # what `first` reads, which had not changed
    before = toy.data()
    (toy.root / "dvc.lock").unlink()
    shutil.rmtree(toy.root / "data")
    shutil.rmtree(toy.root.parent / "scratch")
    toy.distribute(*away(toy))
    assert toy.data() == before
    assert not toy.events("sent") and len(toy.events("cached")) == 10


def test_a_remote_that_is_not_there_is_said_before_anything_runs(toy):
    output = toy.distribute("cluster.remote=moon", status=1)
    assert "cluster.remote: given 'moon': there is storage: dvc remote add moon URL" in output
    assert not (toy.root / ".checkpoints/logs").exists()


def test_a_stage_that_fails_says_why_with_all_that_it_printed(toy):
    toy.set(seconds="nonsense")
    output = toy.distribute(*away(toy), status=1)
    assert "make@1 failed" in output
    assert "invalid time interval" in (toy.root / ".checkpoints/logs/make-1.log").read_text()
