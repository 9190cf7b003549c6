"""Progress of long work: a bar with rate and ETA on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 10.0


def track(
    items: Iterable[T], label: str, total: int | None = None, initial: int = 0, status: Callable[[], str] = lambda: ""
) -> Iterator[T]:
    """Yield the items and show how many of `total` are done; `initial` of them were done before.

    Args:
        items: what is worked on.
        label: what the work is called.
        total: how many there are; None where that is not known, unless they have a length.
        initial: of them were done before.
        status: what else to show, asked after each item; "" for nothing.
    """
    total = total if total is not None or not hasattr(items, "__len__") else initial + len(items)  # pyright: ignore[reportArgumentType]
    if sys.stderr.isatty():
        bar = tqdm(items, desc=label, total=total, initial=initial, dynamic_ncols=True)
        for item in bar:
            yield item
            bar.set_postfix_str(status(), refresh=False)
        return
    start = last = time.monotonic()
    done = 0
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            print(_line(label, initial + done, total, done / (now - start), status()), file=sys.stderr, flush=True)
            last = now
    elapsed = time.monotonic() - start
    line = _line(label, initial + done, total, done / max(elapsed, 1e-9), status())
    print(f"{line}, {elapsed:.1f} s", file=sys.stderr, flush=True)


def _line(label: str, done: int, total: int | None, rate: float, status: str) -> str:
    besides = f", {status}" if status else ""
    if total is None:
        return f"{label}: {done} done, {rate:.1f}/s{besides}"
    eta = f", {(total - done) / rate:.0f} s left" if rate and done < total else ""
    return f"{label}: {done}/{total}, {rate:.1f}/s{eta}{besides}"
