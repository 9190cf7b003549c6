"""Files that are made to do harm: each with what the refusal must say. Nothing here needs torch."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

MARKER = "RAN"  # what a file that is executed leaves in the working directory

Writer = Callable[[Path], object]


class Runs:
    """Pickles as a call."""

    def __init__(self, function: Callable, *arguments: object):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def executing(protocol: int = 2) -> bytes:
    import os

    return pickle.dumps({"state_dict": {"a": Runs(os.system, f"touch {MARKER}")}}, protocol)


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int, stop: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def zipped(content: bytes, storages: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        for key, numbers in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", numbers)
    return file.getvalue()


def tensor(shape: str, strides: str, length: int = 4, key: str = "0", offset: int = 0) -> bytes:
    """Pickle of {"a": a tensor}, in the text of protocol 0 where that is shorter."""
    storage = f"(Vstorage\nctorch\nFloatStorage\nV{key}\nVcpu\nI{length}\nt"
    return (
        f"(dVa\nctorch._utils\n_rebuild_tensor_v2\n({storage}".encode()
        + b"Q"
        + f"I{offset}\n{shape}{strides}I00\nNtRs.".encode()
    )


def legacy(content: bytes, keys: object, data: bytes) -> bytes:
    machine = {"little_endian": True, "protocol_version": 1001, "type_sizes": {}}
    preamble = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, machine)]
    return b"".join([*preamble, content, pickle.dumps(keys, 2), data])


def tuple_bomb() -> bytes:
    """A dictionary whose key is a tuple of tuples of tuples …: its hash takes 2^60 steps."""
    return b"(d)" + b"".join(b"2\x86" for _ in range(60)) + b"Ns."


def doubled() -> list:
    """A list that holds the same list twice, which holds the same list twice …: as text it is without end."""
    values: list = []
    for _ in range(60):
        values = [values, values]
    return values


def copies() -> bytes:
    """One long list, copied by a call as often as there is room."""
    return b"(l" + b"Na" * 100_000 + b"q\x000" + b"ccollections\nOrderedDict\nh\x00\x85R0" * 20_000 + b"N."


def sparse(start: bytes, size: int, end: bytes = b"") -> Writer:
    def write(path: Path) -> None:
        with path.open("wb") as file:
            file.write(start)
            file.truncate(size - len(end))
            file.seek(0, io.SEEK_END)
            file.write(end)

    return write


def overlapping_zip() -> bytes:
    content = bytearray(zipped(tensor("(I4\nt", "(I1\nt"), {"0": bytes(16), "1": bytes(16)}))
    first, second = content.find(b"archive/data/0"), content.find(b"archive/data/1")
    directory = content.rfind(b"archive/data/1") - 46
    content[directory + 42 : directory + 46] = struct.pack("<I", first - 30)
    assert second > first
    return bytes(content)


def before_the_file() -> bytes:
    """Its directory lies earlier than it says, so that the first entry seems to begin before the file does."""
    content = bytearray(zipped(tensor("(I4\nt", "(I1\nt"), {"0": bytes(16)}))
    content[-6:-2] = struct.pack("<I", int.from_bytes(content[-6:-2], "little") + 8)
    return bytes(content)


def duplicate_entry() -> bytes:
    return zipped(tensor("(I4\nt", "(I1\nt"), {"0": bytes(16), "1": bytes(16)}).replace(b"archive/data/1", b"archive/data/0")


def many(item: bytes, count: int, end: bytes = b"") -> Writer:
    """A header of so many items, in which %x is the number of each."""

    def write(path: Path) -> None:
        start, _, item_of = item.rpartition(b"{") if end else (b"", b"", item)
        text = b"{" + start + (b"{" if end else b"") + b",".join(item_of % number for number in range(count)) + end + b"}"
        path.write_bytes(safetensors(text))

    return write


NUMBERS = bytes(16)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 2132625894\n"
PAGE = b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html><head><title>Log in</title></head></html>"
TWICE = b'{"a": ' + json.dumps(entry(0, 4, [1])).encode() + b', "a": ' + json.dumps(entry(0, 4, [1])).encode() + b"}"
END = b"PK\x05\x06" + bytes(8) + struct.pack("<II", 0x40000000, 4) + bytes(2)

HOSTILE: dict[str, tuple[bytes | Writer, str]] = {
    "empty.safetensors": (b"", "truncated"),
    "short.safetensors": (b"\x00\x00", "truncated"),
    "truncated.safetensors": (safetensors({"a": entry(0, 16, [4])}, NUMBERS[:8]), "truncated"),
    "endless_header.safetensors": (safetensors({}, length=2**63), "longer than the file"),
    "large_header.safetensors": (sparse(struct.pack("<Q", 100_000_001) + b"{", 2**27), "longer than the 100,000,000"),
    "many_tensors.safetensors": (
        many(b'"%x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}', 350_000),
        "more than 1,000,000",
    ),
    "much_metadata.safetensors": (many(b'"__metadata__":{"%x":"\\""', 1_000_000, b"}"), "more than 1,000,000 names and values"),
    "line_break.safetensors": (safetensors({"a\nb": entry(0, 16, [4])}, NUMBERS), r"a key with characters .*: 'a\\nb'"),
    "metadata_list.safetensors": (safetensors({"__metadata__": ["a"]}), "not a safetensors file"),
    "metadata_numbers.safetensors": (safetensors({"__metadata__": {"a": 1}}), "not a safetensors file"),
    "lfs.safetensors": (LFS, "a pointer of Git LFS in place of the file: run `git lfs pull`"),
    "lfs.ckpt": (LFS, "a pointer of Git LFS"),
    "lfs.safetensors.index.json": (LFS, "a pointer of Git LFS"),
    "renamed.safetensors": (
        zipped(tensor("(I4\nt", "(I1\nt")),
        r"a \.ckpt under the name of another kind: rename it to renamed\.ckpt",
    ),
    "page.safetensors": (PAGE, "a web page in place of the file"),
    "page.bin": (PAGE, "a web page"),
    "page.safetensors.index.json": (PAGE, "a web page"),
    "answer.safetensors": (
        b'{"error":"Unauthorized","message":"The creator asks you to log in"}',
        "a text, not a checkpoint.*log in",
    ),
    "answer.ckpt": (b"Access to model owner/name is restricted", "a text, not a checkpoint.*is restricted"),
    "no_json.safetensors": (safetensors(b"{{{{"), "not a safetensors file"),
    "nested.safetensors": (safetensors(b'{"a":' + b"[" * 4_000_000), "not a safetensors file"),
    "objects.safetensors": (safetensors(b'{"a":[' + b"{}," * 2_000_000 + b"{}]}"), "not a safetensors file"),
    "overlap.safetensors": (safetensors({"a": entry(0, 16, [4]), "b": entry(8, 24, [4])}, bytes(24)), "not a safetensors file"),
    "hole.safetensors": (safetensors({"a": entry(0, 8, [2]), "b": entry(12, 16, [1])}, NUMBERS), "not a safetensors file"),
    "beyond.safetensors": (safetensors({"a": entry(0, 4000, [1000])}, NUMBERS), "not a safetensors file"),
    "negative.safetensors": (safetensors({"a": entry(0, 16, [-4])}, NUMBERS), "not a safetensors file"),
    "overflow.safetensors": (safetensors({"a": entry(0, 16, [2**62, 2**62])}, NUMBERS), "not a safetensors file"),
    "backwards.safetensors": (safetensors({"a": entry(16, 0, [4])}, NUMBERS), "not a safetensors file"),
    "twice.safetensors": (safetensors(TWICE, bytes(4)), "a is there twice"),
    "dtype.safetensors": (safetensors({"a": entry(0, 16, [4], "F77")}, NUMBERS), "F77"),
    "system.ckpt": (zipped(executing()), r"names posix\.system, which could run code; nothing was run"),
    "system_protocol_0.ckpt": (zipped(executing(0)), r"names posix\.system"),
    "system_protocol_4.ckpt": (zipped(executing(4)), r"names posix\.system"),
    "system_legacy.ckpt": (legacy(executing(), [], b""), r"names posix\.system"),
    "system_bare.ckpt": (executing(), r"names posix\.system"),
    "system_disguised.safetensors": (executing(), "longer than the file"),
    "imports.ckpt": (zipped(b"cantigravity\nfly\n."), r"names antigravity\.fly"),
    "imports_with_stack_global.ckpt": (zipped(b"\x80\x04\x8c\x04this\x8c\x01s\x93."), r"names this\.s"),
    "imports_with_inst.ckpt": (zipped(b"(Vx\nios\nsystem\n."), r"names os\.system"),
    "imports_in_metadata.ckpt": (zipped(b"(dV_metadata\nccode\nInteractiveConsole\n)Rs."), r"names code\.InteractiveConsole"),
    "getattr.ckpt": (zipped(b"cbuiltins\ngetattr\n."), r"names builtins\.getattr"),
    "dotted.ckpt": (zipped(b"\x80\x04\x8c\x05torch\x8c\x0eStorage.system\x93."), r"names torch\.Storage\.system"),
    "extension.ckpt": (zipped(b"\x82\x01."), "instruction EXT1"),
    "instructions.ckpt": (zipped(b"(l" + b"]" * 4_000_000 + b"."), "more than 300,000 pickle instructions"),
    "memo.ckpt": (zipped(b"Nr\xff\xff\xff\x7f."), "not a checkpoint"),
    "tuples.ckpt": (zipped(tuple_bomb()), "a tuple as key"),
    "copies.ckpt": (zipped(copies()), "damaged"),
    "key_bomb.ckpt": (zipped(b"(Vstorage\nctorch\nFloatStorage\nN" + b"2\x86" * 60 + b"Vcpu\nI4\ntQ."), "damaged"),
    "key_bomb_legacy.ckpt": (legacy(tensor("(I4\nt", "(I1\nt"), [doubled()], b""), "a storage is called by a list"),
    "holds_itself.ckpt": (zipped(b"}q\x00Vstate_dict\nh\x00s."), "its state_dict holds itself"),
    "hold_each_other.ckpt": (zipped(b"}q\x00Vstate_dict\n}q\x01s0h\x01Vstate_dict\nh\x00s."), "its state_dict holds itself"),
    "no_quotes.ckpt": (zipped(b"S" + b"x" * 100_000 + b"\n."), "not a checkpoint: no string quotes"),
    "entry_before_the_file.ckpt": (before_the_file(), "is not where the directory of the zip file says"),
    "long_number.ckpt": (zipped(tensor("(I4\nt", "(I1\nt", length=10**4000), {"0": NUMBERS}), "damaged"),
    "line_break.ckpt": (
        zipped(b"(dVa\\u000ab\nN" + tensor("(I4\nt", "(I1\nt")[5:-2] + b"ss."),
        "not a checkpoint|cannot be shown",
    ),
    "number.ckpt": (zipped(b"(d\x8b" + struct.pack("<I", 2**20) + b"\x7f" * 2**20 + b"Ns."), "int as key"),
    "long_string.ckpt": (zipped(b"X" + struct.pack("<I", 2**31 - 1) + b"x."), "not a checkpoint"),
    "long_pickle.ckpt": (zipped(b"N" * 20_000_000), "more than the 16,777,216"),
    "bomb.ckpt": (zipped(bytes(50_000_000), compression=zipfile.ZIP_DEFLATED), "compressed or encrypted"),
    "bomb_of_storages.ckpt": (zipped(tensor("(I4\nt", "(I1\nt"), {"0": bytes(9_000_000)}, zipfile.ZIP_DEFLATED), "compressed"),
    "directory.ckpt": (sparse(b"PK\x03\x04", 1_200_000_000, END), "a directory of 1,073,741,824 bytes"),
    "overlap.ckpt": (overlapping_zip(), "into another entry"),
    "entry_twice.ckpt": (duplicate_entry(), "data/0 is there twice"),
    "truncated.ckpt": (zipped(tensor("(I4\nt", "(I1\nt"), {"0": NUMBERS})[:-30], "truncated"),
    "key_twice.ckpt": (zipped(b"(dVa\nNsVa\nNs."), "a is there twice"),
    "negative.ckpt": (zipped(tensor("(I-4\nt", "(I1\nt"), {"0": NUMBERS}), "a: a negative size"),
    "negative_stride.ckpt": (zipped(tensor("(I4\nt", "(I-1\nt"), {"0": NUMBERS}), "a: a negative size"),
    "large.ckpt": (zipped(tensor("(I400\nt", "(I1\nt"), {"0": NUMBERS}), "does not fit in its storage"),
    "expanded.ckpt": (zipped(tensor("(I99999999\nI999\nt", "(I0\nI0\nt"), {"0": NUMBERS}), "does not fit in its storage"),
    "long_storage.ckpt": (zipped(tensor("(I4\nt", "(I1\nt", length=2**40), {"0": NUMBERS}), "does not fit in its storage"),
    "no_storage.ckpt": (zipped(tensor("(I4\nt", "(I1\nt", key="7"), {"0": NUMBERS}), "its storage 7 is not in the file"),
    "legacy_negative.ckpt": (
        legacy(tensor("(I4\nt", "(I1\nt"), ["0"], struct.pack("<q", -9) + NUMBERS),
        "which the file has no room for",
    ),
    "legacy_large.ckpt": (
        legacy(tensor("(I4\nt", "(I1\nt"), ["0"], struct.pack("<q", 2**40)),
        "which the file has no room for",
    ),
    "legacy_truncated.ckpt": (legacy(tensor("(I4\nt", "(I1\nt"), ["0"], b""), "truncated"),
    "shards.safetensors.index.json": (b'{"weight_map": {"a": "../outside.safetensors"}}', "without a folder"),
    "no_map.safetensors.index.json": (b'{"weight_map": [1]}', "no index of shards"),
}


def write_hostile(folder: Path) -> None:
    """Write all of them to a folder."""
    for name, (content, _) in HOSTILE.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            content(folder / name)
