"""A hub on this machine that takes commits: the part of its interface that `HfApi` uses to make a repository and to upload."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """What the hub holds: the files of each repository, and how many commits it has taken."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.commits = 0
        self.private: dict[str, bool] = {}


class Handler(BaseHTTPRequestHandler):
    """Answers for the hub of its server."""

    @property
    def hub(self) -> Hub:
        return self.server.hub  # pyright: ignore[reportAttributeAccessIssue]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        _, _, _, owner, name, *rest = self.path.partition("?")[0].split("/")
        files = self.hub.files.get(f"{owner}/{name}", {})
        if rest[:1] == ["tree"]:
            self.answer(
                [{"type": "file", "path": path, "size": len(content), "oid": oid(content)} for path, content in files.items()]
            )
        else:
            self.answer({"id": f"{owner}/{name}", "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("authorization") != "Bearer hf_right":
            self.answer({"error": "Invalid credentials"}, 401)
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'owner'}/{asked['name']}"
            self.hub.private.setdefault(repo, asked.get("private") is True or asked.get("visibility") == "private")
            status = 409 if repo in self.hub.files else 200
            self.hub.files.setdefault(repo, {})
            self.answer({"url": f"http://{self.headers['Host']}/{repo}", "error": "already there"}, status)
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            self.answer({"files": [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in asked]})
        else:
            repo = "/".join(self.path.split("/")[3:5])
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.hub.files[repo][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self.hub.commits += 1
            self.answer(
                {"commitUrl": f"http://{self.headers['Host']}/{repo}/commit/1", "commitOid": "1" * 40, "hookOutput": ""}
            )


def oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def serving() -> Iterator[tuple[Hub, str]]:
    """A hub, and its address."""
    hub = Hub()
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = hub
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield hub, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
