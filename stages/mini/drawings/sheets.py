"""Contact sheets of the evaluation, on which a person sees what the figures do not say."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SCALE = 2
FRAME = 3
MISSED = (220, 30, 30)


def write_sheet(
    images: NDArray[np.uint8], out: Path, columns: int = 20, right: Sequence[bool] | None = None, most: int = 200
) -> None:
    """Lay images out in rows, twice their size; those that are not `right` get a red frame."""
    images = images[:most]
    side = SCALE * images.shape[1] + 2 * FRAME
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * side, rows * side), "white")
    for index, pixels in enumerate(images):
        place = (index % columns * side, index // columns * side)
        if right is not None and not right[index]:
            sheet.paste(Image.new("RGB", (side, side), MISSED), place)
        picture = Image.fromarray(pixels).resize((SCALE * pixels.shape[1], SCALE * pixels.shape[0]), Image.Resampling.NEAREST)
        sheet.paste(picture, (place[0] + FRAME, place[1] + FRAME))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out)
