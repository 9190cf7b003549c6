"""Settings of every test: no hub, one thread a process, the longest first."""

import os

import pytest

pytest_plugins = ["tests.training.world"]

os.environ.setdefault("DVC_NO_ANALYTICS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


LONGEST = ("test_dag.py", "test_interruptions.py", "test_trainings_of_the_dag.py", "test_settings.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files: processes that share the tests then end together."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
