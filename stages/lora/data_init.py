"""First weights of a LoRA that come from what its layers are given: EVA and CorDA, by PEFT.

EVA (Paischer et al. 2024, arXiv:2410.07170) begins with the directions in which a layer's inputs vary most. CorDA (Yang et al.
2024, arXiv:2406.05223; its instruction-previewed mode) begins with the main directions of each weight as the data weigh them,
and takes them off the weight, as PiSSA does. Both look at training samples, noisy as in training, before the first step.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import EvaConfig, LoraConfig, get_eva_state_dict
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from torch import Tensor, nn

from stages.lora.batches import AnyBatch, Draws, batch_at
from stages.lora.losses import denoising_loss
from stages.lora.run import Run
from stages.pipeline.progress import track

SAMPLES = 256
"""That are looked at, as CorDA's authors do; EVA looks at them again until its directions stay where they are."""
MOST_ROUNDS = 20
"""How often EVA looks at them at most; a few are usual."""


@dataclass(frozen=True)
class Passes:
    """A model that is given samples of the data, as in training.

    Attributes:
        batch: of so many samples and of a number, counted from 0.
        forward: gives the model a batch.
        size: samples of a batch.
        speaks: whether progress is shown.
    """

    batch: Callable[[int, int], AnyBatch]
    forward: Callable[[AnyBatch], object]
    size: int
    speaks: bool = False

    def one_by_one(self) -> None:
        """Give the model each sample alone."""
        numbers = range(SAMPLES)
        for number in track(numbers, "samples", SAMPLES) if self.speaks else numbers:
            self.forward(self.batch(number, 1))


class Rounds:
    """The batches of `Passes`, which are gone through as often as it takes, `MOST_ROUNDS` times at most."""

    def __init__(self, passes: Passes) -> None:
        self.passes, self.given = passes, 0

    def __len__(self) -> int:
        """Batches of a round."""
        return math.ceil(SAMPLES / self.passes.size)

    def __iter__(self) -> Iterator[AnyBatch]:
        """A round."""
        yield from (self.passes.batch(number, self.passes.size) for number in range(len(self)))

    def forward(self, batch: AnyBatch) -> None:
        """Give the model a batch.

        Raises:
            ValueError: it was given too many.
        """
        self.given += 1
        if self.given > MOST_ROUNDS * len(self):
            raise ValueError(
                f"init_lora_weights: eva: after {MOST_ROUNDS} rounds of {SAMPLES} samples its directions still move: take a "
                "lower rank or a larger train_batch_size (a layer needs at least rank positions at once), or gaussian"
            )
        self.passes.forward(batch)


def make_passes(run: Run, model: Any, noise_scheduler: Any, speaks: bool) -> Passes:
    """Passes of a run's instance images through its model, on the run's device, where the model must be."""
    draws = Draws(run.seed, noise_scheduler.config["num_train_timesteps"], run.config.random_flip, run.config)

    def batch(number: int, size: int) -> AnyBatch:
        return batch_at(run.streams[:1], draws, size, number).to(run.device)

    forward = partial(denoising_loss, model, noise_scheduler=noise_scheduler, config=run.config)
    return Passes(batch, forward, run.config.train_batch_size, speaks)


def settings_of(kind: str) -> dict[str, Any]:
    """What PEFT's LoraConfig takes for a kind of first weights: each layer keeps the rank that the settings give it."""
    return {"eva": {"eva_config": EvaConfig(rho=1.0)}, "corda": {"corda_config": CordaConfig(corda_method="ipm")}}.get(kind, {})


def look(model: nn.Module, config: LoraConfig, passes: Passes) -> dict[str, Tensor]:
    """Look at a model's layers before an adapter is added to them.

    Args:
        model: that gets the adapter; CorDA leaves what it found in its layers, where PEFT looks for it.
        config: of the adapter.
        passes: through the model, or through one that it is a part of.

    Returns:
        EVA's first factors, (r, D), by the names of their layers; nothing of CorDA.

    Raises:
        ValueError: EVA's directions do not settle.
    """
    if config.init_lora_weights == "corda":
        preprocess_corda(model, config, run_model=passes.one_by_one)
        return {}
    rounds = Rounds(passes)
    given: dict[str, Any] = {
        "forward_fn": lambda _, batch: rounds.forward(batch),
        "prepare_model_inputs_fn": None,
        "prepare_layer_inputs_fn": _rows,
        "gather_distributed_inputs": False,  # every process looks at all of it
        "show_progress_bar": False,
    }
    return get_eva_state_dict(model, rounds, config, **given)


def _rows(layer_input: Any, model_input: Any, layer_name: str) -> Tensor:
    """All positions of all samples, (N, D), of what a layer is given."""
    given = layer_input[0] if isinstance(layer_input, tuple) else layer_input
    return given.flatten(0, -2)


def take(model: nn.Module, first_factors: dict[str, Tensor]) -> None:
    """Begin an adapter with these first factors."""
    with torch.no_grad():
        for name, factor in first_factors.items():
            layer: Any = model.get_submodule(name)
            layer.lora_A["default"].weight.copy_(factor)
