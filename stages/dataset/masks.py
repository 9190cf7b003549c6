"""Masks: pictures that are white where an image shows the subject, in a folder of their own or beside the images.

A mask bears its image's name, with any suffix of a picture (kohya's sd-scripts, `conditioning_data_dir`), and may have
`-masklabel` behind it (OneTrainer), by which it can lie in the folder of the images.
"""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from stages.dataset.file_paths import say
from stages.dataset.folders import list_images, visible_files

LABEL = "-masklabel"


def without_masks(images: Mapping[str, Path], masks: Path) -> dict[str, Path]:
    """Those of the images of a folder that are no masks, by their paths in it; `masks` may be that folder, or lie in it."""
    folder = masks.resolve()
    inside = {name: path for name, path in images.items() if path.resolve().is_relative_to(folder)}
    if len(inside) == len(images):
        return {name: path for name, path in images.items() if not PurePosixPath(name).stem.endswith(LABEL)}
    return {name: path for name, path in images.items() if name not in inside}


def find_masks(images: Mapping[str, Path], masks: Path) -> dict[str, Path]:
    """The masks in a folder, by the paths of their images in the folder of these; prints how many there are.

    Raises:
        ValueError: none of them bears an image's name.
    """
    own = {path.resolve() for path in images.values()}
    pictures = {name: path for name, path in list_images(visible_files(masks)).items() if path.resolve() not in own}
    by_stem = {_stem(name).removesuffix(LABEL): name for name in pictures}
    found = {name: by_stem[_stem(name)] for name in images if _stem(name) in by_stem}
    if not found:
        example = next(iter(images), "a.png")
        raise ValueError(f"download.source.masks: {masks} holds no mask of an image: that of {example} is called {example}")
    say(sorted(pictures.keys() - found.values()), "masks that bear no image's name are not used")
    say([name for name in images if name not in found], "images without a mask, of which all counts")
    return {name: pictures[mask] for name, mask in found.items()}


def _stem(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()
