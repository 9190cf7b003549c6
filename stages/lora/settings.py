"""What one training run is told: the leaves that both LoRA stages have. Imports no torch."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from stages.pipeline.config import Count, NonNegative, Positive, Seed, Text, strict

Step = Annotated[int, Field(ge=0)]


def _number_or_rank(value: Any) -> Any:
    """Refuse other values with one message; pydantic's own has one for each half of the union."""
    if value != "rank" and not (isinstance(value, int | float) and value > 0):
        raise ValueError('give a number greater than 0, or "rank"')
    return value


LoraAlpha = Annotated[float | Literal["rank"], BeforeValidator(_number_or_rank)]


@dataclass(frozen=True, config=strict)
class TrainingConfig:
    """One training run of a LoRA on a UNet.

    Attributes:
        seed: of the adapter's first weights, the order of the images, noise, timesteps and augmentation.
        lora_alpha: the adapter's output is scaled by lora_alpha / rank; "rank" keeps that at 1 for every rank.
        target_modules: layers that get an adapter, by the end of their names.
        init_lora_weights: first weights; either way the adapter begins as nothing added.
        max_train_steps: optimizer steps.
        train_batch_size: images of one forward pass.
        gradient_accumulation_steps: forward passes of one optimizer step.
        learning_rate: the highest one, reached after the warm-up.
        lr_scheduler: its course afterwards, by diffusers' names.
        lr_warmup_steps: optimizer steps in which it rises from 0; "constant" has none.
        lr_num_cycles: restarts of cosine_with_restarts.
        lr_power: exponent of polynomial.
        adam_beta1: AdamW's decay of the mean of gradients.
        adam_beta2: AdamW's decay of the mean of squared gradients.
        adam_weight_decay: share of a weight that is taken off at each step, times the learning rate.
        adam_epsilon: added to AdamW's denominator.
        max_grad_norm: gradients are scaled down to this norm, over all trained weights; null leaves them.
        snr_gamma: min-SNR loss weighting (Hang et al. 2023 recommend 5); null weights all timesteps alike.
        noise_offset: strength of a shift of the noise that a whole channel shares; 0 for none, 0.1 is usual.
        random_flip: show half of the images as their mirror images.
        gradient_checkpointing: compute activations twice instead of keeping them: slower, and less memory.
        checkpointing_steps: optimizer steps between two checkpoints of an unfinished run.
        logging_steps: optimizer steps between two rows of history.csv.
    """

    seed: Seed
    lora_alpha: LoraAlpha
    target_modules: Annotated[tuple[Text, ...], Field(min_length=1)]
    init_lora_weights: Literal["gaussian", "kaiming"]
    max_train_steps: Count
    train_batch_size: Count
    gradient_accumulation_steps: Count
    learning_rate: Positive
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]
    lr_warmup_steps: Step
    lr_num_cycles: Count
    lr_power: Positive
    adam_beta1: Annotated[float, Field(ge=0, lt=1)]
    adam_beta2: Annotated[float, Field(ge=0, lt=1)]
    adam_weight_decay: NonNegative
    adam_epsilon: Positive
    max_grad_norm: Positive | None
    snr_gamma: Positive | None
    noise_offset: NonNegative
    random_flip: bool
    gradient_checkpointing: bool
    checkpointing_steps: Count
    logging_steps: Count

    def __post_init__(self) -> None:
        """Refuse a warm-up that the schedule ignores or that never ends."""
        if self.lr_scheduler == "constant" and self.lr_warmup_steps:
            raise ValueError("lr_warmup_steps: the schedule constant has none; take constant_with_warmup, or set this to 0")
        if self.lr_warmup_steps >= self.max_train_steps:
            raise ValueError(f"lr_warmup_steps: given {self.lr_warmup_steps}: must be less than max_train_steps")

    @property
    def effective_batch_size(self) -> int:
        """Images of one optimizer step."""
        return self.train_batch_size * self.gradient_accumulation_steps
