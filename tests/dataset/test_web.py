import contextlib
import hashlib
import html
import io
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from stages.dataset import web
from stages.dataset.config import BingSource, UrlsSource
from stages.dataset.images import RefusedImageError
from stages.pipeline.hub import transfers
from tests.dataset.pictures import encoded, noise

DATA = encoded(noise(0))
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def answers(monkeypatch):
    """The web: address to bytes or an error; what is not in it cannot be reached."""
    pages = {}

    def urlopen(request, timeout):
        answer = pages.get(request.full_url.split("?")[0], urllib.error.URLError("no route"))
        if isinstance(answer, Exception):
            raise answer
        return io.BytesIO(answer.pop(0) if isinstance(answer, list) else answer)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return pages


def urls(path):
    return UrlsSource(kind="urls", list=path, timeout=1)


def bing(limit):
    return BingSource(kind="bing", query="8-bit", limit=limit, timeout=1)


def address_list(tmp_path, *rows):
    path = tmp_path / "list.csv"
    path.write_text("source,source_sha256,licence\n" + "".join(f"{row}\n" for row in rows))
    return path


def test_a_list_gives_its_images_in_order_and_checks_them(tmp_path, answers):
    answers["https://a.org/%C3%A9.png"] = DATA
    answers["https://b.org/x"] = DATA + b"x"
    listed = address_list(tmp_path, f"https://a.org/é.png,{DIGEST},CC0", f"https://b.org/x,{DIGEST},")
    good, changed = web.url_candidates(urls(listed))
    assert (good.read(), good.licence) == (DATA, "CC0")
    with pytest.raises(RefusedImageError, match="it was changed since"):
        changed.read()


def test_a_list_may_give_captions(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text(f"source,source_sha256,licence,caption\nhttps://a.org,{DIGEST},CC0,asuka\nhttps://b.org,{DIGEST},CC0,\n")
    assert [item.caption for item in web.url_candidates(urls(path))] == ["asuka", ""]


@pytest.mark.parametrize(
    ("rows", "message"),
    [([], "lists no addresses"), (["https://a.org/x.png,,CC0"], r"https://a\.org/x\.png has no source_sha256")],
)
def test_a_list_that_pins_nothing_is_refused(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        web.url_candidates(urls(address_list(tmp_path, *rows)))


def test_addresses_of_this_machine_are_refused(tmp_path):
    path = tmp_path / "secret.png"
    path.write_bytes(DATA)
    for url in (path.as_uri(), str(path), "ftp://example.org/x.png"):
        with pytest.raises(RefusedImageError, match="not an http"):
            web.fetch(url, 1)


def test_an_unreachable_address_and_an_endless_answer_are_refused(answers, monkeypatch):
    with pytest.raises(RefusedImageError, match=r"cannot be downloaded .*no route"):
        web.fetch("https://nowhere.org", 1)
    monkeypatch.setattr(web, "MAX_BYTES", 10)
    answers["https://a.org"] = b"x" * 11
    with pytest.raises(RefusedImageError, match="larger"):
        web.fetch("https://a.org", 1)


class Answering(BaseHTTPRequestHandler):
    """Answers by the path: what a good server does, and what no good one does."""

    def do_GET(self) -> None:
        kind = self.path.strip("/")
        if kind == "slow-headers":
            self.drip(b"HTTP/1.1 200 OK\r\nX-Padding: ")
            return
        self.send_response(302 if kind.startswith("moved") else 503 if kind == "busy" else 200)
        if kind.startswith("moved"):
            self.send_header("Location", "/good" if kind == "moved" else "ftp://127.0.0.1/x")
        if kind == "busy":
            self.send_header("Retry-After", "3600")
        self.end_headers()
        if kind == "endless":
            for _ in range(10_000):
                self.wfile.write(bytes(65_536))
        elif kind == "slow":
            self.drip()
        elif kind in ("good", ""):
            self.wfile.write(DATA)

    def drip(self, first: bytes = b"") -> None:
        for byte in first + bytes(300):  # for half a minute
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(0.1)

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("path", ["good", "moved"])
def test_a_good_server_is_not_in_the_way(server, path):
    assert web.fetch(f"{server}/{path}", 5) == DATA


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("slow", "sends too slowly"),
        ("slow-headers", "cannot be downloaded"),
        ("endless", "sends more than 1 MiB"),
        ("busy", "503"),
        ("moved-elsewhere", "sends on to ftp://.*not an http"),
    ],
)
def test_a_bad_server_costs_one_image_and_little_time(server, monkeypatch, path, message):
    monkeypatch.setattr(web, "MAX_BYTES", 2**20)
    monkeypatch.setattr(transfers, "WINDOW", 1.0)
    start = time.monotonic()
    with pytest.raises(RefusedImageError, match=message):
        web.fetch(f"{server}/{path}", 5)
    assert time.monotonic() - start < 15


def bing_page(*links: str) -> bytes:
    return "".join(html.escape(f'"murl":"{link}"') for link in links).encode()


SEARCH = "https://www.bing.com/images/async"


def test_a_search_keeps_the_address_of_each_image(tmp_path, answers):
    answers[SEARCH] = [
        bing_page(
            "https://a.org/1.png", "https://gone.org/2.png", "file:///etc/passwd", "https://b.org/", "https://a.org/3.png"
        ),
        b"",
    ]
    answers["https://a.org/1.png"] = answers["https://a.org/3.png"] = DATA
    answers["https://b.org/"] = b"<html>buy this picture</html>"
    found = web.search_candidates(bing(3), tmp_path)
    assert [item.source for item in found] == ["https://a.org/1.png", "https://a.org/3.png"]
    assert found[1].read() == DATA


def test_a_search_stops_at_its_limit(tmp_path, answers):
    answers[SEARCH] = [bing_page(*(f"https://a.org/{number}" for number in range(5)))]
    answers.update({f"https://a.org/{number}": DATA for number in range(5)})
    assert len(web.search_candidates(bing(2), tmp_path)) == 2


def test_an_unreachable_and_a_fruitless_search_say_what_to_do(tmp_path, answers):
    with pytest.raises(OSError, match=r"Bing cannot be reached .*download/source=urls"):
        web.search_candidates(bing(2), tmp_path)
    answers[SEARCH] = b""
    with pytest.raises(OSError, match="finds no image for '8-bit'"):
        web.search_candidates(bing(2), tmp_path)
