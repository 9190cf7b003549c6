"""Write one code fingerprint for each program that makes the mini world: the first stage of data/mini/dvc.yaml.

Reads the lock file and the code of the programs. Writes <out>/<program> for stages.mini.….<program>. The stages that run a
program depend on its fingerprint, so that a comment reruns nothing and an edit of a module reruns the programs that import it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import stages
from stages.pipeline.command import errors_in_one_line
from stages.pipeline.fingerprints import fingerprint, import_closure, read_pins
from stages.pipeline.outputs import atomic_file


def write_fingerprints(programs: Sequence[str], lock: Path, out: Path) -> None:
    """Write the fingerprint of each program to a file of `out` that is named as the last part of the program's name.

    Args:
        programs: dotted names of modules, "stages.mini.training.train_vae".
        lock: pip's lock file, whose versions of the imported distributions are part of a fingerprint.
        out: the folder of the fingerprints.

    Raises:
        ValueError: there is no such module.
    """
    root = Path(stages.__path__[0]).parent
    pins = read_pins(lock)
    for program in programs:
        if program not in import_closure(program, root)[0]:
            raise ValueError(f"{program}: there is no such module; correct the name in data/mini/dvc.yaml")
        with atomic_file(out / program.rpartition(".")[2]) as part:
            part.write_text(fingerprint(program, root, pins) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the fingerprints that the arguments ask for."""
    parser = argparse.ArgumentParser(prog="python -m stages.mini.program_fingerprints", description=__doc__)
    parser.add_argument("programs", nargs="+", metavar="PROGRAM", help="a module, such as stages.mini.training.train_vae")
    parser.add_argument("--lock", type=Path, required=True, help="requirements.lock")
    parser.add_argument("--out", type=Path, required=True, help="folder for the fingerprints")
    options = parser.parse_args(arguments)
    with errors_in_one_line("program_fingerprints"):
        write_fingerprints(options.programs, options.lock, options.out)


if __name__ == "__main__":
    main()
