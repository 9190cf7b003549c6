import numpy as np
from PIL import Image

from stages.mini.drawings.sheets import write_sheet


def test_a_sheet_frames_what_is_wrong(tmp_path):
    images = np.zeros((3, 64, 64, 3), np.uint8)
    write_sheet(images, tmp_path / "sheets" / "a.png", columns=2, right=[True, False, True])
    sheet = Image.open(tmp_path / "sheets" / "a.png")
    assert sheet.size == (2 * 134, 2 * 134)
    assert sheet.getpixel((0, 0)) == (255, 255, 255)
    assert sheet.getpixel((134, 0)) == (220, 30, 30)
