import pytest

from stages.pipeline.hub.transfers import SLOWEST, WINDOW, TransferError, paced


class Line:
    """A line of a fixed rate, and the clock beside it; nothing sleeps."""

    def __init__(self, rate: float, chunk: int, total: int):
        self.rate, self.chunk, self.total, self.now = rate, chunk, total, 0.0

    def __iter__(self):
        for _ in range(self.total // self.chunk):
            self.now += self.chunk / self.rate
            yield bytes(self.chunk)

    def clock(self) -> float:
        return self.now


def received(line: Line, limit: int) -> int:
    return sum(len(chunk) for chunk in paced(line, limit, clock=line.clock))


def test_what_comes_is_passed_on_up_to_the_limit():
    assert list(paced([b"ab", b"", b"c"], 3)) == [b"ab", b"", b"c"]
    with pytest.raises(TransferError, match="sends more than 2 bytes"):
        list(paced([b"ab", b"c"], 2))


@pytest.mark.parametrize("share", [1, 8])  # one file, or eight at once
def test_a_large_file_over_a_slow_line_comes_whole(share):
    line = Line(rate=200_000 / share, chunk=65_536, total=2**31)
    assert received(line, 2**31) == 2**31
    assert line.now > 10_000 * share  # hours


@pytest.mark.parametrize("rate", [0.1, 1, SLOWEST / 2])
def test_a_byte_now_and_then_ends_after_the_window(rate):
    line = Line(rate=rate, chunk=1, total=10**6)
    with pytest.raises(TransferError, match="sends too slowly"):
        received(line, 10**6)
    assert WINDOW <= line.now <= WINDOW + 1 / rate


def test_a_line_that_dries_up_is_noticed_after_gigabytes():
    line = Line(rate=1e8, chunk=65_536, total=2**30)
    with pytest.raises(TransferError, match="too slowly"):
        for count, _ in enumerate(paced(line, 2**30, clock=line.clock)):
            if count == 5_000:
                line.rate = 100


def test_a_slow_reader_is_not_the_servers_fault():
    line = Line(rate=1e6, chunk=1000, total=10_000)
    for _ in paced(line, 10_000, clock=line.clock):
        line.now += 1000  # the disk is slow
