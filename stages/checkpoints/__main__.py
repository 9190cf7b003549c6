"""Say what a checkpoint or a LoRA file is, and print its recipe: the sources with their hashes, the method, the weights."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from stages.checkpoints.recipes import describe, recipes_of
from stages.pipeline.command import errors_in_one_line


def main(argv: Sequence[str] | None = None) -> None:
    """Print a file's recipe."""
    parser = argparse.ArgumentParser(prog="python -m stages.checkpoints", description=__doc__)
    parser.add_argument("file", type=Path, help=".safetensors, .ckpt, or a directory in the diffusers layout")
    parser.add_argument("--json", action="store_true", help="the recipes alone, as JSON: enough to make the file again")
    options = parser.parse_args(argv)
    with errors_in_one_line("checkpoints"):
        text = describe(options.file)
        print(json.dumps(recipes_of(options.file), indent=2, sort_keys=True) if options.json else text)


if __name__ == "__main__":
    main()
