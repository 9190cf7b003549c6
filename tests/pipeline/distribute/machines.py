"""Two machines that ssh reaches: network namespaces of this one, which see neither the repository nor this project's code.

For root, where sshd and ip are installed. They share one folder with this machine, for a remote of DVC.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

NAMES = ("one", "two")
SSHD = """
Port 22
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin yes
"""
SSH = """
Host one two
  User root
  IdentityFile {folder}/user
  UserKnownHostsFile /dev/null
  StrictHostKeyChecking no
  LogLevel ERROR
Host one
  HostName 10.213.1.2
Host two
  HostName 10.213.2.2
"""


def is_there() -> bool:
    if os.geteuid() != 0 or not all(_program(name) for name in ("sshd", "ssh", "ssh-keygen", "ip", "unshare", "mount")):
        return False
    probe = f"probe-{os.getpid()}"
    pair = [
        "unshare",
        "-n",
        "-m",
        "ip",
        "link",
        "add",
        "probe0",
        "type",
        "veth",
        "peer",
        "name",
        "probe1",
    ]  # gone with its namespace
    commands = (pair, ["ip", "netns", "add", probe], ["ip", "netns", "del", probe])
    return all(subprocess.run(words, check=False, capture_output=True).returncode == 0 for words in commands)


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/bin")


@dataclass
class Machines:
    """What is running.

    Attributes:
        config: for ssh -F.
    """

    config: Path

    def link(self, name: str, state: str) -> None:
        """Cut a machine off ("down") or bring it back ("up")."""
        _run("ip", "link", "set", _names(name)[1], state)


@contextmanager
def running(folder: Path, hidden: Sequence[Path]) -> Iterator[Machines]:
    """Machines on which folders of this one are empty."""
    folder.mkdir()
    for name in ("host", "user"):
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
    (folder / "sshd").write_text(SSHD.format(folder=folder))
    (folder / "ssh").write_text(SSH.format(folder=folder))
    Path("/run/sshd").mkdir(exist_ok=True)
    started = []
    try:
        for number, name in enumerate(NAMES, start=1):
            space, here, there = _names(name)
            _run("ip", "netns", "add", space)
            _run("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", space)
            _run("ip", "addr", "add", f"10.213.{number}.1/24", "dev", here)
            _run("ip", "link", "set", here, "up")
            for words in (["addr", "add", f"10.213.{number}.2/24", "dev", there], ["link", "set", there, "up"]):
                _run("ip", "-n", space, *words)
            _run("ip", "-n", space, "link", "set", "lo", "up")
            empty = " && ".join(f"mount -t tmpfs none '{path}'" for path in hidden)
            daemon = f"hostname {name} && {empty} && exec {_program('sshd')} -D -f {folder}/sshd -E {folder}/{name}.log"
            started.append(subprocess.Popen(["ip", "netns", "exec", space, "unshare", "-m", "-u", "sh", "-c", daemon]))
        _wait(folder)
        yield Machines(folder / "ssh")
    finally:
        for name in NAMES[: len(started)]:
            space, here, _ = _names(name)
            listed = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True, check=True)
            for process in listed.stdout.split():
                os.kill(int(process), signal.SIGKILL)
            _run("ip", "link", "del", here)
            _run("ip", "netns", "del", space)
        for process in started:
            process.wait()


def _names(name: str) -> tuple[str, str, str]:
    return f"{name}-{os.getpid()}", f"{name}a{os.getpid()}", f"{name}b{os.getpid()}"


def _wait(folder: Path) -> None:
    deadline = time.monotonic() + 20
    for name in NAMES:
        while subprocess.run(["ssh", "-F", folder / "ssh", name, "true"], check=False, capture_output=True).returncode:
            assert time.monotonic() < deadline, (folder / f"{name}.log").read_text()
            time.sleep(0.2)


def _run(*words: str) -> None:
    subprocess.run(words, check=True)
