"""What is asked of the hub and what it answers: hooks of an HTTP client that refuse what no good hub sends."""

import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urljoin

import httpx2
from huggingface_hub import close_session, is_offline_mode
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import parse_ratelimit_headers

from stages.pipeline.hub import transfers
from stages.pipeline.hub.transfers import TransferError, paced, size

MOST_UNLISTED = 64 * 2**20
"""Bytes of an answer whose size nothing has said before: listings, pages, small text."""

LONGEST_WAIT = 300
"""Seconds, in all for one address: the hub's own limits count in five minutes."""

_TAG = re.compile(r'(W/)?"?[\w-]{1,128}"?', re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_LISTING = re.compile(r"/api/(?:models/)?(.+?)/(?:tree|paths-info)/([^/]+)")
_FILE = re.compile(r"/(.+?)/resolve/([^/]+)/(.+)")


class Answers:
    """The hooks, and what they remember of earlier answers.

    Attributes:
        stalled: an answer began and did not get through its headers in time; all connections were closed for it.
    """

    def __init__(self) -> None:
        self.stalled = False
        self._listed: dict[str, int] = {}
        self._waits: Counter[str] = Counter()

    def ask(self, request: httpx2.Request) -> None:
        """Before a request: no wait without end, and no compression, of which a little becomes a lot."""
        if is_offline_mode():  # the hub's own clients have a hook for that
            raise OfflineModeIsEnabled(f"HF_HUB_OFFLINE is set, and {request.url} is asked for")
        if self.stalled:
            raise TransferError("does not answer")
        given = request.extensions.get("timeout", {})
        limits = {name: given.get(name) or transfers.SILENCE for name in ("connect", "read", "write", "pool")}
        request.extensions = {**request.extensions, "timeout": limits, "trace": _HeaderWatch(self)}
        request.headers["Accept-Encoding"] = "identity"

    def check(self, response: httpx2.Response) -> None:
        """Before the body of an answer is read: refuse it, or limit what may follow.

        Raises:
            TransferError: it says why.
        """
        self._check_wait(response)
        _check_names(response)
        if response.is_error:
            response.stream = Paced(response.stream, MOST_UNLISTED)
            return
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise TransferError("sends it compressed, which it was asked not to")
        if response.request.method == "HEAD" or response.has_redirect_location:
            self._list(response)
            response.stream = Paced(response.stream, MOST_UNLISTED)
            return
        offered = _number(response.headers.get("Content-Length"))
        limit = self._limit(response, offered)
        if offered is not None and offered > limit:
            raise TransferError(f"offers {size(offered)}, and {size(limit)} are expected")
        response.stream = Paced(response.stream, limit)
        if _is_api(response):
            response.read()
            if "json" in response.headers.get("Content-Type", "json"):
                self._read_listing(response)

    def _check_wait(self, response: httpx2.Response) -> None:
        """Refuse to be told to wait for longer than the hub's own limits last; the client would sleep for an hour."""
        told = parse_ratelimit_headers(response.headers) if response.status_code == 429 else None
        wait = told.reset_in_seconds if told and told.remaining == 0 else _number(response.headers.get("Retry-After"))
        if not response.is_error or wait is None:
            return
        address = str(response.request.url)
        self._waits[address] += wait
        if self._waits[address] > LONGEST_WAIT:
            limited = response.status_code == 429
            reason = "limits how often it is asked" if limited else f"has a fault of its own (status {response.status_code})"
            advice = ", or set HF_TOKEN for a higher limit" if limited else ""
            raise TransferError(f"{reason} and asks to wait {wait} s: run again then{advice}")

    def _list(self, response: httpx2.Response) -> None:
        """Remember the size of a file under its address and under that which it is sent on to."""
        headers = response.headers
        length = headers.get("X-Linked-Size") or (None if response.has_redirect_location else headers.get("Content-Length"))
        listed = self._listed.get(_file(response), _number(length))
        if listed is not None:
            address = str(response.request.url)
            self._listed |= {address: listed, urljoin(address, headers.get("Location", "")): listed}

    def _limit(self, response: httpx2.Response, offered: int | None) -> int:
        """Most bytes of a body: what was listed; else of a file as many as it says itself, of other answers a little."""
        for name in (_file(response), str(response.request.url)):
            if name in self._listed:
                return self._listed[name]
        return MOST_UNLISTED if offered is None or _is_api(response) else offered

    def _read_listing(self, response: httpx2.Response) -> None:
        """Check the digests in a listing, of which the client makes file names too, and remember the sizes."""
        try:
            content = response.json()
        except ValueError:  # what the client makes of it is its own matter
            return
        repo = _LISTING.search(unquote(response.request.url.path))
        for entry in content if isinstance(content, list) else [content]:
            if isinstance(entry, dict):
                _check_digests(entry)
                if repo and entry.get("type") == "file" and isinstance(entry.get("size"), int):
                    self._listed[f"{repo[1]}@{repo[2]}/{entry.get('path')}"] = entry["size"]


class Paced(httpx2.SyncByteStream):
    """The body of an answer, within a limit of size and at a pace."""

    def __init__(self, stream: Any, limit: int) -> None:
        self._stream, self._limit = stream, limit

    def __iter__(self) -> Iterator[bytes]:
        """The chunks of the body as they come."""
        return paced(self._stream, self._limit)

    def close(self) -> None:
        """Give the connection back."""
        self._stream.close()


class _HeaderWatch:
    """Hears of each step of a request (the HTTP library's extension `trace`), and ends one whose headers do not end."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._timer: threading.Timer | None = None

    def __call__(self, step: str, details: Mapping[str, Any]) -> None:
        """Called by the HTTP library."""
        if step == "http11.receive_response_headers.started":
            self._timer = threading.Timer(transfers.WINDOW, self._end)
            self._timer.daemon = True
            self._timer.start()
        elif step.startswith("http11.receive_response_headers.") and self._timer:
            self._timer.cancel()

    def _end(self) -> None:
        self._answers.stalled = True
        close_session()  # closes the connection under the thread that waits for it


def _check_names(response: httpx2.Response) -> None:
    """Refuse a tag or a commit that is no digest: the client makes file names of them, also of one with ../ in it."""
    headers = response.headers
    commit = headers.get("X-Repo-Commit")
    if commit is not None and not _DIGEST.fullmatch(commit):
        raise TransferError(f"names a commit that is none ({commit[:80]!r})")
    linked, tag = headers.get("X-Linked-Etag"), headers.get("ETag")
    elsewhere = response.has_redirect_location and httpx2.URL(headers["Location"]).host not in ("", response.request.url.host)
    used = linked or (tag if elsewhere or response.is_success else None)
    if response.request.method == "HEAD" and used is not None and not _TAG.fullmatch(used):
        raise TransferError(f"names a file by a tag that is no digest ({used[:80]!r})")


def _check_digests(entry: Mapping[str, Any]) -> None:
    lfs = entry.get("lfs") if isinstance(entry.get("lfs"), dict) else {}
    named: Iterable[Any] = (entry.get("sha"), entry.get("oid"), entry.get("xetHash"), *(lfs or {}).values())
    for digest in named:
        if isinstance(digest, str) and not _DIGEST.fullmatch(digest):
            raise TransferError(f"lists a digest that is none ({digest[:80]!r})")


def _file(response: httpx2.Response) -> str:
    """The repository, the revision and the path that an address is of; the address itself if it is of none."""
    found = _FILE.search(unquote(response.request.url.path))
    return f"{found[1]}@{found[2]}/{found[3]}" if found else str(response.request.url)


def _is_api(response: httpx2.Response) -> bool:
    return response.request.url.path.startswith("/api/")


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdecimal() else None
