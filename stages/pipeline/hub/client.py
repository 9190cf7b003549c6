"""The client of the Hugging Face hub, held to limits that it does not have itself, and its errors in one line.

What it lacks: it waits for as long as a server keeps sending a byte now and then, writes down all that comes, sleeps for as
long as it is told to, and makes file names of what the server calls its files. `hub_access` gives it a client of its HTTP
library (`huggingface_hub.set_client_factory`) whose hooks look at every request and every answer. Only what comes by its own
protocol for large files (hf_xet, content-addressed, of a known size) does not pass there.

It lies here and not in a room, because the rooms that fetch something do not know each other.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import httpx2
from huggingface_hub import hf_hub_download, is_offline_mode, set_client_factory
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from stages.pipeline.hub.answers import Answers
from stages.pipeline.hub.transfers import SILENCE, WINDOW, TransferError

UNREACHABLE = "it is not in the local cache, and the hub cannot be reached: check the connection, and unset HF_HUB_OFFLINE"
_KINDS = {
    GatedRepoError: "its owner asks for a login: accept the terms on its page and set HF_TOKEN",
    DisabledRepoError: "the hub has closed it: choose another source",
    RepositoryNotFoundError: "the hub has nothing of that name, or it is private: check the name, or set HF_TOKEN",
    RevisionNotFoundError: "it has no such commit on the hub: check the revision",
    RemoteEntryNotFoundError: "it has no such file at that commit: check the name of the file",
}
_STATUSES = {
    401: "the hub asks for a login: set HF_TOKEN to a token that is valid",
    403: "the hub forbids it: accept the terms on its page, and set HF_TOKEN to a token that may read it",
    404: "the hub has no such page: check name and revision, and HF_ENDPOINT if it is set",
    429: "the hub limits how often it is asked: try again in some minutes, or set HF_TOKEN for a higher limit",
}


@contextmanager
def hub_access(what: str) -> Iterator[None]:
    """Let the hub's client work within limits, and turn its errors, paragraphs of many kinds, into one line.

    Args:
        what: what is wanted; the line begins with it.

    Raises:
        OSError: what was wanted, why it cannot be had, and the fix.
    """
    answers = _watched_client()
    answers.stalled = False
    try:
        yield
    except (OSError, ValueError, RuntimeError, httpx2.HTTPError, EntryNotFoundError) as error:
        raise OSError(f"{what}: {_advice(error, answers.stalled)}") from error


def fetch_if_there(repo: str, file: str, *, repo_type: str, revision: str | None) -> Path | None:
    """A file of a repository, or None where it has none of that name; that it cannot be asked is an error.

    Raises:
        OSError: the hub does not say whether it has one.
    """
    try:
        return Path(hf_hub_download(repo, file, repo_type=repo_type, revision=revision))
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError) and not is_offline_mode():
            raise
        return None


def damage(path: Path) -> str | None:
    """What is wrong with a downloaded file, which the client names by its digest and never compares with it; None if nothing.

    The name is its sha256, or for small files git's digest of it.
    """
    blob = path.resolve()
    if blob.name == path.name:  # a file system without links
        return None
    with blob.open("rb") as file:
        if len(blob.name) == 64:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        elif len(blob.name) == 40:
            content = file.read()
            found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        else:
            return None
    return None if found == blob.name else f"the hub's digest of it is {blob.name}; to fetch it again, delete {blob}"


@cache
def _watched_client() -> Answers:
    """Have the hub's client use clients with our hooks; once a process."""
    answers = Answers()
    hooks = {"request": [answers.ask], "response": [answers.check]}
    set_client_factory(lambda: httpx2.Client(event_hooks=hooks, follow_redirects=True, timeout=SILENCE))
    return answers


def _advice(error: BaseException, stalled: bool) -> str:
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        causes.append(cause)
    if stalled:
        return f"the hub begins to answer and does not end within {WINDOW:.0f} s: try again later"
    for cause in causes:
        if isinstance(cause, TransferError):
            return f"the hub {cause}"
    for kind, text in _KINDS.items():
        if any(isinstance(cause, kind) for cause in causes):
            return text
    for cause in causes:
        if isinstance(cause, HfHubHTTPError):
            return _status(cause.response.status_code)
    if any(isinstance(cause, LocalEntryNotFoundError | ConnectionError | httpx2.TransportError) for cause in causes):
        return UNREACHABLE
    return " ".join(str(error).split()) or type(error).__name__


def _status(code: int) -> str:
    if code >= 500:
        return f"the hub has a fault of its own (status {code}): try again later"
    return _STATUSES.get(code, f"the hub refuses the request (status {code}): check name and revision")
