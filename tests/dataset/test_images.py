import struct
import zlib

import pytest
from PIL import Image

from stages.dataset.images import RefusedImageError, decode, list_images, pixel_digest, save_png
from tests.dataset.pictures import encoded, noise, save_noise


def decode_any(data: bytes, min_size: int = 1, max_pixels: int = 10**6) -> Image.Image:
    return decode(data, min_size, max_pixels)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF"])
def test_lossless_formats_keep_every_pixel(kind):
    settings = {"lossless": True} if kind == "WEBP" else {}
    image = decode_any(encoded(noise(1), kind, **settings))
    assert (image.mode, image.tobytes()) == ("RGB", noise(1).tobytes())


def test_transparency_is_laid_over_white():
    image = Image.new("RGBA", (3, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    image.putpixel((2, 0), (0, 0, 0, 127))
    assert [decode_any(encoded(image)).getpixel((x, 0)) for x in range(3)] == [(255, 0, 0), (255, 255, 255), (128, 128, 128)]


def test_palette_with_a_transparent_colour_is_laid_over_white():
    image = Image.new("P", (2, 1), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 0)
    opened = decode_any(encoded(image, "GIF", transparency=0))
    assert [opened.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (0, 0, 255)]


def test_exif_orientation_is_applied():
    image = noise(2, (6, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by a quarter
    assert decode_any(encoded(image, "PNG", exif=exif)).tobytes() == image.transpose(Image.Transpose.ROTATE_270).tobytes()


def test_first_frame_of_an_animation():
    frames = [noise(seed).quantize(4) for seed in range(2)]
    animation = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_any(animation).tobytes() == decode_any(encoded(frames[0], "GIF")).tobytes()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("kept", [0.2, 0.6, 0.95])
def test_a_cut_off_file_is_refused(kind, kept):
    data = encoded(noise(3, (64, 64)), kind)
    with pytest.raises(RefusedImageError, match="cannot be decoded"):
        decode_any(data[: int(len(data) * kept)])


def test_a_changed_byte_of_a_png_is_refused():
    data = bytearray(encoded(noise(4)))
    data[len(data) // 2] ^= 1
    with pytest.raises(RefusedImageError, match="cannot be decoded"):
        decode_any(bytes(data))


@pytest.mark.parametrize("data", [b"", b"<html>not found</html>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_raster_image_is_refused(data):
    with pytest.raises(RefusedImageError, match="none of AVIF"):
        decode_any(data)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing: what a decompression bomb looks like before it goes off."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [2_000, 10_000, 60_000])
def test_a_decompression_bomb_is_refused_without_decoding_or_warning(side, recwarn):
    with pytest.raises(RefusedImageError, match=r"max_pixels is 1000000|decompression bomb"):
        decode_any(png_header(side, side))
    assert not recwarn


def test_a_small_image_is_refused_by_its_shorter_side():
    with pytest.raises(RefusedImageError, match="is 20x16; min_size is 17"):
        decode_any(encoded(noise(0)), min_size=17)
    assert decode_any(encoded(noise(0)), min_size=16).size == (20, 16)


def test_sixteen_bits_a_channel_are_refused_not_clipped():
    with pytest.raises(RefusedImageError, match="8 bits"):
        decode_any(encoded(Image.new("I;16", (4, 4), 40_000)))


def test_equal_pictures_give_equal_bytes_whatever_file_they_came_in(tmp_path):
    plain, dressed = noise(5), noise(5)
    dressed.info.update(icc_profile=b"profile", dpi=(72, 72), comment=b"x", transparency=(1, 2, 3))
    save_png(plain, tmp_path / "plain.png")
    save_png(dressed, tmp_path / "dressed.png")
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "dressed.png").read_bytes()
    assert dressed.info["dpi"] == (72, 72)


def test_pixel_digest_tells_shape_and_pixels_apart():
    flat, tall = Image.new("RGB", (4, 2)), Image.new("RGB", (2, 4))
    changed = Image.new("RGB", (4, 2))
    changed.putpixel((0, 0), (0, 0, 1))
    assert len({pixel_digest(image) for image in (flat, tall, changed)}) == 3
    assert pixel_digest(flat) == pixel_digest(Image.new("RGB", (4, 2)))


def test_images_are_listed_by_path_without_hidden_and_foreign_files(tmp_path):
    save_noise(tmp_path, "b.png", "a/z.JPG", ".hidden.png", ".cache/c.png", "B.webp")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "folder.png").mkdir()
    assert [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)] == ["B.webp", "a/z.JPG", "b.png"]
