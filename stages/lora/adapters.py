"""Adapters on a UNet and on a text encoder, through PEFT, and their files."""

import json
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, PeftType, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from stages.checkpoints.adapters.lora_patterns import first_pattern
from stages.checkpoints.file_names import LORA_METADATA_KEY
from stages.lora.adapter_config import BY_DATA, ON_CHANGED_WEIGHTS, RANK, AdapterConfig
from stages.lora.data_init import Passes, look, settings_of, take


def add_adapter(
    model: nn.Module,
    rank: int,
    config: AdapterConfig,
    target_modules: Sequence[str],
    seed: int,
    passes: Passes | None = None,
) -> dict[str, Tensor]:
    """Add an adapter that at first changes nothing; its weights are then the only ones that require a gradient.

    Args:
        model: a UNet or a text encoder, in float32, and on the CPU, so that the first weights are the same for every device and
            dtype; where they come from the data, on the device of `passes`.
        rank: of each adapter matrix, where `config.rank_pattern` names no other.
        config: the kind of adapter.
        target_modules: layers that get an adapter, by the end of their names.
        seed: of the first weights.
        passes: of the data through the model, where first weights come from it (EVA, CorDA).

    Returns:
        The first weights by name, if PEFT took what they add off the model's own weights (PiSSA, OLoRA, CorDA): `write_lora`
        needs them. Otherwise nothing.

    Raises:
        ValueError: a target names no layer of this model, or the adapter is not for such layers.
    """
    names = [name for name, _ in model.named_modules()]
    for target in target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise ValueError(
                f"target_modules: {target!r} names no layer of this model; a UNet's attention has to_q, to_k, to_v, to_out.0"
            )
    torch.manual_seed(seed)
    added: Any = model
    adapter: Any = peft_config(rank, config, target_modules)
    first_factors = look(model, adapter, passes) if passes is not None and config.begins_with_data else {}
    try:
        added.add_adapter(adapter)
    except (RuntimeError, TypeError, ValueError) as error:
        settings = f"peft: PEFT refuses {dict(config.peft)} on these layers" if config.peft else ""
        said = settings or "target_modules, init_lora_weights: PEFT refuses them together"
        raise ValueError(f"{said}: {' '.join(str(error).split())}") from error
    take(model, first_factors)
    if config.kind != "LORA" or config.init_lora_weights not in ON_CHANGED_WEIGHTS:
        return {}
    return {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}


def peft_config(rank: int, config: AdapterConfig, target_modules: Sequence[str]) -> PeftConfig:
    """The adapter in PEFT's own terms.

    Raises:
        ValueError: PEFT has no such kind, or not with these settings.
    """
    if config.peft:
        return _other_config(rank, config.peft, target_modules)
    lora_alpha: Any = rank if config.lora_alpha == "rank" else config.lora_alpha
    alpha_pattern: dict[str, Any] = dict(config.alpha_pattern)  # PEFT takes the first that fits, so these come first
    if config.lora_alpha == "rank":
        alpha_pattern |= {name: each for name, each in config.rank_pattern.items() if name not in alpha_pattern}
    shared: dict[str, Any] = {
        "r": rank,
        "target_modules": list(target_modules),
        "rank_pattern": dict(config.rank_pattern),
        "alpha_pattern": alpha_pattern,
    }
    if config.peft_type != "lora":
        return {"lokr": LoKrConfig, "loha": LoHaConfig}[config.peft_type](alpha=lora_alpha, **shared)
    first_weights: Any = True if config.init_lora_weights == "kaiming" else config.init_lora_weights
    return LoraConfig(
        lora_alpha=lora_alpha,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        lora_dropout=config.lora_dropout,
        init_lora_weights=first_weights,
        **settings_of(config.init_lora_weights),
        **shared,
    )


def _other_config(rank: int, settings: Mapping[str, Any], target_modules: Sequence[str]) -> PeftConfig:
    """A kind of adapter that has no settings of its own here."""
    values = {name: rank if value == RANK else value for name, value in settings.items()}
    kind = str(values.pop("peft_type")).upper()
    try:
        found = PeftConfig.from_peft_type(peft_type=kind, target_modules=list(target_modules), **values)
        known = found.to_dict()  # from_peft_type leaves out what it does not know without a word
        if strangers := sorted(values.keys() - known.keys()):
            raise ValueError(f"{kind} has no {', '.join(strangers)}; it has {', '.join(sorted(known))}")
        return found
    except KeyError as error:
        known = ", ".join(sorted(each.value for each in PeftType))
        raise ValueError(f"peft: given {kind}: PEFT {version('peft')} has no such adapter; it has {known}") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"peft: PEFT refuses {dict(settings)}: {' '.join(str(error).split())}") from error


def idle_patterns(model: nn.Module, config: AdapterConfig) -> list[str]:
    """What is to be said of patterns that no layer of a model with an adapter follows."""
    layers = [name for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)]
    problems = []
    for setting, patterns in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        followed = {first_pattern(patterns, layer) for layer in layers}
        for pattern in patterns:
            others = next((first_pattern(patterns, layer) for layer in layers if first_pattern([pattern], layer)), None)
            if pattern not in followed:
                reason = (
                    f"{others!r} stands before it and names its layers too" if others else "it names no layer with an adapter"
                )
                problems.append(f"{setting}: {pattern!r} changes nothing: {reason}")
    return problems


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def write_lora(
    parts: Mapping[str, nn.Module],
    path: Path,
    first_weights: Mapping[str, Mapping[str, Tensor]] | None = None,
    base: Mapping[str, Any] | None = None,
) -> None:
    """Write the adapters' weights as a file for `StableDiffusionPipeline.load_lora_weights`.

    The same weights give the same bytes, and no path gets in: diffusers' own `save_lora_weights` writes several metadata
    keys, which safetensors orders at random, sets in the order of their hashes, and the folder that the model came from.
    Without metadata the loader would take alpha = rank. Of several patterns that fit a layer PEFT takes the first, and the
    metadata's keys are sorted: so patterns are written as what they came to, by the whole names of the layers. LoKr and LoHa
    go into the same kind of file, and PEFT loads them.

    Args:
        parts: "unet", "text_encoder" or both, with adapters.
        path: of the file.
        first_weights: what `add_adapter` returned, by part.
        base: what else the metadata says, such as the digest of the model that the adapter was trained on.
    """
    weights: dict[str, Tensor] = {}
    settings: dict[str, Any] = dict(base or {})
    for part, model in parts.items():
        tensors, values = get_peft_model_state_dict(model), _settings_of(model)
        if first_weights and first_weights.get(part):
            tensors, values = _without_first_weights(tensors, first_weights[part], values)
        # Some kinds share tensors between layers, which the file holds once for each.
        weights |= {f"{part}.{name}": tensor.detach().contiguous().cpu().clone() for name, tensor in tensors.items()}
        settings |= {f"{part}.{name}": _plain(value) for name, value in values.items()}
        settings[f"{part}.base_model_name_or_path"] = None
        if f"{part}.lora_dropout" in settings:
            settings[f"{part}.lora_dropout"] = 0.0  # diffusers' loader would go on dropping while it draws
    save_file(weights, path, metadata={LORA_METADATA_KEY: json.dumps(settings, sort_keys=True, default=str)})


def _settings_of(model: Any) -> dict[str, Any]:
    """The settings of a model's only adapter, with the ranks and alphas that its layers have in place of patterns."""
    values = model.peft_config["default"].to_dict()
    if values.get("init_lora_weights") in BY_DATA:  # who loads the file has no data
        values |= {"init_lora_weights": True, "eva_config": None, "corda_config": None}
    if not values.get("rank_pattern") and not values.get("alpha_pattern"):
        return values
    alpha = "lora_alpha" if "lora_alpha" in values else "alpha"
    layers: dict[str, Any] = {name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}
    ranks = {name: layer.r["default"] for name, layer in layers.items()}
    alphas = {name: getattr(layer, alpha)["default"] for name, layer in layers.items()}
    return values | {
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != values["r"]},
        "alpha_pattern": {name: own for name, own in alphas.items() if own != values[alpha]},
    }


def _without_first_weights(
    tensors: Mapping[str, Tensor], first: Mapping[str, Tensor], values: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The adapter of twice the rank that adds B A - B0 A0 to the model as it was before B0 A0 was taken off it."""
    doubled = {}
    for name, tensor in tensors.items():
        before = first[name].to(tensor.device)
        up = "lora_B" in name
        doubled[name] = torch.cat([tensor, -before if up else before], dim=1 if up else 0)
    # PEFT's scale, alpha / rank or alpha / sqrt(rank), must stay what it was.
    factor = math.sqrt(2) if values["use_rslora"] else 2
    changes = {
        "r": 2 * values["r"],
        "lora_alpha": factor * values["lora_alpha"],
        "rank_pattern": {name: 2 * rank for name, rank in values["rank_pattern"].items()},
        "alpha_pattern": {name: factor * alpha for name, alpha in values["alpha_pattern"].items()},
        "init_lora_weights": True,
    }
    return doubled, {**values, **changes}


def _plain(value: Any) -> Any:
    """Sets and tuples as sorted lists, all else as it is."""
    return sorted(value) if isinstance(value, set | tuple | list) else value
