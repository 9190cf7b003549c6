"""Several processes that train one model: each takes its samples of every batch, and all add up their gradients.

Each image has the weight in the loss that it has in the whole batch. So the losses and the gradients of the processes, added
up, are those of the whole batch, however it was divided, and every process makes the same optimizer step. A program that does
not call `run_processes` is one process: `own_samples` then gives the whole batch, and `add_up` changes nothing.
"""

import logging
import multiprocessing
import os
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as distributed
from accelerate import PartialState
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from stages.lora.batches import AnyBatch
from stages.pipeline.interruption import Interrupted, handled, postponed
from stages.pipeline.torch_runtime import set_up_process


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


def any_process(asked: bool, device: torch.device, waits: bool) -> bool:
    """Whether any of the processes asks for an end; the same answer in each of them, which all call this at the same step.

    One whose parent has died asks for it by itself.

    Args:
        asked: whether this one does.
        device: that they compute on.
        waits: whether this process has waited for its GPU just now; elsewhere the answer is False, because it would have to.
    """
    if process_count() == 1:
        return asked
    if device.type == "cuda" and not waits:
        return False
    flag = torch.tensor(float(asked or is_orphan()), device=device)
    distributed.all_reduce(flag)
    return bool(flag)


def is_orphan() -> bool:
    """Whether the process that started this one has died."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


def wait_for_all() -> None:
    """Go on when every process is here."""
    if process_count() > 1:
        distributed.barrier()


def refuse_torchrun() -> None:
    """Refuse to be one of several processes that something else started: they would write over each other.

    Raises:
        ValueError: torchrun, `accelerate launch` or the like started this process as one of several.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1 and not distributed.is_initialized():
        raise ValueError(
            f"num_processes: torchrun or the like started {count} processes: a training starts them itself; "
            f"run it by itself, and set num_processes to {count}"
        )


def run_processes(count: int, device: torch.device, function: Callable[..., None], *arguments: Any) -> None:
    """Run a function in so many new processes at once, `function(*arguments)`, each with its share of the threads.

    They are started as torchrun starts them, on this machine, and made one group by Accelerate.

    Args:
        count: of the processes.
        device: what they compute on; if that is a GPU and there is one for each, each gets its own.
        function: what each process does.
        arguments: of the function.

    Raises:
        ValueError: one of the processes failed, for whatever reason; what it said is the message.
        Interrupted: a signal came. It is passed on to the processes, and they are waited for; a second one ends them at once.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,  # a run that is started again goes on from its checkpoint
        monitor_interval=0.1,
        signals_to_handle="SIGQUIT",  # others are handled here: torch would end the processes before they write a checkpoint
    )
    threads = max(1, torch.get_num_threads() // count)
    deterministic, tf32 = torch.are_deterministic_algorithms_enabled(), torch.backends.cuda.matmul.allow_tf32
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what it says is said here, in one line
    with postponed(pass_on) as interruption:
        try:
            ends = elastic_launch(config, _process)((threads, deterministic, tf32), device, function, arguments)
        except ChildFailedError as error:
            if interruption.signal_number is None:
                raise ValueError(f"a training process failed: {_message(error)}") from error
            ends = {}
    number = interruption.signal_number or max(ends.values(), default=0)
    if number:
        raise Interrupted(number, "the same command goes on from the last checkpoint")


def pass_on() -> None:
    """Ask the processes that this one started to end."""
    for process in multiprocessing.active_children():
        process.terminate()


def _message(error: ChildFailedError) -> str:
    """What the process that failed first said."""
    message: Any = error.get_first_failure()[1].message
    return message["message"] if isinstance(message, dict) else message


@record
def _process(
    settings: tuple[int, bool, bool], device: torch.device, function: Callable[..., None], arguments: Sequence[Any]
) -> int:
    """What each process does; the number of the signal that interrupted it, or 0."""
    interrupted_by = 0
    os.environ["OMP_NUM_THREADS"] = str(settings[0])  # else Accelerate chooses a number
    own_gpus = device.type == "cuda" and torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    try:
        with handled():
            state = PartialState(cpu=not own_gpus)
            set_up_process(*settings)
            try:
                function(*arguments)
            finally:
                state.destroy_process_group()
    except Interrupted as interrupted:
        interrupted_by = interrupted.signal_number
    if is_orphan():
        raise SystemExit(128 + interrupted_by)  # nobody is there to take an answer
    return interrupted_by
