"""Limits of what is fetched from a network: of its size, and of the pace at which it comes."""

import time
from collections.abc import Callable, Iterable, Iterator

WINDOW = 60.0
"""Seconds over which the pace is measured; as long, the headers of an answer may take."""

SILENCE = 30.0
"""Seconds without a byte, where nothing else is said."""

SLOWEST = 4096
"""Bytes a second of one file among several that share a line: what comes slower is not coming."""


class TransferError(OSError):
    """A server sends too much, too slowly, or what no good server sends; the message says which."""


def paced(
    chunks: Iterable[bytes], limit: int, slowest: int = SLOWEST, clock: Callable[[], float] = time.monotonic
) -> Iterator[bytes]:
    """Pass chunks on as they come, and stop at one too many or too late.

    A limit of one read's time does not do: a server that sends a byte now and then would keep it for days.

    Args:
        chunks: as they come from the network; only the time until the next one comes is counted.
        limit: most bytes in all.
        slowest: least bytes a second; what is whole within the first `WINDOW` may come as it likes.
        clock: seconds.

    Raises:
        TransferError: more than `limit` bytes, or less than `slowest` bytes a second over `WINDOW` seconds.
    """
    total = recent = 0
    waited = 0.0
    source = iter(chunks)
    while True:
        start = clock()
        chunk = next(source, None)
        waited += clock() - start
        if chunk is None:
            return
        total, recent = total + len(chunk), recent + len(chunk)
        if total > limit:
            raise TransferError(f"sends more than {size(limit)}, which is all that is expected")
        if waited >= WINDOW:
            if recent < waited * slowest:
                raise TransferError(f"sends too slowly: {size(recent)} in {waited:.0f} s; try again later")
            recent, waited = 0, 0.0
        yield chunk


def size(count: int) -> str:
    """A number of bytes, in words."""
    return f"{count} bytes" if count < 2**20 else f"{count / 2**20:.0f} MiB"
