"""Progress of long work: a bar with rate and ETA on a terminal, plain lines elsewhere; and lines that do not run into a bar."""

import sys
import time
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 10.0


def say(text: str) -> None:
    """Print to stdout at once, above a bar that is being shown."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def complain(text: str) -> None:
    """Print to stderr at once, above a bar that is being shown."""
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()


def track(
    items: Iterable[T], label: str, total: int | None = None, initial: int = 0, status: Callable[[], str] = lambda: ""
) -> Generator[T, None, None]:
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
        with tqdm(items, desc=label, total=total, initial=initial, dynamic_ncols=True) as bar:
            for item in bar:
                yield item
                bar.set_postfix_str(status(), refresh=False)
        return
    start = last = time.monotonic()
    done = 0
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES and initial + done != total:  # the last line comes below, with the time
            print(_line(label, initial + done, total, done / (now - start), status()), file=sys.stderr, flush=True)
            last = now
    elapsed = time.monotonic() - start
    line = _line(label, initial + done, total, done / max(elapsed, 1e-9), status())
    print(f"{line}, {elapsed:.1f} s", file=sys.stderr, flush=True)


def _line(label: str, done: int, total: int | None, rate: float, status: str) -> str:
    besides = f", {status}" if status else ""
    pace = f"{rate:.1f}/s" if rate >= 1 or not rate else f"{1 / rate:.1f} s each"
    if total is None:
        return f"{label}: {done} done, {pace}{besides}"
    eta = f", {(total - done) / rate:.0f} s left" if rate and done < total else ""
    return f"{label}: {done}/{total}, {pace}{eta}{besides}"
