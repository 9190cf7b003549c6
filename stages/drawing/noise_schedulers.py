"""Noise schedulers by the names that the settings have for them. Imports no torch."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class NoiseScheduler(NamedTuple):
    """One of diffusers' noise schedulers.

    Attributes:
        class_name: in diffusers.
        settings: what is set beside what the checkpoint's scheduler_config.json says.
        spacings: spacings of the noise levels that it can be given, by the ends of the names that ask for them.
    """

    class_name: str
    settings: Mapping[str, Any] = MappingProxyType({})
    spacings: tuple[str, ...] = ()


_SPACINGS = {"karras": {"use_karras_sigmas": True}, "exponential": {"use_exponential_sigmas": True}}
"""Karras et al. 2022 (arXiv:2206.00364), equation 5; and noise levels that are evenly spaced in their logarithm."""
_BOTH = tuple(_SPACINGS)

_NOISE_SCHEDULERS = {
    "ddim": NoiseScheduler("DDIMScheduler"),
    "ddpm": NoiseScheduler("DDPMScheduler"),
    "deis": NoiseScheduler("DEISMultistepScheduler", spacings=_BOTH),
    "dpm2": NoiseScheduler("KDPM2DiscreteScheduler", spacings=_BOTH),
    "dpm2_a": NoiseScheduler("KDPM2AncestralDiscreteScheduler", spacings=_BOTH),
    "dpmsolver++": NoiseScheduler("DPMSolverMultistepScheduler", spacings=_BOTH),
    "dpmsolver++_2s": NoiseScheduler("DPMSolverSinglestepScheduler", spacings=_BOTH),
    "dpmsolver++_sde": NoiseScheduler("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, _BOTH),
    "euler": NoiseScheduler("EulerDiscreteScheduler", spacings=_BOTH),
    "euler_a": NoiseScheduler("EulerAncestralDiscreteScheduler"),
    "heun": NoiseScheduler("HeunDiscreteScheduler", spacings=_BOTH),
    "lcm": NoiseScheduler("LCMScheduler"),
    "pndm": NoiseScheduler("PNDMScheduler"),
    "unipc": NoiseScheduler("UniPCMultistepScheduler", spacings=_BOTH),
}

NOISE_SCHEDULERS: dict[str, NoiseScheduler] = _NOISE_SCHEDULERS | {
    f"{name}_{spacing}": each._replace(settings={**each.settings, **_SPACINGS[spacing]}, spacings=())
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
