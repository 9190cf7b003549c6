"""The command line that every stage shares: options from the stage's signature, parameters from params.yaml."""

import argparse
import dataclasses
import gc
import inspect
import itertools
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.pipeline.config import load_params
from stages.pipeline.device_errors import explain_device_error
from stages.pipeline.interruption import Interrupted, handled
from stages.pipeline.outputs import check_room, checkpoints_folder
from stages.pipeline.progress import complain
from stages.pipeline.timing import timed

_BRACES = re.compile(r"\{([\w-]+)\}")


def run(stage: Callable[..., None], argv: Sequence[str] | None = None) -> None:
    """Run a stage from the command line.

    Each parameter of `stage` that is annotated with a dataclass is loaded from params.yaml (`config` from the section named
    as the stage's file, any other from the section of its own name); every other parameter becomes an option. `{rank}` in
    the value of an option is the value of --rank, see `fill_in`.
    A `ValueError`, an `OSError` or what a GPU cannot do ends the process with one line and status 1, Ctrl-C or a scheduler's
    signal with one line and 128 and the signal's number; set PIPELINE_TRACEBACK=1 to see where it arose. So does a disk that is
    as good as full, before the stage and after it: if DVC took note of it then, half a dvc.lock would be left.
    """
    gc.set_threshold(50_000, 20, 20)  # the imports of a stage make millions of objects: a second of needless collecting
    name = Path(inspect.getfile(stage)).stem
    parser = _parser(stage, name)
    try:
        options = parser.parse_args(fill_in(sys.argv[1:] if argv is None else argv, option_names(stage)))
        with handled():
            check_room()
            configs = {
                parameter: load_params(name if parameter == "config" else parameter, schema)
                for parameter, schema in config_schemas(stage).items()
            }
            with timed(os.environ.get("DVC_STAGE"), checkpoints_folder()):
                stage(**configs, **vars(options))
            check_room()
    except (ValueError, OSError, RuntimeError, Interrupted) as error:
        text = _one_line(name, error)
        if text is None or os.environ.get("PIPELINE_TRACEBACK"):
            raise
        interrupted = isinstance(error, Interrupted)
        kind, status = ("interrupted", 128 + error.signal_number) if interrupted else ("error", 1)
        for line in text.splitlines() or [""]:
            complain(f"{name}: {kind}: {line}" if line else f"{name}: {kind}")
        raise SystemExit(status) from error


@contextmanager
def errors_in_one_line(program: str) -> Iterator[None]:
    """For a program that is no stage: let an error that is the user's to mend end it with one line and status 1."""
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        text = _one_line(program, error)
        if text is None:
            raise
        print(f"{program}: error: {text}", file=sys.stderr)
        raise SystemExit(1) from error


def _one_line(program: str, error: BaseException) -> str | None:
    """What is said of an error; None for those that are faults of the program, whose place must be seen."""
    if isinstance(error, RuntimeError) and not isinstance(error, Interrupted):
        return explain_device_error(program, error)
    return str(error)


def config_schemas(stage: Callable[..., None]) -> dict[str, Any]:
    """The parameters of a stage that are configs, with their dataclasses."""
    hints = typing.get_type_hints(stage)
    return {parameter: hint for parameter, hint in hints.items() if dataclasses.is_dataclass(hint)}


def option_names(stage: Callable[..., None]) -> list[str]:
    """The parameters of a stage that are options."""
    return [name for name in inspect.signature(stage).parameters if name not in config_schemas(stage)]


def fill_in(argv: Sequence[str], known: Collection[str]) -> list[str]:
    """Put the values of options in the place of their names in braces: `--out a{alpha} --alpha 1` is `--out a1 --alpha 1`.

    So dvc.yaml has the shell see the values of a sweep once, where DVC quotes them.

    Args:
        argv: options with their values.
        known: the stage's own options; any other that fills something in is left out.

    Raises:
        ValueError: a value that is filled in is no part of a file name.
    """
    values = {option[2:]: value for option, value in itertools.pairwise(argv) if option.startswith("--")}
    used = {name for word in argv for name in _BRACES.findall(word) if name in values}
    for name in sorted(used):
        if "/" in values[name]:
            raise ValueError(f"--{name}: given {values[name]!r}: it is part of a file's name, which has no slash in it")
    foreign = {f"--{name}" for name in used if name.replace("-", "_") not in known}
    kept = [word for before, word in itertools.pairwise(("", *argv)) if word not in foreign and before not in foreign]
    return [_BRACES.sub(lambda match: values.get(match[1], match[0]), word) for word in kept]


def option_helps(stage: Callable[..., None]) -> dict[str, str]:
    """What the section Args of a stage's docstring says of each of its parameters."""
    _, _, arguments = (inspect.getdoc(stage) or "").partition("\nArgs:\n")
    found = re.findall(r"^ {4}(\w+): (.+(?:\n {6,}.+)*)", arguments, flags=re.MULTILINE)
    return {parameter: " ".join(text.split()) for parameter, text in found}


def _parser(stage: Callable[..., None], name: str) -> argparse.ArgumentParser:
    """Build the options from the signature of the stage; its module's docstring is the help."""
    parser = argparse.ArgumentParser(
        prog=f"python -m stages.{name}",
        description=inspect.getdoc(inspect.getmodule(stage)),
        epilog=f"Parameters come from the section `{name}` of params.yaml.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    hints, helps = typing.get_type_hints(stage), option_helps(stage)
    for parameter in inspect.signature(stage).parameters.values():
        hint = hints[parameter.name]
        if dataclasses.is_dataclass(hint):
            continue
        if isinstance(hint, types.UnionType):
            hint = next(option for option in typing.get_args(hint) if option is not types.NoneType)
        required = parameter.default is inspect.Parameter.empty
        parser.add_argument(
            f"--{parameter.name.replace('_', '-')}",
            type=hint,
            required=required,
            default=None if required else parameter.default,
            metavar=getattr(hint, "__name__", str(hint)).upper(),
            help=helps.get(parameter.name, "").replace("%", "%%"),
        )
    return parser
