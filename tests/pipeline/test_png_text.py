from PIL import Image

from stages.pipeline.png_text import read_png_text, write_png


def test_png_keeps_text_and_bytes(tmp_path):
    text = {"prompt": "ein Mädchen, 赤い髪", "seed": "3"}
    for name in ("one.png", "two.png"):
        write_png(Image.new("RGB", (4, 4), (1, 2, 3)), tmp_path / name, text)
    assert read_png_text(tmp_path / "one.png") == text
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
