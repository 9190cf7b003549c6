"""Several processes that train one model: each takes its samples of every batch, and all add up their gradients.

Weights of samples are those of the whole batch, so the sum over the processes is the loss of the whole batch, whatever each
of them got; every process then makes the same optimizer step. Outside of `run_processes` there is one process, and nothing
here does anything.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor

from stages.lora.batches import AnyBatch


def process_number() -> int:
    """Which of the processes this is; 0 is the one that writes."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def process_count() -> int:
    """How many processes share each batch."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def own_samples(batch: AnyBatch) -> AnyBatch:
    """This process's samples of a batch, each with its weight in the whole batch."""
    count = process_count()
    return batch if count == 1 else batch.samples(slice(process_number(), None, count))


@torch.no_grad()
def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over the processes; one message for all of them."""
    if process_count() == 1:
        return
    together = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(together)
    for tensor, part in zip(tensors, together.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def run_processes(count: int, function: Callable[..., None], *arguments: Any) -> None:
    """Run a function in so many new processes at once, `function(*arguments)`, each with its share of the threads.

    Raises:
        ValueError: one of the processes failed, for whatever reason; what it said is the message.
    """
    from torch.multiprocessing.spawn import ProcessException

    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        threads = max(1, torch.get_num_threads() // count)
        deterministic = torch.are_deterministic_algorithms_enabled()
        try:
            torch.multiprocessing.spawn(
                _process, (count, threads, deterministic, str(meeting), function, arguments), nprocs=count
            )
        except ProcessException as error:
            raise ValueError(f"a training process failed: {str(error).strip().splitlines()[-1]}") from error


def _process(
    number: int,
    count: int,
    threads: int,
    deterministic: bool,
    meeting: str,
    function: Callable[..., None],
    arguments: Sequence[Any],
) -> None:
    """What each process does."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    on_gpus = torch.cuda.is_available() and torch.cuda.device_count() >= count
    if on_gpus:
        torch.cuda.set_device(number)
    backend = "nccl" if on_gpus else "gloo"
    distributed.init_process_group(backend, init_method=f"file://{meeting}", rank=number, world_size=count)
    try:
        function(*arguments)
    finally:
        distributed.destroy_process_group()
