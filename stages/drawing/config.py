"""What drawing is told. Imports no torch."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from stages.drawing.noise_schedulers import check_noise_scheduler
from stages.encoding.prompt_syntax import Syntax, check_prompt
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
        prompt_syntax: "plain" reads prompts as words; "a1111" as A1111's web UI does (`encoding.prompt_syntax`): weights,
            BREAK, and more tokens than the text encoder takes at once.
    """

    negative_prompt: str
    noise_scheduler: Annotated[str, AfterValidator(check_noise_scheduler)]
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)]
    guidance_scale: NonNegative
    resolution: Resolution
    batch_size: Count
    clip_skip: ClipSkip
    prompt_syntax: Syntax

    def __post_init__(self) -> None:
        """Refuse what is not read in prompts."""
        self.check_prompts(negative_prompt=[self.negative_prompt])

    def check_prompts(self, **prompts: Iterable[str]) -> None:
        """Refuse prompts that are not read whole; `prompts` are lists of them by the names of their settings."""
        for setting, texts in prompts.items():
            for text in texts:
                try:
                    check_prompt(text, self.prompt_syntax)
                except ValueError as error:
                    raise ValueError(f"{setting}: {error}") from error


def sampling_of(config: SamplingConfig) -> dict[str, Any]:
    """The settings of a drawing by name, without what a stage's own config has besides."""
    return {field.name: getattr(config, field.name) for field in fields(SamplingConfig)}
