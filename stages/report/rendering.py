"""Templates of the report, and how numbers and pictures are written in them."""

import base64
import io
from pathlib import Path

import jinja2
from PIL import Image

from stages.measures.statistics import Interval
from stages.report.findings import number, signed

PAGE_IMAGE_SIZE = 256
"""Pixels of the longest side of a picture in the page; a larger one is reduced and compressed with some loss."""


def template(name: str) -> jinja2.Template:
    """A template of this folder, which escapes every text that is put into it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"data_uri": data_uri, "signed": signed, "number": number, "bounds": bounds}
    return environment.get_template(name)


def data_uri(path: Path) -> str:
    """A picture as a data URI: the file as it is, or a smaller WebP where it is larger than a page needs."""
    with Image.open(path) as image:
        if image.format == "PNG" and max(image.size) <= PAGE_IMAGE_SIZE:
            return _data_uri("image/png", path.read_bytes())
        picture = image.convert("RGB")
    picture.thumbnail((PAGE_IMAGE_SIZE, PAGE_IMAGE_SIZE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=88, method=4)
    return _data_uri("image/webp", buffer.getvalue())


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def bounds(value: Interval) -> str:
    """The bounds of a confidence interval in words; empty where there is one unit only."""
    if value.low is None or value.high is None:
        return ""
    return f"{number(value.low)} to {number(value.high)}"
