from pathlib import Path

import pytest

from stages.pipeline.fingerprints import code_digest, fingerprint, import_closure, read_pins


@pytest.fixture
def package(tmp_path):
    write(tmp_path, "stages/__init__.py", '"""Package."""')
    write(tmp_path, "stages/room/__init__.py", "")
    write(tmp_path, "stages/room/shared.py", 'def f(x):\n    """Doc."""\n    return x + 1  # why\n')
    write(tmp_path, "stages/room/other.py", "import numpy\n")
    write(tmp_path, "stages/one.py", "def stage():\n    from stages.room import shared\n    import yaml\n    import torch.nn\n")
    write(tmp_path, "stages/two.py", "from stages.room.other import numpy\n")
    return tmp_path


def write(root: Path, name: str, text: str):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    code_digest.cache_clear()


def fingerprints(root: Path, **pins: str) -> tuple[str, str]:
    return fingerprint("stages.one", root, pins), fingerprint("stages.two", root, pins)


def test_closure_follows_imports_inside_functions(package):
    modules, third_party = import_closure("stages.one", package)
    assert set(modules) == {"stages", "stages.one", "stages.room", "stages.room.shared"}
    assert third_party == {"pyyaml", "torch"}


@pytest.mark.parametrize(
    "text",
    [
        'def f(x):\n    """Another doc."""\n    return x + 1\n',
        "def f(x):\n    # a comment\n    return (x + 1)\n",
        "def f( x ) :\n\n    return x+1",
    ],
)
def test_comments_docstrings_and_formatting_change_nothing(package, text):
    before = fingerprints(package)
    write(package, "stages/room/shared.py", text)
    assert fingerprints(package) == before


def test_code_edit_in_a_shared_module_changes_its_users_only(package):
    one, two = fingerprints(package)
    write(package, "stages/room/shared.py", "def f(x):\n    return x + 2\n")
    changed_one, same_two = fingerprints(package)
    assert changed_one != one
    assert same_two == two


def test_version_of_an_imported_distribution_counts(package):
    one, two = fingerprints(package, torch="1", numpy="1")
    newer_one, same_two = fingerprints(package, torch="2", numpy="1")
    assert newer_one != one
    assert same_two == two


def test_a_string_that_is_no_docstring_counts(package):
    before = fingerprints(package)
    write(package, "stages/room/shared.py", 'def f(x):\n    y = "Doc."\n    return x + 1\n')
    assert fingerprints(package)[0] != before[0]


def test_relative_imports_are_refused(package):
    write(package, "stages/three.py", "from . import one\n")
    with pytest.raises(ValueError, match=r"three\.py:1: relative imports"):
        fingerprint("stages.three", package, {})


def test_pins(tmp_path):
    lock = tmp_path / "requirements.lock"
    lock.write_text("# comment\ntorch==2.13.0\nHydra_core==1.3.8\nuvicorn[standard]==1.0 ; python_version>'3'\n")
    assert read_pins(lock) == {"torch": "2.13.0", "hydra-core": "1.3.8", "uvicorn": "1.0"}
