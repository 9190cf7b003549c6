"""The report does without torch: it is made in seconds, where `import torch` alone costs two."""

import subprocess
import sys
from pathlib import Path

import pytest

from stages.pipeline.fingerprints import import_closure

ROOT = Path(__file__).parents[2]
MODULES = ["stages.compare", *sorted(f"stages.report.{file.stem}" for file in (ROOT / "stages" / "report").glob("[a-z]*.py"))]
SLOW = {"torch", "diffusers", "transformers", "peft", "accelerate"}


def test_importing_the_report_imports_no_torch():
    program = f"import sys, {', '.join(MODULES)}; print(*({SLOW} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("module", MODULES)
def test_nothing_that_the_report_imports_later_brings_torch(module):
    """Imports inside functions too, in whatever modules of ours it reaches."""
    modules, distributions = import_closure(module, ROOT)
    assert module in modules
    assert not distributions & SLOW
