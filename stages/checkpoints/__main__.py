"""Say what a checkpoint or a LoRA file is, and print its recipe: the sources with their hashes, the method, the weights."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.checkpoints.recipes import describe, recipes_of


def main(argv: Sequence[str] | None = None) -> None:
    """Print a file's recipe."""
    parser = argparse.ArgumentParser(prog="python -m stages.checkpoints", description=__doc__)
    parser.add_argument("file", type=Path, help=".safetensors, .ckpt, or a directory in the diffusers layout")
    parser.add_argument("--json", action="store_true", help="the recipes alone, as JSON: enough to make the file again")
    options = parser.parse_args(argv)
    try:
        text = describe(options.file)
        print(json.dumps(recipes_of(options.file), indent=2, sort_keys=True) if options.json else text)
    except (ValueError, OSError) as error:
        print(f"checkpoints: error: {error}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
