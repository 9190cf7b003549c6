"""Finding weights by the digest that a recipe names them by."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from stages.checkpoints.files.tensors import sha256
from stages.checkpoints.files.weight_files import FILE_SUFFIXES, WEIGHT_FILES, open_weights

_INDICES = tuple(name for name in WEIGHT_FILES if name.endswith(".json"))


def weights_digest(file: Path, shards: Sequence[Path] = ()) -> str:
    """The sha256 of a file of weights; of shards, that of what `sha256sum` prints for them in order."""
    if not shards:
        return sha256(file)
    lines = [f"{sha256(shard)}  {shard.name}\n" for shard in shards]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def find_by_digest(names: Mapping[str, str], places: Sequence[Path]) -> dict[str, Path]:
    """The files of weights, or indices of shards, that have certain digests.

    Args:
        names: What the files are probably called, by digest: such files are looked at first, to hash few.
        places: Files, and directories that are searched with all that is below them.

    Returns:
        Those that were found, by digest.

    Raises:
        ValueError: A place is not there.
    """
    likely = {Path(name).name for name in names.values()}
    candidates = sorted((file for place in places for file in _candidates(place)), key=lambda file: file.name not in likely)
    found: dict[str, Path] = {}
    for file in candidates:
        if found.keys() == names.keys():
            break
        digest = _digest(file)
        if digest is not None and digest in names:
            found.setdefault(digest, file)
    return found


def _candidates(place: Path) -> Collection[Path]:
    if not place.exists():
        raise ValueError(f"{place}: no such file or directory")
    return [place] if place.is_file() else sorted(_weights_below(place))


def _weights_below(folder: Path) -> Iterator[Path]:
    for file in folder.rglob("*"):
        if file.is_file() and (file.suffix in FILE_SUFFIXES or file.name in _INDICES):
            yield file


def _digest(file: Path) -> str | None:
    """The digest of a file of weights; None of an index whose shards are not all there."""
    if file.name not in _INDICES:
        return sha256(file)
    try:
        return weights_digest(file, open_weights(file).shards)
    except ValueError:
        return None
