"""A UNet that is recorded once for each shape while images are drawn, and launched whole (`stages.pipeline.recorded`)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from stages.pipeline.recorded import Recorder, record


@contextmanager
def recorded(unet: nn.Module, recorder: Recorder | None) -> Iterator[None]:
    """Within the block a UNet is recorded at its first call with each shape; its weights must stay as they are.

    Args:
        unet: called as `StableDiffusionPipeline` calls it.
        recorder: of its device; None leaves the UNet alone.
    """
    if recorder is None:
        yield
        return
    own: Any = unet
    own.forward = RecordedForward(unet.forward, recorder)
    try:
        yield
    finally:
        del own.forward


class RecordedForward:
    """The forward pass of a UNet, without gradients.

    Args:
        forward: the pass itself.
        recorder: of its device.
    """

    def __init__(self, forward: Callable[..., tuple[Tensor, ...]], recorder: Recorder) -> None:
        self.forward, self.recorder = forward, recorder
        self.recordings: dict[Any, tuple[list[Tensor], Tensor, Callable[[], None]]] = {}

    def __call__(self, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, **rest: Any) -> tuple[Tensor, ...]:
        """The prediction, as a tuple of one; what is given beside the three is no tensor, and the same at each step."""
        if isinstance(timestep, float | int):
            timestep = torch.tensor(timestep)
        given = [sample, timestep.to(sample.device), encoder_hidden_states]
        shape = (*((tensor.shape, tensor.dtype) for tensor in given), tuple(sorted(rest)))
        if shape not in self.recordings:
            self.recordings[shape] = self._record(given, rest)
        read, prediction, launch = self.recordings[shape]
        for place, tensor in zip(read, given, strict=True):
            place.copy_(tensor)
        launch()
        return (prediction.clone(),)

    def _record(self, given: list[Tensor], rest: dict[str, Any]) -> tuple[list[Tensor], Tensor, Callable[[], None]]:
        read = [tensor.clone() for tensor in given]
        prediction = torch.empty_like(self.forward(*read, **rest)[0])

        def work() -> None:
            prediction.copy_(self.forward(*read, **rest)[0])

        return read, prediction, record(self.recorder, work)
