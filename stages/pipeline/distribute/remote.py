"""What travels where workers share no files with this machine.

The code goes with each stage, a third of a megabyte; files that stages read and no stage makes, and what stages make, go
through a remote of DVC. A worker has a folder of its own, with a cache of DVC in it, and fetches only what its stage reads.
"""

import gzip
import importlib.metadata
import io
import os
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from stages.pipeline.distribute.plan import Cell, sources_of
from stages.pipeline.distribute.workspaces import PIPELINE_FILES
from stages.pipeline.fingerprints import read_pins

LOCKED = Path("requirements.lock")
DVC_FILE = "outs:\n- md5: {md5}\n  hash: md5\n  path: {name}\n"


@dataclass(frozen=True)
class Carried:
    """What a stage takes along to a worker that sees no file of this machine.

    Attributes:
        repository: tells repositories apart in one worker's folder.
        remote: the name of DVC's remote.
        settings: what DVC's configuration says of it.
        files: what the stage reads and no stage makes: its path, and its hash, which the remote knows.
        others: what other stages read, whose settings are checked with its own: whether it is a folder.
        versions: of the packages in requirements.lock, as they are on this machine.
    """

    repository: str
    remote: str
    settings: Mapping[str, Any]
    files: Mapping[str, str]
    others: Mapping[str, bool]
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Parcel:
    """The code that workers run: an archive, and its sha256."""

    digest: str
    archive: bytes


class Courier:
    """Brings to a remote what stages read, and from there what they made.

    Args:
        repo: DVC's view of the snapshot.
        real: DVC's view of the repository, whose configuration counts: paths in it are relative to its own files.
        remote: a name of `dvc remote list`.
        code: what each stage gets besides what it alone reads, relative to the snapshot.

    Raises:
        ValueError: there is no such remote, or it cannot be reached.
    """

    def __init__(self, repo: Any, real: Any, remote: str, code: Iterable[Path]) -> None:
        from dvc.exceptions import DvcException

        self.repo, self.name, self.code, self.cache = repo, remote, tuple(code), repo.cache.local
        self.snapshot, self.hashes = Path(repo.root_dir), dict[Path, Any]()
        given = real.config["remote"].get(remote, {})
        self.settings = {name: str(value) if isinstance(value, str) else value for name, value in given.items()}
        repo.config["remote"][remote] = self.settings
        try:
            if not self.settings:
                raise ValueError(f"there is {', '.join(real.config['remote']) or 'none'}: dvc remote add {remote} URL")
            self.remote = repo.cloud.get_remote_odb(remote)
            self.remote.exists("0" * 32)
        except (DvcException, OSError, ValueError) as error:
            raise ValueError(f"cluster.remote: given {remote!r}: {' '.join(str(error).split())}") from error
        self.parcel = _pack(self.snapshot, self.code)
        self.repository = sha256(str(real.root_dir).encode()).hexdigest()[:16]
        self.versions = _versions(read_pins(self.snapshot / LOCKED)) if (self.snapshot / LOCKED).is_file() else {}

    def carry(self, cell: Cell, sources: Iterable[Path], outputs: Iterable[Any]) -> Carried:
        """What a stage takes along; the remote has what it reads then.

        Args:
            cell: the stage.
            sources: what stages read and no stage makes.
            outputs: DVC's, of the stages whose outputs it reads.

        Raises:
            OSError: the remote does not take it.
        """
        own = [source for source in sources_of({cell.name: cell}) if not _within(source, self.code)]
        files = {str(source): self._stored(source) for source in own}
        copy(self.cache, self.remote, [*files.values(), *(out.hash_info for out in outputs)])
        others = [path for path in sources if not _within(path, self.code) and str(path) not in files]
        return Carried(
            repository=self.repository,
            remote=self.name,
            settings=self.settings,
            files={path: each.value for path, each in files.items()},
            others={str(path): (self.snapshot / path).is_dir() for path in others},
            versions=self.versions,
        )

    def fetch(self, outputs: Iterable[Any]) -> None:
        """Have outputs of a stage in DVC's cache.

        Raises:
            OSError: the remote does not give them.
        """
        copy(self.remote, self.cache, [out.hash_info for out in outputs])

    def _stored(self, source: Path) -> Any:
        """The hash of a file or folder, which DVC's cache has then."""
        from dvc.fs import LocalFileSystem
        from dvc_data.hashfile.build import build

        if source not in self.hashes:
            path = str(self.snapshot / source)
            staging, _, built = build(self.cache, path, LocalFileSystem(), "md5", ignore=self.repo.dvcignore)
            copy(staging, self.cache, [built.hash_info])
            self.hashes[source] = built.hash_info
        return self.hashes[source]


def copy(source: Any, target: Any, hashes: Iterable[Any]) -> None:
    """Copy objects of DVC, folders with what lies in them, that the target does not have.

    Raises:
        OSError: some of them could not be copied.
    """
    from dvc.exceptions import DvcException
    from dvc_data.hashfile.transfer import transfer

    wanted = set(hashes)
    try:
        failed = transfer(source, target, wanted, shallow=False).failed if wanted else ()
    except DvcException as error:
        raise OSError(" ".join(str(error).split())) from error
    if failed:
        raise OSError(f"{len(failed)} of the files could not be copied from {source.path} to {target.path}")


def fetch_inputs(repo: Any, producers: Iterable[str], carried: Carried | None) -> None:
    """On a worker: what a stage reads, in its workspace; out of DVC's cache alone where nothing is carried.

    Raises:
        OSError: the remote does not give it.
    """
    stages = [repo.stage.load_one(name=name) for name in producers]
    if carried is not None:
        stages += [repo.stage.load_one(path=f"{path}.dvc") for path in carried.files]
        remote = repo.cloud.get_remote_odb(carried.remote)
        copy(remote, repo.cache.local, [out.hash_info for stage in stages for out in stage.outs if out.use_cache])
    for stage in stages:
        stage.checkout()


def send_outputs(repo: Any, name: str, carried: Carried) -> None:
    """On a worker: bring to the remote what a stage made.

    Raises:
        OSError: the remote does not take it.
    """
    outs = repo.stage.load_one(name=name).outs
    copy(repo.cache.local, repo.cloud.get_remote_odb(carried.remote), [out.hash_info for out in outs])


def prepare(folder: Path, carried: Carried) -> None:
    """On a worker: say in a workspace what the remote is, and what will be where.

    Raises:
        ValueError: packages have other versions than where the run was started.
    """
    from configobj import ConfigObj

    if differ := [name for name, version in carried.versions.items() if _version(name) != version]:
        said = [f"{name} {_version(name) or 'not at all'} and not {carried.versions[name]}" for name in differ[:3]]
        raise ValueError(f"{os.uname().nodename} has {', '.join(said)}: install this requirements.lock there")
    config = ConfigObj(str(folder / ".dvc/config.local"))
    config[f'remote "{carried.remote}"'] = dict(carried.settings)
    config.write()
    for path, md5 in carried.files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{path}.dvc").write_text(DVC_FILE.format(md5=md5, name=Path(path).name))
    for path, is_folder in carried.others.items():
        (folder / path if is_folder else (folder / path).parent).mkdir(parents=True, exist_ok=True)
        if not is_folder:
            (folder / path).touch()


def _pack(snapshot: Path, code: Iterable[Path]) -> Parcel:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in (*code, *map(Path, PIPELINE_FILES), Path(".dvc/config")):
            if (snapshot / path).exists():
                archive.add(snapshot / path, str(path), filter=_without_time)
    return Parcel(sha256(buffer.getvalue()).hexdigest(), gzip.compress(buffer.getvalue(), mtime=0))


def _without_time(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mtime = 0
    return member


def _within(path: Path, folders: Iterable[Path]) -> bool:
    return any(path == folder or folder in path.parents for folder in folders)


def _versions(pins: Mapping[str, str]) -> dict[str, str]:
    return {name: version for name in sorted(pins) if (version := _version(name))}


def _version(name: str) -> str:
    """Without the build behind the plus: nodes may have another torch for their devices."""
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return ""
