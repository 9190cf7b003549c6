"""Runs Parsl's pool of workers on another machine, which shares nothing with this one: `python over_ssh.py HOST… -- COMMAND`.

The pool reaches this machine through the connection itself (ssh -R), so that nothing listens beyond either machine's loopback;
Parsl's keys, with which all of it is encrypted, travel through it too. The first host is taken that no other process of the run
has. Imports nothing of the project.
"""

import argparse
import fcntl
import io
import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ALIVE = ("BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=2", "ServerAliveCountMax=3", "ExitOnForwardFailure=yes")
THERE = "umask 077; d=$(mktemp -d) && trap 'rm -rf $d' EXIT && tar xf - -C $d && cd && PATH={programs}:$PATH {command}"


def main(argv: list[str] | None = None) -> int:
    """The exit status of ssh: that of the pool, or 255 where the connection failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("hosts", nargs="+")
    parser.add_argument("--programs", required=True, help="the folder of Python and Parsl there")
    parser.add_argument("--keys", type=Path, required=True, help="Parsl's folder of keys")
    parser.add_argument("--port", required=True, help="of this machine, for the pool")
    parser.add_argument("--options", type=shlex.split, default=[], help="of ssh")
    words = sys.argv[1:] if argv is None else argv
    at = words.index("--")
    options = parser.parse_args(words[:at])
    for host in options.hosts:
        lock = (options.keys.parent / f"{host.replace('/', '-')}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        command = " ".join(map(shlex.quote, words[at + 1 :])).replace(str(options.keys), f"$d/{options.keys.name}")
        forward = f"127.0.0.1:{options.port}:127.0.0.1:{options.port}"
        ssh = ["ssh", *(word for option in ALIVE for word in ("-o", option)), *options.options, "-T", "-R", forward, host]
        there = THERE.format(programs=options.programs, command=command)
        with tempfile.TemporaryFile() as keys:
            keys.write(_packed(options.keys))
            keys.seek(0)
            return subprocess.run([*ssh, there], stdin=keys, check=False).returncode
    print(f"all of {', '.join(options.hosts)} are at work already", file=sys.stderr)
    return 1


def _packed(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(folder, folder.name)
    return buffer.getvalue()


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
