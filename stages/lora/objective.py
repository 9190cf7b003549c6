"""What is asked of the model at each step: at which timesteps, of what noise, and how an error counts. Imports no torch."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from stages.pipeline.config import NonNegative, Positive, strict


@dataclass(frozen=True, config=strict)
class LossConfig:
    """How an error counts.

    Attributes:
        loss_type: "l2" squares it; "huber" and "smooth_l1" grow linearly where it is large, so that an image that does not
            belong there counts less (pseudo-Huber, Khrapov et al. 2024, arXiv:2403.16728; kohya's names).
        huber_c: from which error on they are linear, at the timestep where `huber_schedule` gives it as it is.
        huber_schedule: how that changes with the timestep: "constant"; "exponential", from 1 without noise to huber_c in noise
            alone; "snr", from 1 to huber_c with the share of noise.
        snr_gamma: min-SNR loss weighting (Hang et al. 2023 recommend 5); null weights all timesteps alike.
        debiased_estimation: weight a timestep by 1 / sqrt(SNR) (Yu et al. 2023, arXiv:2310.08442).
    """

    loss_type: Literal["l2", "huber", "smooth_l1"]
    huber_c: Annotated[float, Field(gt=0, le=1)]
    huber_schedule: Literal["constant", "exponential", "snr"]
    snr_gamma: Positive | None
    debiased_estimation: bool

    def __post_init__(self) -> None:
        """Refuse two weightings at once."""
        if self.snr_gamma is not None and self.debiased_estimation:
            raise ValueError("debiased_estimation: given True: not together with snr_gamma: both weight the timesteps")


@dataclass(frozen=True, config=strict)
class NoiseConfig:
    """Which noise, and at which timesteps.

    Attributes:
        min_timestep: the first timestep that is trained, counted from 0.
        max_timestep: the one after the last; null for all that the noise schedule has.
        timestep_distribution: between them, "uniform"; or "logit_normal", where the logarithm of the odds of how far it is has
            the mean logit_mean and the deviation logit_std (Esser et al. 2024, section 3.1, arXiv:2403.03206).
        logit_mean: above 0 there are more timesteps of much noise.
        logit_std: the less, the more of them are alike.
        noise_offset: strength of a shift of the noise that a whole channel shares; 0 for none, 0.1 is usual.
        multires_noise_iterations: so many layers of ever coarser noise, added up; 0 for plain noise, 6 is usual (pyramid noise,
            kohya's name).
        multires_noise_discount: strength of each layer as a share of the one before.
        input_perturbation: strength of further noise in what the model is given and is not to predict (Ning et al. 2023,
            arXiv:2301.11706, recommend 0.1); 0 for none.
    """

    min_timestep: Annotated[int, Field(ge=0)]
    max_timestep: Annotated[int, Field(ge=1)] | None
    timestep_distribution: Literal["uniform", "logit_normal"]
    logit_mean: Annotated[float, Field(ge=-10, le=10)]
    logit_std: Positive
    noise_offset: NonNegative
    multires_noise_iterations: Annotated[int, Field(ge=0, le=10)]
    multires_noise_discount: Annotated[float, Field(gt=0, lt=1)]
    input_perturbation: NonNegative

    def __post_init__(self) -> None:
        """Refuse a range without a timestep, and two ways of the same."""
        if self.max_timestep is not None and self.max_timestep <= self.min_timestep:
            raise ValueError(f"max_timestep: given {self.max_timestep}: must be greater than min_timestep, {self.min_timestep}")
        if self.noise_offset and self.multires_noise_iterations:
            raise ValueError("noise_offset: not together with multires_noise_iterations: both make noise of low frequencies")
