"""Which globals a pickle may name, and the plain data that takes the place of calling them.

A name that is in no list here is refused.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

_MAX_ARGUMENTS = 8
_MOST_BITS = 63


@dataclass(frozen=True)
class Global:
    """The name of a class or a function, and nothing else."""

    name: str


class Leftover:
    """What a trainer pickled beside the weights; it takes whatever it is given and holds nothing."""


class Storage(NamedTuple):
    """The numbers that tensors share.

    Attributes:
        kind: torch's class, such as "HalfStorage", or for dtypes that have no class of their own the dtype's name.
        key: Its name within the file.
        length: How many numbers.
        start: Index of the first of them within the file's storage of that name.
    """

    kind: str
    key: str
    length: int
    start: int


class StoredTensor(NamedTuple):
    """A tensor by its place in a storage: offset and strides count numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


# Classes that trainers pickle beside the weights, by the first part of their name, and globals that such objects need.
_HARMLESS_PACKAGES = frozenset({"pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities", "omegaconf"})
_HARMLESS = frozenset(
    {
        *(f"builtins.{name}" for name in ("dict", "list", "set", "frozenset", "tuple", "int", "float", "bool", "str", "bytes")),
        *(f"builtins.{name}" for name in ("bytearray", "complex", "slice", "range", "object")),
        *(f"numpy{core}.multiarray.{name}" for core in (".core", "._core") for name in ("scalar", "_reconstruct")),
        *(f"numpy.{name}" for name in ("dtype", "ndarray", "float16", "float32", "float64", "int32", "int64", "bool_")),
        *(
            f"torch.{name}"
            for name in (
                "device",
                "float16",
                "bfloat16",
                "float32",
                "float64",
                "int8",
                "int16",
                "int32",
                "int64",
                "uint8",
                "bool",
            )
        ),
        *(f"torch.uint{bits}" for bits in (16, 32, 64)),
        *(f"torch.float8_{kind}" for kind in ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz", "e8m0fnu")),
        "torch.float4_e2m1fn_x2",
        "_codecs.encode",
        "argparse.Namespace",
        "collections.Counter",
        "collections.defaultdict",
        "copyreg._reconstructor",
        "datetime.datetime",
        "datetime.timedelta",
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.PurePosixPath",
        "pathlib.WindowsPath",
        "torch.optim.lr_scheduler.LambdaLR",
        "typing.Any",
    }
)
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}


def known_global(name: str) -> Global:
    """A global by its name; `ValueError` if it is not known to be harmless."""
    module, _, rest = name.partition(".")
    name = f"{_PYTHON_2.get(module, module)}.{rest}"
    known = name in _CALLS or name in _HARMLESS or module in _HARMLESS_PACKAGES or is_storage(name)
    if not known:
        raise ValueError(f"refused: it names {name[:100]}, which could run code; nothing was run")
    return Global(name)


def is_storage(name: str) -> bool:
    """Whether it is one of torch's classes of storages."""
    module, _, kind = name.rpartition(".")
    return module in ("torch", "torch.storage") and kind.endswith("Storage") and kind.isidentifier()


def call(function: Any, arguments: Any) -> Any:
    """The plain data in place of a call in a pickle. All that is ever called are the functions of this module in `_CALLS`."""
    if not isinstance(function, Global) or not isinstance(arguments, tuple | Leftover):
        raise TypeError
    build = _CALLS.get(function.name)
    if build is None or isinstance(arguments, Leftover):
        return Leftover()
    if len(arguments) > _MAX_ARGUMENTS:
        raise TypeError
    return build(*arguments)


def _tensor(storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_rest: Any) -> StoredTensor:
    if not isinstance(storage, Storage) or not len(shape) == len(strides) <= _MAX_ARGUMENTS:
        raise TypeError
    if not all(is_number(number) for number in (offset, *shape, *strides)):
        raise TypeError
    return StoredTensor(storage, offset, shape, strides)


def _tensor_of_dtype(
    storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *more: Any
) -> StoredTensor:
    """A tensor of a dtype that has no class of storage; each of those that are read takes one byte, as the storage counts."""
    _grad, _hooks, dtype, *_ = more
    if not isinstance(dtype, Global) or not isinstance(storage, Storage):
        raise TypeError
    return _tensor(storage._replace(kind=dtype.name.removeprefix("torch.")), offset, shape, strides)


def is_number(value: Any) -> bool:
    """Whether it is a whole number that a size or a place in a file can be."""
    return isinstance(value, int) and value.bit_length() < _MOST_BITS


def _parameter(tensor: Any, *_rest: Any) -> Any:
    return tensor


def _ordered_dict() -> dict[Any, Any]:
    return {}


def _size(values: tuple[int, ...]) -> tuple[int, ...]:
    return values


_CALLS: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _size,
}
