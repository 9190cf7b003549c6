"""A Hugging Face hub of one repository on this machine: the routes that the real client asks for."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """The server. A file that is changed after the start keeps its digest in every answer, as a damaged one would."""

    def __init__(self, repo: str, files: dict[str, bytes], kind: str = "datasets"):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repo, self.files = repo, files
        self.api = f"/api/{kind}/{repo}"
        self.downloads = f"/{repo}/resolve/" if kind == "models" else f"/{kind}/{repo}/resolve/"
        self.cut = 0  # so many of the next downloads break off in the middle
        self.faults: dict[tuple[str, str], Callable[[Handler], None]] = {}  # method and part of a path to another answer
        self.digests = self.digest_all(files)

    @staticmethod
    def digest_all(files: dict[str, bytes]) -> dict[str, str]:
        """Git's digests of files, as the hub gives them of small ones."""
        return {name: hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() for name, data in files.items()}

    def tree(self, folder: str, recursive: bool) -> list[dict[str, object]]:
        """What a folder holds: files at any depth, or its own files and subfolders."""
        inside = [name for name in self.files if name.startswith(f"{folder}/" if folder else "")]
        depth = len(Path(folder).parts) + 1
        own = [name for name in inside if recursive or len(Path(name).parts) == depth]
        below = sorted({"/".join(Path(name).parts[:depth]) for name in inside if name not in own})
        return [
            *({"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in below),
            *({"type": "file", "path": name, "size": len(self.files[name]), "oid": self.digests[name]} for name in own),
        ]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        hub = self.hub
        fault = next(
            (fault for (method, part), fault in hub.faults.items() if method == self.command and part in self.path), None
        )
        if fault is not None:
            self.close_connection = True
            with contextlib.suppress(ConnectionError):
                fault(self)
            return
        path = unquote(urlsplit(self.path).path)
        api, revision = hub.api, "main" if path.startswith((f"{hub.downloads}main/", f"{hub.api}/tree/main")) else COMMIT
        resolve = f"{hub.downloads}{revision}/"
        if path.startswith(resolve) and path.removeprefix(resolve) in hub.files:
            name = path.removeprefix(resolve)
            self.answer(hub.files[name], ETag=f'"{hub.digests[name]}"')
        elif path in (api, f"{api}/revision/{COMMIT}", f"{api}/revision/main"):
            siblings = [{"rfilename": name} for name in hub.files]
            self.answer_json({"id": hub.repo, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False})
        elif path.startswith(f"{api}/tree/{revision}"):
            folder = path.removeprefix(f"{api}/tree/{revision}").strip("/")
            self.answer_json(hub.tree(folder, "recursive=true" in self.path.lower()))
        else:
            missing = (
                "EntryNotFound" if path.startswith(resolve) else "RevisionNotFound" if hub.repo in path else "RepoNotFound"
            )
            self.answer(b"{}", status=404, **{"X-Error-Code": missing, "X-Error-Message": "not found"})

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}").get("paths", [])
        self.answer_json([item for item in self.hub.tree("", True) if item["path"] in asked])

    @property
    def hub(self) -> Hub:
        assert isinstance(self.server, Hub)
        return self.server

    def answer_json(self, content: object) -> None:
        self.answer(json.dumps(content).encode())

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD" and status == 200 and "ETag" in headers and self.hub.cut > 0:
            self.hub.cut -= 1
            self.close_connection = True
            body = body[: len(body) // 2]
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@contextmanager
def loopback_hub(repo: str, files: dict[str, bytes]) -> Iterator[str]:
    """Serve the files as dataset `repo` at `COMMIT`; gives the endpoint."""
    with serving(Hub(repo, files)) as endpoint:
        yield endpoint


@contextmanager
def reached(hub: Hub, cache: Path) -> Iterator[pytest.MonkeyPatch]:
    """Let a hub answer to the client of this process, whose cache is another; gives what the settings are undone by."""
    constants = "huggingface_hub.constants."
    with serving(hub) as endpoint, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants + "HF_HUB_OFFLINE", False)
        patch.setattr(constants + "HF_HUB_CACHE", str(cache))
        patch.setattr(constants + "ENDPOINT", endpoint)
        patch.setattr(constants + "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
        yield patch


def model_repository(repo: str, folder: Path) -> Hub:
    """A hub whose one repository holds the files of a folder."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return Hub(repo, files, "models")


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """Let a hub answer; gives the endpoint."""
    with hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{hub.server_port}"
        hub.shutdown()
        thread.join()
