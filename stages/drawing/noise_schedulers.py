"""Noise schedulers by the names that the settings have for them. Imports no torch."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class NoiseScheduler(NamedTuple):
    """One of diffusers' noise schedulers.

    Attributes:
        a1111: its name in A1111's web UI, or as it would be there.
        class_name: in diffusers.
        settings: what is set beside what the checkpoint's scheduler_config.json says.
        spacings: spacings of the noise levels that it can be given, by the ends of the names that ask for them.
        spacing: the one that it is given; None for its own.
        zero_snr: whether it can begin in noise alone (rescale_betas_zero_snr).
    """

    a1111: str
    class_name: str
    settings: Mapping[str, Any] = MappingProxyType({})
    spacings: tuple[str, ...] = ()
    spacing: str | None = None
    zero_snr: bool = True


_SPACINGS = {"karras": {"use_karras_sigmas": True}, "exponential": {"use_exponential_sigmas": True}}
"""Karras et al. 2022 (arXiv:2206.00364), equation 5; and noise levels that are evenly spaced in their logarithm."""
_BOTH = tuple(_SPACINGS)

_NOISE_SCHEDULERS = {
    "ddim": NoiseScheduler("DDIM", "DDIMScheduler"),
    "ddpm": NoiseScheduler("DDPM", "DDPMScheduler"),
    "deis": NoiseScheduler("DEIS", "DEISMultistepScheduler", spacings=_BOTH, zero_snr=False),
    "dpm2": NoiseScheduler("DPM2", "KDPM2DiscreteScheduler", spacings=_BOTH, zero_snr=False),
    "dpm2_a": NoiseScheduler("DPM2 a", "KDPM2AncestralDiscreteScheduler", spacings=_BOTH, zero_snr=False),
    "dpmsolver++": NoiseScheduler("DPM++ 2M", "DPMSolverMultistepScheduler", spacings=_BOTH),
    "dpmsolver++_2s": NoiseScheduler("DPM++ 2S", "DPMSolverSinglestepScheduler", spacings=_BOTH, zero_snr=False),
    "dpmsolver++_sde": NoiseScheduler(
        "DPM++ 2M SDE", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, _BOTH
    ),
    "euler": NoiseScheduler("Euler", "EulerDiscreteScheduler", spacings=_BOTH),
    "euler_a": NoiseScheduler("Euler a", "EulerAncestralDiscreteScheduler"),
    "heun": NoiseScheduler("Heun", "HeunDiscreteScheduler", spacings=_BOTH, zero_snr=False),
    "lcm": NoiseScheduler("LCM", "LCMScheduler"),
    "pndm": NoiseScheduler("PLMS", "PNDMScheduler", zero_snr=False),
    "unipc": NoiseScheduler("UniPC", "UniPCMultistepScheduler", spacings=_BOTH),
}

NOISE_SCHEDULERS: dict[str, NoiseScheduler] = _NOISE_SCHEDULERS | {
    f"{name}_{spacing}": each._replace(settings={**each.settings, **_SPACINGS[spacing]}, spacings=(), spacing=spacing)
    for name, each in _NOISE_SCHEDULERS.items()
    for spacing in each.spacings
}
"""All names: `euler`, `euler_karras`, `euler_exponential` …"""


def check_noise_scheduler(name: str) -> str:
    """Refuse a name that stands for no noise scheduler.

    Raises:
        ValueError: the message says which names there are.
    """
    if name not in NOISE_SCHEDULERS:
        plain = ", ".join(_NOISE_SCHEDULERS)
        spaced = ", ".join(key for key, each in _NOISE_SCHEDULERS.items() if each.spacings)
        raise ValueError(f"choose one of {plain}; with _{' or _'.join(_SPACINGS)} at the end of {spaced}")
    return name
