"""The real client of the hub, within our limits, and a hub on this machine that does what no good one does."""

import hashlib
import json
import re
import time
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download, snapshot_download

from stages.pipeline.hub import transfers
from stages.pipeline.hub.answers import LONGEST_WAIT
from stages.pipeline.hub.client import damage, fetch_if_there, hub_access
from tests.dataset.loopback_hub import COMMIT, Handler, Hub, serving

REPO = "org/drawings"
BODY = bytes(range(175))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with one file; nothing sleeps between attempts."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "deep" / "in" / "hub"))
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.2)))
    hub = Hub(REPO, {"a.bin": BODY})
    with serving(hub) as endpoint:
        yield hub, endpoint


def snapshot(hub):
    with hub_access("dataset org/drawings"):
        return snapshot_download(REPO, repo_type="dataset", revision=COMMIT, endpoint=hub[1], etag_timeout=5)


def refusal(hub) -> str:
    start = time.monotonic()
    with pytest.raises(OSError, match=r"^dataset org/drawings: ") as refused:
        snapshot(hub)
    assert time.monotonic() - start < 30
    assert "\n" not in str(refused.value)
    return str(refused.value).removeprefix("dataset org/drawings: ")


def headers(handler: Handler, status: int = 200, **named: str) -> None:
    handler.send_response(status)
    given = {name.replace("_", "-"): value for name, value in named.items()}
    for name, value in ({"X-Repo-Commit": COMMIT, "ETag": '"' + "a" * 40 + '"', "Connection": "close"} | given).items():
        handler.send_header(name, value)
    handler.end_headers()


def drip(handler: Handler) -> None:
    headers(handler, Content_Length="175")
    for byte in BODY:  # for more than half a minute
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        time.sleep(0.2)


def drip_headers(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Padding: ")
    for _ in range(500):
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.2)


def endless(handler: Handler) -> None:
    headers(handler, Transfer_Encoding="chunked")
    for _ in range(1000):
        handler.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")


def answer(status: int, body: bytes = b"{}", **named: str):
    def give(handler: Handler) -> None:
        headers(handler, status, **{"Content_Length": str(len(body))} | named)
        if handler.command != "HEAD":
            handler.wfile.write(body)

    return give


def test_a_good_hub_is_not_in_the_way(hub):
    path = Path(snapshot(hub)) / "a.bin"
    assert path.read_bytes() == BODY
    assert damage(path) is None


@pytest.mark.parametrize(
    ("where", "fault", "message"),
    [
        (("GET", "a.bin"), drip, "the hub sends too slowly: .* try again later"),
        (("GET", "/tree/"), drip, "the hub sends too slowly"),
        (("GET", "a.bin"), drip_headers, "the hub begins to answer and does not end within"),
        (("HEAD", "a.bin"), drip_headers, "the hub begins to answer and does not end within"),
        (("GET", "/tree/"), drip_headers, "the hub begins to answer and does not end within"),
        (("GET", "a.bin"), endless, "the hub sends more than 175 bytes, which is all that is expected"),
        (("GET", "/tree/"), endless, "the hub sends more than 1 MiB"),
        (("GET", "a.bin"), answer(200, Content_Length="2400000000"), "the hub offers 2289 MiB, and 175 bytes are expected"),
        (("GET", "a.bin"), answer(200, Content_Encoding="gzip"), "the hub sends it compressed"),
    ],
)
def test_what_comes_too_slowly_or_without_end_is_refused(hub, where, fault, message, monkeypatch):
    monkeypatch.setattr("stages.pipeline.hub.answers.MOST_UNLISTED", 2**20)
    monkeypatch.setattr(transfers, "WINDOW", 1.0)
    hub[0].faults[where] = fault
    assert re.search(message, refusal(hub))


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "the hub asks for a login: set HF_TOKEN to a token that is valid"),
        (403, "the hub forbids it: accept the terms on its page, and set HF_TOKEN to a token that may read it"),
        (404, "the hub has no such page: check name and revision"),
        (418, "the hub refuses the request (status 418)"),
        (429, "the hub limits how often it is asked: try again in some minutes, or set HF_TOKEN"),
        (500, "the hub has a fault of its own (status 500): try again later"),
        (503, "the hub has a fault of its own (status 503): try again later"),
    ],
)
@pytest.mark.parametrize("where", [("GET", "/tree/"), ("HEAD", "a.bin")])
def test_each_status_has_its_own_words(hub, where, status, message):
    hub[0].faults[where] = answer(status)
    assert refusal(hub).startswith(message)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("GatedRepo", "its owner asks for a login: accept the terms"),
        ("RepoNotFound", "the hub has nothing of that name"),
        ("RevisionNotFound", "it has no such commit"),
        ("EntryNotFound", "it has no such file at that commit"),
    ],
)
def test_what_the_hub_itself_names_has_its_own_words(hub, code, message):
    hub[0].faults["HEAD", "a.bin"] = answer(404, X_Error_Code=code)
    assert refusal(hub).startswith(message)


@pytest.mark.parametrize("where", [("GET", "/tree/"), ("HEAD", "a.bin"), ("GET", "a.bin")])
def test_nobody_waits_an_hour(hub, where):
    hub[0].faults[where] = answer(429, Retry_After="3600")
    assert refusal(hub) == (
        "the hub limits how often it is asked and asks to wait 3600 s: run again then, or set HF_TOKEN for a higher limit"
    )
    hub[0].faults[where] = answer(429, RateLimit='"api";r=0;t=3000')
    assert "asks to wait 3000 s" in refusal(hub)
    if where[0] == "GET" and "tree" in where[1]:
        hub[0].faults[where] = answer(503, Retry_After="3600")
        assert refusal(hub).startswith("the hub has a fault of its own (status 503) and asks to wait 3600 s: run again then")


def test_short_waits_are_kept_to_and_their_sum_is_limited(hub):
    asked = []

    def limited(handler: Handler) -> None:
        asked.append(handler.path)
        answer(429, Retry_After=str(LONGEST_WAIT // 3))(handler)

    hub[0].faults["GET", "/tree/"] = limited
    assert "asks to wait 100 s" in refusal(hub)
    assert len(asked) == 4


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"ETag": '"../../../../escaped"'}, "names a file by a tag that is no digest"),
        ({"X_Linked_Etag": '"/tmp/escaped"'}, "names a file by a tag that is no digest"),
        ({"X_Repo_Commit": "../../../escaped"}, "names a commit that is none"),
        ({"X_Repo_Commit": "main"}, "names a commit that is none"),
    ],
)
def test_names_that_lead_out_of_the_cache_are_refused(hub, tmp_path, named, message):
    hub[0].faults["HEAD", "a.bin"] = answer(200, BODY, **named)
    assert message in refusal(hub)
    assert not list(tmp_path.rglob("escaped*"))


def test_a_commit_that_a_missing_file_names_is_looked_at_too(hub, tmp_path):
    hub[0].faults["HEAD", "a.bin"] = answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit="../../../escaped")
    assert "names a commit that is none" in refusal(hub)
    assert not list(tmp_path.rglob("escaped*"))


@pytest.mark.parametrize("digests", [{"oid": "../../escaped"}, {"lfs": {"oid": "../x", "size": 1}}, {"xetHash": "../../x"}])
def test_digests_of_a_listing_are_looked_at_too(hub, digests):
    entry = {"type": "file", "path": "a.bin", "size": 175, "oid": "0" * 40} | digests
    hub[0].faults["GET", "/tree/"] = answer(200, json.dumps([entry]).encode())
    assert "lists a digest that is none" in refusal(hub)


def test_a_path_of_a_listing_that_leads_out_of_the_cache_is_refused(hub, tmp_path):
    entry = {"type": "file", "path": "../../../escaped.bin", "size": 175, "oid": "0" * 40}
    hub[0].faults["GET", "/tree/"] = answer(200, json.dumps([entry]).encode())
    assert "escaped" in refusal(hub)
    assert not list(tmp_path.rglob("escaped*"))


def test_a_small_file_may_be_sent_on_by_a_longer_page_and_its_size_goes_with_it(hub):
    """As large files are: the hub sends on to another host, and the size is that of the listing."""
    hub[0].faults["GET", "/resolve/"] = answer(302, b"Found, redirecting " * 50, Location="/elsewhere/blob")
    hub[0].faults["GET", "/elsewhere/"] = answer(200, BODY)
    assert (Path(snapshot(hub)) / "a.bin").read_bytes() == BODY


def test_what_is_sent_on_does_not_grow(hub):
    hub[0].faults["GET", "/resolve/"] = answer(302, Location="/elsewhere/blob")
    hub[0].faults["GET", "/elsewhere/"] = endless
    assert re.search("the hub sends more than 175 bytes", refusal(hub))


def test_a_file_may_be_larger_at_another_commit(hub):
    snapshot(hub)
    other, longer = "f" * 40, BODY * 3
    digest = hashlib.sha1(b"blob %d\0" % len(longer) + longer).hexdigest()
    for method in ("HEAD", "GET"):
        hub[0].faults[method, f"/resolve/{other}/a.bin"] = answer(200, longer, ETag=f'"{digest}"', X_Repo_Commit=other)
    with hub_access("x"):
        path = hf_hub_download(REPO, "a.bin", repo_type="dataset", revision=other, endpoint=hub[1])
    assert Path(path).read_bytes() == longer


def test_a_tag_of_another_server_on_the_way_is_none_of_ours(hub, tmp_path):
    """A page that sends on to another address of the hub bears a tag in base64, which nobody makes a file name of."""
    hub[0].faults["HEAD", "/moved/"] = answer(
        307, ETag='W/"25d-Fs5dCPT/AAa0f"', Location=f"/datasets/{REPO}/resolve/{COMMIT}/a.bin"
    )
    with hub_access("x"):
        path = hf_hub_download("org/moved", "a.bin", repo_type="dataset", revision=COMMIT, endpoint=hub[1])
    assert Path(path).read_bytes() == BODY


def test_a_file_that_may_be_missing_is_missing_or_the_hub_does_not_say(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub[1])
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", hub[1] + "/{repo_id}/resolve/{revision}/{filename}"
    )
    assert fetch_if_there(REPO, "a.bin", repo_type="dataset", revision=COMMIT)
    assert fetch_if_there(REPO, "absent.yaml", repo_type="dataset", revision=COMMIT) is None
    hub[0].faults["HEAD", "other.yaml"] = answer(403)
    with pytest.raises(OSError, match=r"^x: the hub forbids it"), hub_access("x"):
        fetch_if_there(REPO, "other.yaml", repo_type="dataset", revision=COMMIT)


def test_a_downloaded_file_of_another_digest_is_damaged(hub):
    path = Path(snapshot(hub)) / "a.bin"
    path.resolve().write_bytes(BODY[:-1] + b"x")
    assert f"to fetch it again, delete {path.resolve()}" in str(damage(path))
