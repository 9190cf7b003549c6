"""The values that a pickle describes, without unpickling it.

A pickle is a program: its instructions name functions and call them. No unpickler runs here, not even a restricted one.
`pickletools.genops` (which only decodes) gives the instructions, and this module follows them on a stack of its own,
where nothing can be imported or called: a global is a name, a call of one of a few known names becomes plain data, a
call of a trainer's class becomes a `Leftover`, and every other name is refused. What a pickle can exhaust is bounded too:
the number of instructions, the bytes read, and the kinds of keys (hashing nested tuples takes exponential time).
"""

import io
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from stages.checkpoints.files.pickle_objects import Global, Leftover, Storage, call, is_number, is_storage, known_global

MAX_BYTES = 16 * 2**20
MAX_INSTRUCTIONS = 300_000  # 32 a tensor; a checkpoint of SDXL with its EMA has 140,000


_KEY_TYPES = (str, int, float, bytes, bool, type(None), Global, Leftover)


class Pickle(NamedTuple):
    """What a pickle describes.

    Attributes:
        value: Of plain data, `StoredTensor`s and `Leftover`s.
        size: How many bytes the pickle takes.
        kinds: The class of every storage it names, by key.
    """

    value: Any
    size: int
    kinds: Mapping[str, str]


def read_pickle(content: bytes) -> Pickle:
    """The values that a pickle describes.

    Tensors become `StoredTensor`s, other objects of known-harmless classes `Leftover`s.

    Args:
        content: Begins with the pickle; what follows it is not looked at.

    Raises:
        ValueError: It is damaged, names a global that is not known to be harmless, or is made to exhaust the machine.
    """
    stream = io.BytesIO(content)
    machine = _Machine()
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if number >= MAX_INSTRUCTIONS:
                raise ValueError(f"more than {MAX_INSTRUCTIONS:,} pickle instructions")
            machine.follow(opcode.name, argument)
        return Pickle(machine.stack.pop(), stream.tell(), machine.kinds)
    except (IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the pickle is damaged ({type(error).__name__})") from error


class _Machine:
    """A pickle's stack and memo, with plain data on them."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.kinds: dict[str, str] = {}

    def follow(self, name: str, argument: Any) -> None:
        """Follow one instruction."""
        if name in _CONSTANTS:
            self.stack.append(argument)
        elif name in _STORES:
            self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
        elif name in _LOADS:
            self.stack.append(self.memo[argument])
        elif name in _INSTRUCTIONS:
            _INSTRUCTIONS[name](self, argument)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"it has the pickle instruction {name}, which no checkpoint needs")

    def mark(self) -> None:
        """Begin a new stack on top of this one."""
        self.below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        """End the topmost stack; gives what was on it."""
        values, self.stack = self.stack, self.below.pop()
        return values

    def pop(self, count: int) -> list[Any]:
        """Take the topmost values off the stack, the lowest first."""
        if len(self.stack) < count:
            raise IndexError
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def extend(self, items: list[Any]) -> None:
        """Append to the list on top of the stack."""
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Leftover):
            raise TypeError

    def update(self, items: list[Any]) -> None:
        """Set the keys and values, which alternate, in the dictionary on top of the stack."""
        target = self.stack[-1]
        if isinstance(target, dict):
            _set_items(target, items)
        elif not isinstance(target, Leftover):
            raise TypeError


def _set_items(target: dict[Any, Any], items: list[Any]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, _KEY_TYPES) or (isinstance(key, int) and key.bit_length() > 64):
            raise ValueError(f"a dictionary has a {type(key).__name__} as key, which no checkpoint needs")
        if key in target:
            raise ValueError(f"{str(key)[:100]} is there twice")
        target[key] = value


def _persistent(machine: _Machine, _: Any) -> None:
    """A reference to a storage: ("storage", class, key, device, length), and in torch's old format a view of another."""
    kind, storage, key, _device, length, *view = machine.stack.pop()
    if kind != "storage" or not isinstance(storage, Global) or not is_storage(storage.name):
        raise TypeError
    if not isinstance(key, str) and not is_number(key):
        raise TypeError
    start = 0
    if view and view[0] is not None:
        _, start, length = view[0]
    if not is_number(length) or not is_number(start):
        raise TypeError
    machine.kinds[str(key)] = storage.name.rpartition(".")[2]
    machine.stack.append(Storage(machine.kinds[str(key)], str(key), length, start))


def _reduce(machine: _Machine, _: Any) -> None:
    machine.stack.append(call(*machine.pop(2)))


def _new_with_keywords(machine: _Machine, _: Any) -> None:
    function, arguments, _keywords = machine.pop(3)
    machine.stack.append(call(function, arguments))


def _instance(machine: _Machine, _: Any) -> None:
    function, *arguments = machine.since_mark()
    machine.stack.append(call(function, tuple(arguments)))


def _named_instance(machine: _Machine, argument: str) -> None:
    arguments = tuple(machine.since_mark())
    machine.stack.append(call(known_global(argument.replace(" ", ".", 1)), arguments))


def _stack_global(machine: _Machine, _: Any) -> None:
    module, name = machine.pop(2)
    machine.stack.append(known_global(f"{module}.{name}"))


def _build(machine: _Machine, _: Any) -> None:
    """State of an object. That of a state_dict is its `_metadata`, versions of modules; that of a `Leftover` is dropped."""
    machine.pop(1)
    if not isinstance(machine.stack[-1], Leftover | dict):
        raise TypeError


def _push(values: Callable[[_Machine], Any]) -> Callable[[_Machine, Any], None]:
    def follow(machine: _Machine, _: Any) -> None:
        value = values(machine)  # first, because it may end the topmost stack
        machine.stack.append(value)

    return follow


def _dict(machine: _Machine) -> dict[Any, Any]:
    values: dict[Any, Any] = {}
    _set_items(values, machine.since_mark())
    return values


_INSTRUCTIONS: Mapping[str, Callable[[_Machine, Any], Any]] = {
    "NONE": _push(lambda machine: None),
    "NEWTRUE": _push(lambda machine: True),
    "NEWFALSE": _push(lambda machine: False),
    "EMPTY_LIST": _push(lambda machine: []),
    "EMPTY_DICT": _push(lambda machine: {}),
    "EMPTY_TUPLE": _push(lambda machine: ()),
    "EMPTY_SET": _push(lambda machine: Leftover()),
    "LIST": _push(lambda machine: machine.since_mark()),
    "TUPLE": _push(lambda machine: tuple(machine.since_mark())),
    "TUPLE1": _push(lambda machine: tuple(machine.pop(1))),
    "TUPLE2": _push(lambda machine: tuple(machine.pop(2))),
    "TUPLE3": _push(lambda machine: tuple(machine.pop(3))),
    "DICT": _push(_dict),
    "FROZENSET": _push(lambda machine: (machine.since_mark(), Leftover())[1]),
    "DUP": _push(lambda machine: machine.stack[-1]),
    "MARK": lambda machine, _: machine.mark(),
    "POP": lambda machine, _: machine.pop(1),
    "POP_MARK": lambda machine, _: machine.since_mark(),
    "APPEND": lambda machine, _: machine.extend(machine.pop(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.since_mark()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.update(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.update(machine.since_mark()),
    "GLOBAL": lambda machine, argument: machine.stack.append(known_global(argument.replace(" ", ".", 1))),
    "STACK_GLOBAL": _stack_global,
    "BINPERSID": _persistent,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _new_with_keywords,
    "OBJ": _instance,
    "INST": _named_instance,
    "BUILD": _build,
}
_CONSTANTS = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    }
)
_STORES = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_LOADS = frozenset({"GET", "BINGET", "LONG_BINGET"})
