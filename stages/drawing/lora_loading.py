"""What training made of a model, put into it: adapters of every kind that PEFT has, or all weights of the UNet."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from stages.checkpoints.adapters.lora_factors import factors
from stages.checkpoints.adapters.lora_files import Kind, LoraFile, LoraModule, other_adapters, read_lora
from stages.checkpoints.adapters.lora_matching import modules_for

ADAPTER = "lora"
_SHAPING = ("peft_type", "use_effective_conv2d", "decompose_both", "decompose_factor")
"""PEFT's settings that say which factors a LoHa or a LoKr has; the others say which layers it is for, or how it is trained."""
_PEFT_PARTS = {"down": "lora_A.weight", "up": "lora_B.weight", "magnitude": "lora_magnitude_vector"}


@torch.no_grad()
def load_tuned_unet(unet: nn.Module, file: Path, scale: float) -> None:
    """Move the weights of a UNet to those in a file: all the way at scale 1, not at all at 0.

    Raises:
        ValueError: the file is of another architecture.
    """
    weights, tuned = unet.state_dict(), load_file(file)
    if {name: tensor.shape for name, tensor in weights.items()} != {name: tensor.shape for name, tensor in tuned.items()}:
        raise ValueError(f"{file}: its weights do not fit this UNet; it was made from another architecture")
    for name, tensor in weights.items():
        target = tuned[name].to(tensor.device)
        tensor.copy_(target if scale == 1 else torch.lerp(tensor.float(), target.float(), scale))


def attach(parts: Mapping[str, Any], file: Path) -> list[str]:
    """Add the adapters of a file to the parts of a model that it was trained beside, a LoRA's layers at their own alpha / rank.

    PEFT computes them: LoRA and DoRA of any file, LoHa and LoKr of those that hold PEFT's settings. LoHa and LoKr of other
    programs have factors that PEFT's settings cannot describe; their products are attached instead.

    Args:
        parts: "unet" and "text_encoder", changed in place.
        file: under any names that `read_lora` knows.

    Returns:
        The names of the parts that the file holds weights for.

    Raises:
        ValueError: the file cannot be read, or is for another model.
    """
    if settings := other_adapters(file):
        _attach_others(parts, file, settings)
        return list(settings)
    lora = read_lora(file)
    matched = match(parts, lora)
    for name, modules in matched.items():
        try:
            config, state_dict = _adapter(parts[name], modules, lora.settings_of(name))
            _attach(parts[name], config, state_dict)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{file}: does not fit this model, or is damaged: {' '.join(str(error).split())[:300]}") from error
    return list(matched)


def _attach_others(parts: Mapping[str, Any], file: Path, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Add adapters of the kinds that only PEFT knows."""
    from peft import PeftConfig

    tensors = load_file(file)
    for part, values in settings.items():
        state_dict = {key.removeprefix(f"{part}."): value for key, value in tensors.items() if key.startswith(f"{part}.")}
        try:
            config: Any = PeftConfig.from_peft_type(**values)
            _attach(parts[part], config, state_dict)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            said = " ".join(str(error).split())[:300]
            raise ValueError(f"{file}: does not fit this model or this PEFT, or is damaged: {said}") from error


def match(parts: Mapping[str, Any], lora: LoraFile) -> dict[str, dict[str, LoraModule]]:
    """The modules of a LoRA file by part and layer.

    Raises:
        ValueError: the file is for another model.
    """
    shapes = {name: {key: tuple(each.shape) for key, each in part.named_parameters()} for name, part in parts.items()}
    return modules_for(lora, shapes, parts["unet"].config if "unet" in parts else {})


def _attach(part: Any, config: Any, state_dict: dict[str, Tensor]) -> None:
    from peft import set_peft_model_state_dict

    broken = next((key for key, values in state_dict.items() if not values.isfinite().all()), None)
    if broken:
        raise ValueError(f"its {broken} holds NaN or Inf")
    part.add_adapter(config, adapter_name=ADAPTER)
    outcome = set_peft_model_state_dict(part, state_dict, ADAPTER)
    if outcome.unexpected_keys:
        raise RuntimeError(f"it has no {outcome.unexpected_keys[0]}")
    part.eval()  # the adapter's new layers begin in training mode, with dropout where it has one


def _adapter(part: Any, modules: Mapping[str, LoraModule], settings: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    """The adapter in PEFT's own terms, and its weights."""
    from peft import LoraConfig, PeftConfig

    kinds: set[Kind] = {module.kind for module in modules.values()}
    if kinds in ({"LoRA"}, {"DoRA"}):
        use_rslora = all(module.use_rslora for module in modules.values())
        strengths = _strengths(modules, "lora_alpha", use_rslora)
        config: Any = LoraConfig(use_rslora=use_rslora, use_dora=kinds == {"DoRA"}, **strengths)
        return config, _weights(part, modules)
    if "DoRA" in kinds:
        raise ValueError("it holds DoRA beside other adapters, which PEFT cannot put into one model")
    if [str(settings.get("peft_type")).upper()] == [kind.upper() for kind in kinds]:
        shaping = {name: settings[name] for name in _SHAPING if name in settings}
        return PeftConfig.from_peft_type(**shaping | _strengths(modules, "alpha")), _weights(part, modules)
    return _products(part, modules)


def _strengths(modules: Mapping[str, LoraModule], alpha: str, use_rslora: bool = False) -> dict[str, Any]:
    """PEFT's settings that give each layer its own rank and alpha; what alpha is divided by is one setting for all."""
    ranks = {name: module.rank for name, module in modules.items()}
    alphas = {
        name: module.alpha if module.use_rslora == use_rslora else module.scale * module.rank
        for name, module in modules.items()
    }
    common = {setting: Counter(values.values()).most_common(1)[0][0] for setting, values in (("r", ranks), (alpha, alphas))}
    return {
        "target_modules": list(modules),
        **common,
        "rank_pattern": _patterns(ranks, common["r"]),
        "alpha_pattern": _patterns(alphas, common[alpha]),
    }


def _patterns(values: Mapping[str, float], common: float) -> dict[str, float]:
    """A pattern for each value but the common one, which stands for the whole names of its layers."""
    names: dict[float, list[str]] = {}
    for name, value in values.items():
        names.setdefault(value, []).append(re.escape(name))
    return {f"^(?:{'|'.join(found)})": value for value, found in names.items() if value != common}


def _weights(part: Any, modules: Mapping[str, LoraModule]) -> dict[str, Tensor]:
    """The tensors under PEFT's names, a LoRA's in the shapes that its layer asks for."""
    state_dict = {}
    for name, module in modules.items():
        kernel = part.get_submodule(name).weight.shape[2:]
        for key, tensor in module.tensors.items():
            values = torch.from_numpy(tensor.read())
            if key in ("down", "up"):
                spatial = kernel if key == "down" else (1,) * len(kernel)
                values = values.reshape(values.shape[0], -1, *spatial)
            state_dict[f"{name}.{_PEFT_PARTS.get(key, key)}"] = values
    return state_dict


def _products(part: Any, modules: Mapping[str, LoraModule]) -> tuple[Any, dict[str, Tensor]]:
    """Adapters of any kinds as what they add to each weight: LoKr whose first factor is a single one."""
    from peft import LoKrConfig

    state_dict = {}
    whole = 1
    for name, module in modules.items():
        shape = part.get_submodule(name).weight.shape
        product = module.scale * factors(module.tensors).read()
        state_dict[f"{name}.lokr_w1"] = torch.ones(1, 1)
        state_dict[f"{name}.lokr_w2"] = torch.from_numpy(product).float().reshape(shape)
        whole = max(whole, *shape[:2])  # a rank from which on PEFT keeps the second factor whole
    config = LoKrConfig(r=whole, alpha=whole, decompose_factor=1, target_modules=list(modules))
    return config, state_dict
