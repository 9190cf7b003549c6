"""Begin a preset for checkpoints and images of your own.

python -m stages.pipeline.preset mine    # writes conf/experiment/mine.yaml, with a comment on every line that wants a value
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from stages.pipeline.command import errors_in_one_line
from stages.pipeline.compose import CONF

TEMPLATE = Path(__file__).parent / "preset.yaml"


def begin(name: str, conf: Path = CONF) -> Path:
    """Write the preset `name`; the path of its file.

    Raises:
        ValueError: the name is none for a file, or there is a preset of that name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name) or yaml.safe_load(name) != name:
        raise ValueError(f"given {name!r}: a preset's name is a word of letters, digits, _ and -, as in make preset NAME=mine")
    path = conf / "experiment" / f"{name}.yaml"
    if path.exists():
        raise ValueError(f"{path} is there already: edit it, or take another name")
    path.write_text(TEMPLATE.read_text().replace("NAME", name))
    return path


def main(argv: Sequence[str]) -> None:
    """Write a preset and say what comes next."""
    if len(argv) != 1 or argv[0].startswith("-"):
        print(__doc__)
        raise SystemExit(0 if argv and argv[0] in ("-h", "--help") else 1)
    with errors_in_one_line("preset"):
        path = begin(argv[0])
    print(f"{path}: set what it asks for, then: make params EXPERIMENT={argv[0]} && make repro")


if __name__ == "__main__":
    main(sys.argv[1:])
