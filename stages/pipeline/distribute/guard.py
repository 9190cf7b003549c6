"""Runs a command, and ends all of it when the process that started this one dies, or when this one is asked to end.

`python guard.py -c LINE` for a line of shell, as a shell is started; `python guard.py PROGRAM ARGUMENT…` for a program. Imports
nothing of the project: it begins in hundredths of a second.
"""

import os
import signal
import subprocess
import sys
import time

GRACE = 8.0
"""Seconds in which a training finishes its step and writes a checkpoint."""
ASKED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def main(argv: list[str]) -> int:
    """The command's exit status, or 143 where it was ended."""
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {*ASKED, signal.SIGCHLD})
    command = ["/bin/sh", *argv] if argv[0] == "-c" else argv
    child = subprocess.Popen(command, start_new_session=True, preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, ()))
    while child.poll() is None:
        noted = _wait(0.5)
        if noted in ASKED or os.getppid() != parent:
            end_group(child)
            return 128 + signal.SIGTERM
    end_group(child)  # what it left behind
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _wait(seconds: float) -> int | None:
    wait = getattr(signal, "sigtimedwait", None)
    if wait is not None:
        found = wait({*ASKED, signal.SIGCHLD}, seconds)
        return found and found.si_signo
    time.sleep(seconds / 10)  # macOS
    pending = signal.sigpending() & ASKED
    return next(iter(pending), None)


def end_group(child: "subprocess.Popen[bytes]") -> None:
    """Ask all processes of the child's group to end, and end those that do not."""
    deadline = time.monotonic() + GRACE
    try:
        os.killpg(child.pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            child.poll()
            os.killpg(child.pid, 0)
            time.sleep(0.05)
        os.killpg(child.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # none of them is left
        pass
    child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
