"""What drawing is told. Imports no torch."""

from dataclasses import fields
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from stages.drawing.noise_schedulers import check_noise_scheduler
from stages.pipeline.config import ClipSkip, Count, NonNegative, Resolution, strict


@dataclass(frozen=True, config=strict)
class SamplingConfig:
    """How images are drawn, by every stage that draws some.

    Attributes:
        negative_prompt: what to steer away from, with every prompt; "" for nothing.
        noise_scheduler: the sampler, a key of `noise_schedulers.NOISE_SCHEDULERS`.
        num_inference_steps: denoising steps.
        guidance_scale: weight of the prompt; at 1 or less the negative prompt has no effect and an image costs half.
        resolution: pixels of one side.
        batch_size: images at once, always of one prompt. Bytes depend on it.
        clip_skip: layers of the text encoder left out at its end; 0 uses all (A1111 calls that 1).
    """

    negative_prompt: str
    noise_scheduler: Annotated[str, AfterValidator(check_noise_scheduler)]
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)]
    guidance_scale: NonNegative
    resolution: Resolution
    batch_size: Count
    clip_skip: ClipSkip


def sampling_of(config: SamplingConfig) -> dict[str, Any]:
    """The settings of a drawing by name, without what a stage's own config has besides."""
    return {field.name: getattr(config, field.name) for field in fields(SamplingConfig)}
