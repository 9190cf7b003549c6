"""Where the entries of a zip file lie, as torch.save writes them: uncompressed, one behind the other."""

import itertools
import threading
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from stages.checkpoints.files.tensors import Stored

_LOCAL, _END, _END_64 = b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06"
_LOCAL_SIZE, _END_SIZE, _ENDS_SIZE = 30, 22, 56 + 20 + 22
_AT_ONCE = 2**20  # bytes
MAX_DIRECTORY = 4 * 2**20  # 70 bytes a tensor; a longer one is made to exhaust memory


def is_zip(path: Path) -> bool:
    """Whether a file begins as a zip file does."""
    with path.open("rb") as file:
        return file.read(len(_LOCAL)) == _LOCAL


def zip_entries(path: Path) -> dict[str, Stored]:
    """Where the content of every entry lies.

    Raises:
        ValueError: The file is damaged, or an entry is compressed (torch.save compresses none, and a small compressed
            entry can hold terabytes), encrypted, there twice, or overlaps another.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        _check_end(file, size)
        try:
            directory = zipfile.ZipFile(file).infolist()
        except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, OSError) as error:
            raise ValueError(f"a damaged zip file: {error}") from error
        entries: dict[str, Stored] = {}
        for info in directory:
            if info.filename in entries:
                raise ValueError(f"{info.filename[:100]} is there twice")
            entries[info.filename] = _place(file, path, info)
    _check_apart(entries, size)
    return entries


def _check_end(file: BinaryIO, size: int) -> None:
    """Refuse a directory that is too long to be read, which its last bytes tell."""
    file.seek(max(0, size - _ENDS_SIZE))
    ends = file.read(_ENDS_SIZE)
    end = ends[-_END_SIZE:]
    if not end.startswith(_END):
        raise ValueError("a zip file without its end")
    length = int.from_bytes(end[12:16], "little")
    if ends.startswith(_END_64):
        length = int.from_bytes(ends[40:48], "little")
    if length > MAX_DIRECTORY:
        raise ValueError(f"a zip file with a directory of {length:,} bytes; {MAX_DIRECTORY:,} are read")


def _place(file: BinaryIO, path: Path, info: zipfile.ZipInfo) -> Stored:
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
        raise ValueError(f"{info.filename[:100]} is compressed or encrypted, which torch.save does not do")
    file.seek(max(info.header_offset, 0))
    header = file.read(_LOCAL_SIZE) if info.header_offset >= 0 else b""
    if len(header) < _LOCAL_SIZE or not header.startswith(_LOCAL):
        raise ValueError(f"{info.filename[:100]} is not where the directory of the zip file says")
    behind = sum(int.from_bytes(header[start : start + 2], "little") for start in (26, 28))
    offset = info.header_offset + _LOCAL_SIZE + behind
    # torch.save leaves the checksum 0 where it is told to compute none.
    checksum = _Crc32(path, offset, info) if info.CRC else None
    return Stored(path, offset, info.file_size, checksum)


class _Crc32:
    """The CRC-32 that a zip file says its entry has.

    It is of the whole entry, and tensors are read in pieces, by several threads: so the entry is read for it when the first
    piece is wanted, by one thread while the others wait, and the pieces then come from the system's cache.
    """

    def __init__(self, path: Path, offset: int, info: zipfile.ZipInfo) -> None:
        self._path, self._offset, self._info = path, offset, info
        self._looking = threading.Lock()
        self._is_right = False

    def check(self) -> None:
        with self._looking:
            if not self._is_right and self._found() != self._info.CRC:
                raise ValueError(
                    f"{self._path}: damaged: {self._info.filename[:100]} is not what its CRC-32 says; fetch the file again"
                )
            self._is_right = True

    def _found(self) -> int:
        crc, left = 0, self._info.file_size
        with self._path.open("rb") as file:
            file.seek(self._offset)
            while left and (content := file.read(min(_AT_ONCE, left))):
                crc, left = zlib.crc32(content, crc), left - len(content)
        return crc


def _check_apart(entries: dict[str, Stored], size: int) -> None:
    ordered = sorted((place.offset, place.offset + place.size, name) for name, place in entries.items())
    for (_, end, name), (start, _, _) in itertools.pairwise([*ordered, (size, size, "")]):
        if end > start:
            raise ValueError(f"{name[:100]} reaches beyond the file or into another entry")
