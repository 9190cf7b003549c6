"""The loss of a denoising model, and how timesteps are weighted in it."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stages.lora.batches import Batch, MixedBatch

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


def denoising_loss(
    unet: "UNet2DConditionModel",
    batch: Batch | MixedBatch,
    noise_scheduler: "DDPMScheduler",
    snr_gamma: float | None,
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
        snr_gamma: of min-SNR weighting; None for none.
        dtype: that the UNet is given its inputs in. Noise, target and loss are float32.
    """
    if isinstance(batch, MixedBatch):
        losses = [denoising_loss(unet, part, noise_scheduler, snr_gamma, dtype) for part in batch.parts]
        return torch.stack(losses).sum()
    prediction_type = noise_scheduler.config["prediction_type"]
    parts: Any = (batch.latents, batch.noise, batch.timesteps)
    noisy_latents = noise_scheduler.add_noise(*parts)
    target = batch.noise if prediction_type == "epsilon" else noise_scheduler.get_velocity(*parts)
    embeds = batch.encoder_hidden_states
    embeds = embeds.to(dtype) if embeds.is_floating_point() else embeds
    model_pred = unet(noisy_latents.to(dtype), batch.timesteps, embeds, return_dict=False)[0]
    errors = (model_pred.float() - target.float()).square()
    if batch.pixel_weights is not None:
        errors = errors * batch.pixel_weights
    losses = errors.mean(dim=(1, 2, 3))
    weights = batch.weights
    if snr_gamma is not None:
        snr = signal_to_noise_ratio(noise_scheduler.alphas_cumprod, batch.timesteps)
        weights = weights * min_snr_weights(snr, snr_gamma, prediction_type)
    return torch.dot(weights, losses)
