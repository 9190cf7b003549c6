"""The loss of a denoising model, and how timesteps are weighted in it."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stages.lora.batches import Batch, MixedBatch
from stages.lora.objective import LossConfig

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, UNet2DConditionModel


def signal_to_noise_ratio(alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """SNR of noisy latents at their timesteps, shape (B,): alpha_t^2 / sigma_t^2 of Kingma et al. 2021 (arXiv:2107.00630).

    It is 0 at the last timestep of a zero-terminal-SNR schedule.
    """
    alpha_squared = alphas_cumprod.to(timesteps.device)[timesteps].float()
    return alpha_squared / (1 - alpha_squared)


def min_snr_weights(snr: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """Per-sample loss weights, shape (B,), of Hang et al. 2023, section 3.4 (arXiv:2303.09556).

    min(SNR, gamma) / SNR for epsilon, written so that SNR = 0 gives its limit 1 and not 0 / 0;
    min(SNR, gamma) / (SNR + 1) for v_prediction.
    """
    if prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1)
    return snr.clamp(max=gamma) / (snr + 1)


def check_weighting(config: LossConfig, noise_scheduler: "DDPMScheduler") -> None:
    """Refuse a weighting that has no value where the noise schedule ends.

    Raises:
        ValueError: it has none.
    """
    last = torch.tensor([len(noise_scheduler.alphas_cumprod) - 1])
    ends_in_noise = float(signal_to_noise_ratio(noise_scheduler.alphas_cumprod, last)) == 0
    if config.debiased_estimation and noise_scheduler.config["prediction_type"] == "epsilon" and ends_in_noise:
        raise ValueError(
            "debiased_estimation: given True: the model predicts epsilon, and its noise schedule ends at an SNR of 0, where "
            "the weight is infinite: take snr_gamma, or a model that predicts v"
        )


def debiased_weights(snr: Tensor, prediction_type: str) -> Tensor:
    """Per-sample loss weights, shape (B,), of Yu et al. 2023, section 3.2 (arXiv:2310.08442).

    1 / sqrt(SNR) for epsilon; sqrt(SNR) / (SNR + 1) for v_prediction, which is the same loss, because the squared error of v
    times SNR / (SNR + 1) is that of epsilon. (kohya's trainers take 1 / (SNR + 1) for v.)
    """
    return snr.rsqrt() if prediction_type == "epsilon" else snr.sqrt() / (snr + 1)


def huber_thresholds(config: LossConfig, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """The error from which on the pseudo-Huber losses are linear, shape (B,), of Khrapov et al. 2024 (arXiv:2403.16728).

    Args:
        config: its `huber_c` and `huber_schedule`.
        timesteps: (B,).
        alphas_cumprod: (T,), of the noise schedule.
    """
    c = config.huber_c
    if config.huber_schedule == "constant":
        return torch.full(timesteps.shape, c, device=timesteps.device)
    if config.huber_schedule == "exponential":
        return c ** (timesteps / len(alphas_cumprod))
    sigma = signal_to_noise_ratio(alphas_cumprod, timesteps).rsqrt()
    return (1 - c) / (1 + sigma) ** 2 + c


def errors_of(model_pred: Tensor, target: Tensor, config: LossConfig, batch: Batch, alphas_cumprod: Tensor) -> Tensor:
    """The loss of each number that was predicted, (B, C, h, w).

    The square; or, with d the difference and c the threshold, 2 c (sqrt(d^2 + c^2) - c) ("huber"), which is the square where
    d is small; or 2 (sqrt(d^2 + c^2) - c) ("smooth_l1"), whose slope is the same for all c where d is large.
    """
    squares = (model_pred - target).square()
    if config.loss_type == "l2":
        return squares
    c = huber_thresholds(config, batch.timesteps, alphas_cumprod).view(-1, 1, 1, 1)
    distances = 2 * squares / ((squares + c**2).sqrt() + c)  # equal, and exact where d is small
    return c * distances if config.loss_type == "huber" else distances


def denoising_loss(
    unet: "UNet2DConditionModel",
    batch: Batch | MixedBatch,
    noise_scheduler: "DDPMScheduler",
    config: LossConfig,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Weighted sum over the batch of each sample's mean squared error (Ho et al. 2020, equation 14, arXiv:2006.11239).

    With the weights of a batch of one kind, 1 / B, it is the mean. With those of a DreamBooth batch it is the mean over the
    instance images plus prior_loss_weight times the mean over the class images (Ruiz et al. 2023, equation 2,
    arXiv:2208.12242). With weights of pixels it is each sample's weighted mean.

    Args:
        unet: called with noisy latents, timesteps, and what `batch.encoder_hidden_states` holds.
        batch: on the UNet's device.
        noise_scheduler: the noise schedule, and what the UNet predicts.
        config: how an error counts.
        dtype: that the UNet is given its inputs in. Noise, target and loss are float32.
    """
    if isinstance(batch, MixedBatch):
        losses = [denoising_loss(unet, part, noise_scheduler, config, dtype) for part in batch.parts]
        return torch.stack(losses).sum()
    prediction_type = noise_scheduler.config["prediction_type"]
    parts: Any = (batch.latents, batch.noise, batch.timesteps)
    given_noise: Any = batch.noise if batch.perturbation is None else batch.noise + batch.perturbation
    noisy_latents = noise_scheduler.add_noise(parts[0], given_noise, parts[2])
    target = batch.noise if prediction_type == "epsilon" else noise_scheduler.get_velocity(*parts)
    embeds = batch.encoder_hidden_states
    embeds = embeds.to(dtype) if embeds.is_floating_point() else embeds
    model_pred = unet(noisy_latents.to(dtype), batch.timesteps, embeds, return_dict=False)[0]
    errors = errors_of(model_pred.float(), target.float(), config, batch, noise_scheduler.alphas_cumprod)
    if batch.pixel_weights is not None:
        errors = errors * batch.pixel_weights
    losses = errors.mean(dim=(1, 2, 3))
    weights = batch.weights
    if config.snr_gamma is not None or config.debiased_estimation:
        snr = signal_to_noise_ratio(noise_scheduler.alphas_cumprod, batch.timesteps)
        by_snr = min_snr_weights(snr, config.snr_gamma, prediction_type) if config.snr_gamma is not None else None
        weights = weights * (debiased_weights(snr, prediction_type) if by_snr is None else by_snr)
    return torch.dot(weights, losses)
