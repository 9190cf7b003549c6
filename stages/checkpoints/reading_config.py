"""How a checkpoint is read where there is a choice."""

from typing import Literal

from pydantic.dataclasses import dataclass

from stages.pipeline.config import strict


@dataclass(frozen=True, config=strict)
class ReadingConfig:
    """How to read a checkpoint.

    Attributes:
        fill: Whether a component that the checkpoint lacks (a VAE, a text encoder) is taken from the directory with the
            configs, not left out.
        ema: Whether the UNet is the exponential moving average of its weights, which some single files hold beside them.
        prediction_type: What the UNet predicts; null for what the file, a .yaml beside it, or the scheduler's config says.
    """

    fill: bool
    ema: bool
    prediction_type: Literal["epsilon", "v_prediction"] | None


AS_IT_IS = ReadingConfig(fill=False, ema=False, prediction_type=None)
"""The weights that a checkpoint holds, and what it says of them."""
