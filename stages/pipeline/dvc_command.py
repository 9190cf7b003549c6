"""How DVC is started: as a process of its own, by the Python that runs this, and never by a `dvc` found on PATH."""

import subprocess
import sys


def dvc_command(*arguments: str, wait: bool = True) -> list[str]:
    """The command line of a process that runs DVC.

    Args:
        arguments: the subcommand and its options.
        wait: wait for another DVC to give up the repository's lock, in place of failing. A process that DVC itself started
            may only ask for what takes no lock, and passes False: its own DVC holds the lock until it ends.
    """
    return [sys.executable, "-m", "dvc", *(["--wait-for-lock"] if wait else []), *arguments]


def run_dvc(*arguments: str) -> int:
    """Run DVC, its output going where ours goes; returns its exit status."""
    return subprocess.run(dvc_command(*arguments), check=False).returncode


def ask_dvc(*arguments: str) -> str:
    """What DVC prints, such as a setting of it; "" where it fails. It takes no lock, so a stage may ask too."""
    return subprocess.run(
        dvc_command(*arguments, wait=False), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False
    ).stdout.strip()
