"""Aspect-ratio buckets: a few sizes of about the same area, so that images of mixed shapes need hardly be cropped.

The idea is NovelAI's (https://blog.novelai.net/novelai-improvements-on-stable-diffusion-e10d38db82ac, "Aspect Ratio
Bucketing", 2022). Imports no torch.
"""

import math
from collections.abc import Sequence

Size = tuple[int, int]
"""Width and height in pixels."""


def bucket_sizes(resolution: int, step: int, max_aspect_ratio: float) -> list[Size]:
    """The largest sizes whose sides are multiples of `step`, whose area is at most resolution x resolution.

    Args:
        resolution: pixels of a side of the square, which is one of them.
        step: pixels.
        max_aspect_ratio: of the longer side to the shorter one; 1 leaves the square alone.

    Raises:
        ValueError: the square's side is no multiple of `step`.
    """
    if max_aspect_ratio == 1:
        return [(resolution, resolution)]
    if resolution % step:
        raise ValueError(f"resolution: given {resolution}: must be a multiple of {step}, as all sides of buckets are")
    widths = range(step, int(resolution * math.sqrt(max_aspect_ratio)) + 1, step)
    wide = [(width, resolution**2 // width // step * step) for width in widths if width >= resolution]
    allowed = [(width, height) for width, height in wide if height > 0 and width <= max_aspect_ratio * height]
    return sorted({size for width, height in allowed for size in ((width, height), (height, width))})


def nearest_bucket(image: Size, sizes: Sequence[Size]) -> Size:
    """The size whose aspect ratio is next to the image's; the larger one of two that are equally near."""

    def distance(size: Size) -> tuple[float, int]:
        return abs(math.log(size[0] * image[1] / (size[1] * image[0]))), -size[0] * size[1]

    return min(sizes, key=distance)


def cover(image: Size, size: Size) -> Size:
    """What an image is resized to, its shape kept, so that it covers a size and can be cropped to it."""
    (width, height), (target_width, target_height) = image, size
    if target_width * height >= target_height * width:
        return target_width, max(target_height, int(target_width * height / width))
    return max(target_width, int(target_height * width / height)), target_height
