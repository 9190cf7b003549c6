import numpy as np
import torch

from stages.mini.drawings.defects import with_defects
from stages.mini.drawings.pixels import to_tensor


def test_defects_keep_the_range_change_the_picture_and_follow_the_seed():
    clean = to_tensor(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8))
    torch.manual_seed(3)
    once = with_defects(clean)
    torch.manual_seed(3)
    again = with_defects(clean)
    assert torch.equal(once, again)
    assert once.shape == clean.shape
    assert once.abs().max() <= 1
    assert not torch.equal(once, clean)
