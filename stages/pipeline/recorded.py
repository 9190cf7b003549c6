"""Work that a device does again and again: recorded once, and launched whole from then on.

A step of a training is some thousand operations. Launched one by one from Python they take longer than the device does with
them; a CUDA graph launches them at once (https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs). What is recorded must
read and write the same memory each time, must not wait for the device, and must depend on no number that Python holds.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

WARM_UPS = 3
"""How often work is done before it is recorded: libraries choose their kernels and workspaces at the first calls."""


class Recorder(Protocol):
    """What records work on a device."""

    def warm_up(self, work: Callable[[], object]) -> None:
        """Do it as it will be recorded."""
        ...

    def record(self, work: Callable[[], object]) -> Callable[[], None]:
        """Record it, without doing it; what is returned does it."""
        ...


class CudaGraphs:
    """Records CUDA graphs, all of which share one pool of memory: nothing but what their callers hold outlives a launch."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def warm_up(self, work: Callable[[], object]) -> None:
        """See `Recorder`."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            work()
        torch.cuda.current_stream().wait_stream(self.stream)

    def record(self, work: Callable[[], object]) -> Callable[[], None]:
        """See `Recorder`; other threads may go on using the device."""
        graph = torch.cuda.CUDAGraph()
        capture = torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local")
        with no_garbage_collected(), capture:
            work()
        return graph.replay


class OneByOne:
    """Records nothing: work is done operation by operation each time, with the arithmetic that it has where it is recorded."""

    def warm_up(self, work: Callable[[], object]) -> None:
        """See `Recorder`."""
        work()

    def record(self, work: Callable[[], object]) -> Callable[[], None]:
        """See `Recorder`."""

        def launch() -> None:
            work()

        return launch


@contextmanager
def no_garbage_collected() -> Iterator[None]:
    """Collect garbage before, and none within: a graph that is let go of ends a capture that is under way."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def record(recorder: Recorder, work: Callable[[], object]) -> Callable[[], None]:
    """Record work that was done a few times before; what is returned does it."""
    for _ in range(WARM_UPS):
        recorder.warm_up(work)
    return recorder.record(work)


def make_recorder(cuda_graphs: bool, device: torch.device) -> Recorder | None:
    """What records for a device; None where each operation is launched by itself."""
    return CudaGraphs(device) if cuda_graphs and device.type == "cuda" else None
