"""The two halves of a training step, recorded once and launched whole: gradients, for each shape of batch, and the update.

Between them several processes add up their gradients, and before them the next batch is copied to where the recording reads it.
The first update after a start is made operation by operation, because the optimizer makes its state then; the numbers are the
same either way.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stages.lora.batches import AnyBatch, tensors_of
from stages.pipeline.recorded import Recorder, record


class RecordedGradients:
    """Adds the gradients of a batch to those that are there.

    Args:
        gradients: does it operation by operation; gives the loss, a scalar.
        parameters: that get gradients. Their `grad` must not be let go of in between, but set to zero.
        recorder: of the device.
        device: where all this is.
    """

    def __init__(
        self,
        gradients: Callable[[AnyBatch], Tensor],
        parameters: Mapping[str, nn.Parameter],
        recorder: Recorder,
        device: torch.device,
    ) -> None:
        self.gradients, self.parameters, self.recorder, self.device = gradients, parameters, recorder, device
        self.recorded: dict[Any, tuple[AnyBatch, Tensor, Callable[[], None]]] = {}

    def __call__(self, batch: AnyBatch) -> Tensor:
        """The loss of a batch, on the device; a shape that was not there before is recorded."""
        shape = tuple((tensor.shape, tensor.dtype) for tensor in tensors_of(batch))
        if shape not in self.recorded:
            self.recorded[shape] = self._record(batch)
        read, loss, launch = self.recorded[shape]
        for place, tensor in zip(tensors_of(read), tensors_of(batch), strict=True):
            # Pinned memory is copied while the device still works at the step before.
            place.copy_(tensor.pin_memory() if self.device.type == "cuda" else tensor, non_blocking=True)
        launch()
        return loss.clone()

    def _record(self, batch: AnyBatch) -> tuple[AnyBatch, Tensor, Callable[[], None]]:
        read = batch.apply(lambda tensor: tensor.to(self.device, copy=True))
        loss = torch.zeros((), device=self.device)

        def work() -> None:
            loss.copy_(self.gradients(read))

        before = {name: None if each.grad is None else each.grad.clone() for name, each in self.parameters.items()}
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            launch = record(self.recorder, work)
        for name, parameter in self.parameters.items():
            gradient = before[name]
            if gradient is not None and parameter.grad is not None:
                parameter.grad.copy_(gradient)
            elif parameter.grad is not None:
                parameter.grad.zero_()
        return read, loss, launch


class RecordedUpdate:
    """Makes an optimizer step, at the learning rate that the optimizer has then.

    Args:
        update: does it operation by operation; gives the gradients' norm, a scalar. It leaves gradients of zero.
        optimizer: able to be recorded (`capturable`).
        recorder: of the device.
        device: where all this is.
    """

    def __init__(
        self, update: Callable[[], Tensor], optimizer: torch.optim.Optimizer, recorder: Recorder, device: torch.device
    ) -> None:
        self.update, self.optimizer, self.recorder = update, optimizer, recorder
        self.rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self.norm = torch.zeros((), device=device)
        self.warm = False
        self.launch: Callable[[], None] | None = None

    def __call__(self) -> Tensor:
        """The norm of the gradients, on the device."""
        for rate, group in zip(self.rates, self.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        if not self.warm:
            self.recorder.warm_up(self._work)
            self.warm = True
        else:
            self.launch = self.launch or self.recorder.record(self._work)
            self.launch()
        return self.norm.clone()

    def _work(self) -> None:
        groups = self.optimizer.param_groups
        numbers = [group["lr"] for group in groups]
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate  # a number would be recorded as it is now
        try:
            self.norm.copy_(self.update())
        finally:
            for group, number in zip(groups, numbers, strict=True):
                group["lr"] = number
