"""Say what a checkpoint or a LoRA file is and print its recipe, or make the weights of a merge again from their recipe.

The recipe is in the file's metadata: the sources with their hashes, the method, the weights.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from stages.checkpoints.recipes import describe, recipes_of
from stages.pipeline.command import errors_in_one_line


def main(argv: Sequence[str] | None = None) -> None:
    """Print a file's recipe, or follow it."""
    parser = argparse.ArgumentParser(prog="python -m stages.checkpoints", description=__doc__)
    parser.add_argument("file", type=Path, help=".safetensors, .ckpt, or a directory in the diffusers layout")
    parser.add_argument("--json", action="store_true", help="the recipes alone, as JSON")
    parser.add_argument(
        "--remake",
        type=Path,
        metavar="OUT",
        help="make the weights of a merge again: OUT gets the same bytes, or is not written",
    )
    parser.add_argument(
        "--sources",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="for --remake: files of the originals, and directories with them",
    )
    options = parser.parse_args(argv)
    if (options.remake is None) != (options.sources is None):
        parser.error("--remake and --sources go together: the file to write, and where its originals are")
    with errors_in_one_line("checkpoints"):
        if options.remake:
            _remake(options.file, options.remake, options.sources)
            return
        text = describe(options.file)
        print(json.dumps(recipes_of(options.file), indent=2, sort_keys=True) if options.json else text)


def _remake(file: Path, out: Path, places: Sequence[Path]) -> None:
    from stages.checkpoints.merging.remaking import remake

    for theta, path in remake(file, out, places).items():
        print(f"{theta}: {path}")
    print(f"{out}: the same bytes as {file}")


if __name__ == "__main__":
    main()
