"""Being interrupted: by Ctrl-C, by the scheduler of a cluster, by a terminal that is closed."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SECONDS_UNTIL_AGAIN = 1.0
"""A signal sooner after the first is the same one: a scheduler sends it to each process, and so does the parent process."""

Handler = Callable[[int, FrameType | None], None]


class Interrupted(KeyboardInterrupt):
    """What a signal of `SIGNALS` raises; the message says how to go on, "" where there is nothing to say."""

    def __init__(self, signal_number: int, message: str = "") -> None:
        super().__init__(message)
        self.signal_number = signal_number


class Interruption:
    """What `postponed` notes: the signal that came, or None."""

    signal_number: int | None = None

    def __init__(self, at_first: Callable[[], None]) -> None:
        self.at_first = at_first
        self.until_again = 0.0

    def note(self, signal_number: int, frame: FrameType | None = None) -> None:
        """Note a signal; the second one raises `Interrupted`."""
        if self.signal_number is None:
            self.signal_number = signal_number
            self.until_again = time.monotonic() + SECONDS_UNTIL_AGAIN
            self.at_first()
        elif time.monotonic() >= self.until_again:
            raise Interrupted(signal_number)


def raise_interrupted(signal_number: int, frame: FrameType | None = None) -> None:
    """Let a signal be an exception, so that what is half done is cleared away."""
    raise Interrupted(signal_number)


@contextmanager
def handled(handler: Handler = raise_interrupted) -> Iterator[None]:
    """Have `handler` called for each of `SIGNALS` within the block.

    A signal that the process was started to ignore, as under nohup, stays ignored. Only the main thread can handle signals;
    in others, nothing is changed.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


@contextmanager
def postponed(at_first: Callable[[], None] = lambda: None) -> Iterator[Interruption]:
    """Within the block, only note the first signal, for work that can stop at certain points; the second one raises.

    Args:
        at_first: called when the first signal comes.
    """
    interruption = Interruption(at_first)
    with handled(interruption.note):
        yield interruption
