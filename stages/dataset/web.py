"""Images from addresses of the web: a list that pins them, or a Bing search that does not."""

import socket
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from functools import cache, partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.response import addinfourl

from stages.dataset.candidates import Candidate
from stages.dataset.config import BingSource, UrlsSource
from stages.dataset.images import RefusedImageError, looks_like_image
from stages.dataset.own_captions import tidy
from stages.pipeline.hub import transfers
from stages.pipeline.tables import read_table

MAX_BYTES = 64 * 2**20
SLOWEST = 2**15
"""Bytes a second: images come one by one, and the largest shall not take hours."""
USER_AGENT = "sd-merge-lora (dataset download; Python urllib)"


def fetch(url: str, timeout: float) -> bytes:
    """The bytes at an http or https address.

    Args:
        url: other schemes are refused: a list from elsewhere must not read files of this machine.
        timeout: seconds without an answer; see `transfers` for the pace of what comes.

    Raises:
        RefusedImageError: not an http address, more than `MAX_BYTES`, too slow, or no good answer.
    """
    _keep_to_limits()
    if not _is_web(url):
        raise RefusedImageError("is not an http or https address")
    request = urllib.request.Request(quote(url, safe=":/?#[]@!$&'()*+,;=%"), headers={"User-Agent": USER_AGENT})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            data = answer.read(MAX_BYTES + 1)
    except (OSError, HTTPException, ValueError) as error:
        raise RefusedImageError(f"cannot be downloaded ({error or type(error).__name__})") from error
    if len(data) > MAX_BYTES:
        raise RefusedImageError(f"is larger than {MAX_BYTES // 2**20} MiB")
    return data


@cache
def _keep_to_limits() -> None:
    """Have urllib, which the search's package uses too, read within limits of size and time; once a process."""
    urllib.request.install_opener(urllib.request.build_opener(_Http, _Https, _Redirects, _Within))


class _Within(urllib.request.BaseHandler):
    """Reads bodies to their end, but for those that have none."""

    def http_response(self, request: urllib.request.Request, response: Any) -> addinfourl:
        """Called by urllib for each answer, redirects and errors among them."""
        with response:
            body = BytesIO(b"".join(transfers.paced(_chunks(response), MAX_BYTES, SLOWEST)))
        whole: Any = addinfourl(body, response.headers, response.url, response.status)
        whole.msg = response.msg  # as urllib's own handlers expect it
        return whole

    https_response = http_response


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    while chunk := response.read1(2**16):
        yield chunk


class _Timed(HTTPConnection):
    """A connection that is hung up if the headers of an answer do not end."""

    def getresponse(self) -> HTTPResponse:
        """Called by urllib."""
        timer = threading.Timer(transfers.WINDOW, self.sock.shutdown, (socket.SHUT_RDWR,))
        timer.daemon = True
        timer.start()
        try:
            return super().getresponse()
        finally:
            timer.cancel()


class _TimedTls(_Timed, HTTPSConnection):
    pass


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(_Timed, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(_TimedTls, req)


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if not _is_web(newurl):
            raise ValueError(f"sends on to {newurl}, which is not an http or https address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _is_web(url: str) -> bool:
    return urlsplit(url).scheme in ("http", "https")


def url_candidates(source: UrlsSource) -> list[Candidate]:
    """The images of an address list, in its order.

    The manifest.csv of an earlier download from the web serves as it is, which is how a search is made reproducible.

    Raises:
        ValueError: the list is empty, lacks a column, or an address has no digest.
    """
    rows = read_table(source.list, ("source", "source_sha256", "licence"))
    if not rows:
        raise ValueError(f"{source.list} lists no addresses")
    for row in rows:
        if len(row["source_sha256"]) != 64:
            raise ValueError(f"{source.list}: {row['source']} has no source_sha256, and addresses change what they give")

    def candidate(row: Mapping[str, str]) -> Candidate:
        url = row["source"]
        load = partial(fetch, url, source.timeout)
        return Candidate(url, url, row["licence"], row["source_sha256"], load, tidy(row.get("caption", "")))

    return [candidate(row) for row in rows]


def search_candidates(source: BingSource, folder: Path) -> list[Candidate]:
    """The first images that a Bing search finds today, in its order.

    Nobody can repeat a search: another day finds other images, and the images' licences are unknown. What was found is
    pinned by the manifest alone; give it to `url_candidates` to have the same images again.

    Args:
        source: what to search for.
        folder: where the downloads go, an existing one.

    Raises:
        OSError: Bing cannot be reached, or finds nothing.
    """
    from bing_image_downloader.bing import Bing

    class Recorder(Bing):
        """Bing's loop, which keeps each address beside its file (the package only prints it) and trusts no scheme."""

        def save_image(self, link: str, file_path: Path) -> None:
            data = fetch(link, self.timeout)
            if not looks_like_image(data):
                raise RefusedImageError("is not an image")  # so that it does not count towards the limit
            file_path.write_bytes(data)
            found.append(Candidate(link, link, "", None, file_path.read_bytes))

    found: list[Candidate] = []
    _keep_to_limits()
    try:
        Recorder(source.query, source.limit, folder, adult="strict", timeout=source.timeout, verbose=False).run()
    except (OSError, HTTPException, ValueError) as error:
        raise OSError(f"Bing cannot be reached ({error}); use a list made earlier: download/source=urls") from error
    if not found:
        raise OSError(f"Bing finds no image for {source.query!r}; try other words, or another source")
    return found
