"""A folder of hostile files: each is refused with one line, in under a second, under 200 MB, and nothing is executed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints.hostile import HOSTILE, MARKER, executing, write_hostile

MOST_SECONDS, MOST_MEGABYTES = 1, 200
# In a process of its own, so that its memory can be measured; the import of the room is not counted.
READ_ALL = """
import json, resource, sys, time
from pathlib import Path
from stages.checkpoints.files import pickles
from stages.checkpoints.files.weight_files import open_weights

def megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)

modules = set(sys.modules)
for file in map(Path, sys.argv[1:]):
    start, before, message = time.process_time(), megabytes(), None
    try:
        for tensor in open_weights(file).tensors.values():
            tensor.read()
    except ValueError as error:
        message = str(error)
    print(json.dumps([file.name, message, time.process_time() - start, megabytes() - before]))
print(json.dumps(sorted(set(sys.modules) - modules)))
"""


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    write_hostile(folder)
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", READ_ALL, *(str(folder / name) for name in HOSTILE)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not (folder / MARKER).exists(), "a file was executed"
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def results(lines):
    return {name: result for name, *result in lines[:-1]}


@pytest.mark.parametrize("name", HOSTILE)
def test_is_refused_quickly_with_one_line(results, name):
    message, seconds, megabytes = results[name]
    assert message is not None, "it was read"
    assert re.search(HOSTILE[name][1], message), message
    assert name.removesuffix(".index.json") in message
    assert len(message.splitlines()) == 1
    assert len(message) < 500
    assert seconds < MOST_SECONDS
    assert megabytes < MOST_MEGABYTES


def test_no_module_is_imported(lines):
    assert not [name for name in lines[-1] if name.partition(".")[0] in ("this", "antigravity", "torch", "code")]


def test_the_files_do_execute_when_unpickled(tmp_path, monkeypatch):
    import pickle

    monkeypatch.chdir(tmp_path)
    pickle.loads(executing())
    assert (tmp_path / MARKER).exists(), "the files do nothing, so the test above shows nothing"
