import contextlib
import random
import struct
import zlib
from io import BytesIO

import pytest
from PIL import Image, PngImagePlugin
from PIL.PngImagePlugin import PngInfo

from stages.dataset.images import RefusedImageError, decode, looks_like_image, pixel_digest, save_png
from tests.dataset.pictures import encoded, noise


def decode_any(data: bytes, min_size: int = 1, max_pixels: int = 10**6) -> Image.Image:
    return decode(data, min_size, max_pixels)[0]


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


def exif(*tags: tuple[int, int, int, bytes]) -> bytes:
    """Big-endian EXIF of these tags: number, type, count and four bytes of value; as cameras and editors write them."""
    entries = b"".join(struct.pack(">HHI", *tag[:3]) + tag[3].ljust(4, b"\0") for tag in sorted(tags))
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, len(tags)) + entries + bytes(4)


TURNED = (0x0112, 3, 1, struct.pack(">H", 6))


@pytest.mark.parametrize(
    "tags",
    [
        [TURNED, (0x011A, 2, 3, b"72\0")],  # XResolution as text
        [TURNED, (0x010F, 3, 1, b"\0\7")],  # Make as a number
        [TURNED, (0x9205, 6, 1, b"\xff")],  # a negative byte
        [TURNED, (0x9999, 99, 1, b"1234")],  # a type that does not exist
        [(0x0112, 4, 1, struct.pack(">I", 6))],
        [(0x0112, 3, 2, struct.pack(">HH", 6, 6))],
        [(0x0112, 2, 2, b"6\0")],
        [(0x0112, 11, 1, struct.pack(">f", 6))],
        [(0x0112, 7, 4, b"\0\6\0\0")],
    ],
)
def test_orientation_is_applied_whatever_it_is_written_as_and_whatever_stands_beside_it(tags):
    image = Image.open(BytesIO(encoded(noise(2, (16, 8)), "JPEG")))
    turned = decode_any(encoded(noise(2, (16, 8)), "JPEG", exif=exif(*tags)))
    assert turned.tobytes() == image.transpose(Image.Transpose.ROTATE_270).tobytes()


@pytest.mark.parametrize(
    "raw",
    [
        exif((0x0112, 3, 1, struct.pack(">H", 9))),
        exif((0x0112, 11, 1, struct.pack(">f", float("nan")))),
        exif((0x0112, 2, 4, b"top\0")),
        b"Exif\0\0not a tiff header at all",
        b"Exif\0\0",
    ],
)
def test_an_orientation_that_cannot_be_read_is_upright(raw):
    image = Image.open(BytesIO(encoded(noise(2, (16, 8)), "JPEG")))
    assert decode_any(encoded(noise(2, (16, 8)), "JPEG", exif=raw)).tobytes() == image.tobytes()


@pytest.mark.parametrize("kind", ["text", "compressed text", "profile", "damaged text"])
def test_a_png_is_not_refused_for_its_text_and_stays_turned(kind):
    image, text, settings = noise(2, (16, 8)), PngInfo(), {}
    words = "masterpiece, best quality, 1girl, " * 70_000
    if kind == "profile":
        settings["icc_profile"] = bytes(2_000_000)
    else:
        text.add_itxt("workflow", words, zip=kind == "compressed text")
    turned = Image.Exif()
    turned[0x0112] = 6
    data = encoded(image, "PNG", pnginfo=text, exif=turned, **settings)
    if kind == "damaged text":
        data = data.replace(b"masterpiece", b"masterpeice", 1)  # its checksum is wrong now
    limits = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    assert decode_any(data).tobytes() == image.transpose(Image.Transpose.ROTATE_270).tobytes()
    assert limits == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


@pytest.mark.parametrize("kind", ["AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"])
def test_a_damaged_file_is_a_picture_or_refused_and_nothing_else(kind):
    draw = random.Random(0)
    whole = encoded(noise(3, (24, 16)), kind)
    for _ in range(40):
        data = bytearray(whole)
        for _ in range(draw.choice([1, 2, 20])):
            data[draw.randrange(len(data))] = draw.randrange(256)
        with contextlib.suppress(RefusedImageError):
            assert decode_any(bytes(data)).mode == "RGB"
        looks_like_image(bytes(data))


def test_cmyk_is_converted():
    assert decode_any(encoded(noise(0).convert("CMYK"), "JPEG")).size == (20, 16)


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
