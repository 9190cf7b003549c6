import argparse

import pytest

from stages.mini.evaluation.evaluate import SECTIONS, _sections
from stages.mini.evaluation.targets import PIXEL_ART_TARGETS, TARGETS


def test_every_target_belongs_to_a_section():
    assert {target.section for target in TARGETS + PIXEL_ART_TARGETS} <= set(SECTIONS)
    assert _sections("vae,loras") == ["vae", "loras"]
    with pytest.raises(argparse.ArgumentTypeError, match="known are"):
        _sections("vae,sound")
