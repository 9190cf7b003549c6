"""Reading LoRA files, for all that use them: drawing, exporting and fusing.

Programs write the same tensors under different names: kohya's (`lora_unet_mid_block_….lora_down.weight`), PEFT's
(`unet.mid_block.….lora_A.weight`), those of diffusers' older scripts (`….to_q.lora.down.weight`,
`….processor.to_q_lora.down.weight`), and kohya's again with the blocks of the LDM layout (`lora_unet_middle_block_1_…`). All
of them can be brought to kohya's, which is therefore what a module is called here; the way back needs the model.

A tensor that is not understood is refused by its key: a file is read whole, at the strength it was trained with, or not at all.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from stages.checkpoints.adapters.lora_factors import HADAMARD, KRONECKER, factors, without_mid
from stages.checkpoints.adapters.lora_strengths import check_settings, read_settings, stored_strength, trained_strength
from stages.checkpoints.files.tensors import FLOATS, LazyTensor, LazyTensors, read_metadata
from stages.checkpoints.files.weight_files import is_safetensors, open_weights

Kind = Literal["LoRA", "DoRA", "LoHa", "LoKr"]

PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te"}
# Trainers that know SDXL number its two text encoders; the only one of SD1 is then the first.
_KOHYA = {"lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder"}
_DOTTED = {"unet.": "unet", "text_encoder.": "text_encoder"}
_BARE_UNET = ("down_blocks.", "mid_block.", "up_blocks.")  # diffusers' first LoRA files held a UNet's alone
_PARTS = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora_mid.weight": "mid",
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "lora_magnitude_vector": "magnitude",
    "alpha": "alpha",
    **{part: part for part in (*HADAMARD, *KRONECKER)},
}
_KEY = re.compile(rf"(.+?)\.({'|'.join(map(re.escape, _PARTS))})")
_PROCESSOR_KEY = re.compile(r"(.+?)(?:\.processor)?\.to_(q|k|v|out)_lora\.(down|up)\.weight")
_EMBEDDINGS = ("token_embedding", "position_embedding")
_REFUSALS = (  # the first whose mark is in the key
    ("lora_te2_", "of the second text encoder of SDXL; only LoRAs of SD1 and SD2 are read"),
    ("text_encoder_2.", "of the second text encoder of SDXL; only LoRAs of SD1 and SD2 are read"),
    ("bundle_emb.", "an embedding that is bundled with the LoRA; take it out into a file of its own"),
    ("dora_scale", "DoRA in kohya's keys, which programs compute in different ways; only DoRA in PEFT's keys is read"),
    *((mark, "of a table of embeddings; only LoRAs of linear layers and convolutions are read") for mark in _EMBEDDINGS),
    (".diff", "a whole difference of weights (LyCORIS' full), which is no LoRA, LoHa or LoKr"),
    ("base_model.model.", "in PEFT's own layout, whose alpha is in adapter_config.json; convert it to diffusers' or kohya's"),
)


@dataclass(frozen=True)
class LoraModule:
    """What a LoRA file adds to one layer.

    Attributes:
        key: What the file calls the layer.
        component: "unet" or "text_encoder".
        kind: Which kind of adapter the tensors make up.
        tensors: By part: down (r, in, …) and up (out, r, …), DoRA's magnitude; or by LyCORIS' names, such as hada_w1_a.
        rank: Of the factors; of a LoKr with whole factors what its training divided by, which no shape shows.
        alpha: The layer's own.
        use_rslora: Whether alpha is divided by the root of the rank.
    """

    key: str
    component: str
    kind: Kind
    tensors: LazyTensors
    rank: int
    alpha: float
    use_rslora: bool = False

    @property
    def scale(self) -> float:
        """The factor on the product of the factors."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, and values a row, of the weight that it was trained beside."""
        return factors(self.tensors).shape


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file that was understood whole.

    Attributes:
        path: The file.
        modules: What it adds, by kohya's name of the layer.
        settings: PEFT's settings by component, such as `unet.lora_alpha`; empty where the file has none.
    """

    path: Path
    modules: Mapping[str, LoraModule]
    settings: Mapping[str, Any]

    def kinds(self) -> set[Kind]:
        """Which kinds of adapters it holds."""
        return {module.kind for module in self.modules.values()}

    def settings_of(self, component: str) -> dict[str, Any]:
        """PEFT's settings of one component, without its prefix."""
        prefix = f"{component}."
        return {key.removeprefix(prefix): value for key, value in self.settings.items() if key.startswith(prefix)}


def kohya_name(component: str, module: str) -> str:
    """What kohya's keys call a module of the UNet or the text encoder, whose name may be kohya's already."""
    name = module.replace(".", "_")
    if component == "text_encoder" and not name.startswith("text_model_"):
        name = f"text_model_{name}"  # transformers 5.6 dropped this level; kohya's keys have it
    return f"{PREFIXES[component]}_{name}"


def read_lora(path: Path) -> LoraFile:
    """Open a LoRA file under any names; its tensors are read when they are asked for.

    Where neither `.alpha` tensors nor PEFT's settings say the alpha, it is the rank, as in diffusers and ComfyUI.

    Raises:
        ValueError: The file is damaged, holds no LoRA, or something that is not read here; the message names the key.
    """
    tensors = open_weights(path).tensors
    try:
        settings = read_settings(read_metadata(path)) if is_safetensors(path) else {}
        if others := [component for component in PREFIXES if not _is_read_here(settings, component)]:
            kind = settings[f"{others[0]}.peft_type"]
            raise ValueError(
                f"holds {kind}, which PEFT alone computes: only LoRA, LoHa and LoKr are fused or written for others"
            )
        grouped = _group(tensors)
        for component in PREFIXES:
            places = {place for found in grouped.values() for place in found if place.component == component}
            check_settings(settings, component, {place.module for place in places})
        modules = {name: _module(found, settings) for name, found in grouped.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return LoraFile(path, modules, settings)


def other_adapters(path: Path) -> dict[str, dict[str, Any]]:
    """PEFT's settings, by component, of a file with adapters that are no LoRA, LoHa or LoKr; nothing of a file with these.

    Raises:
        ValueError: The settings cannot be read.
    """
    try:
        settings = read_settings(read_metadata(path)) if is_safetensors(path) else {}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    others = [component for component in PREFIXES if not _is_read_here(settings, component)]
    return {component: LoraFile(path, {}, settings).settings_of(component) for component in others}


def _is_read_here(settings: Mapping[str, Any], component: str) -> bool:
    return str(settings.get(f"{component}.peft_type", "LORA")).upper() in ("LORA", "LOHA", "LOKR")


class _Place(NamedTuple):
    """Where a tensor belongs: `module` is the layer's name in the file, without the component."""

    component: str
    module: str
    part: str
    key: str

    @property
    def name(self) -> str:
        """Kohya's name of the layer."""
        return kohya_name(self.component, self.module)


def _group(tensors: LazyTensors) -> dict[str, dict[_Place, LazyTensor]]:
    """The tensors by kohya's name of their layer."""
    places = {key: _place(key) for key in tensors}
    if not any(places.values()):
        first = next(map(_refusal, tensors), "it is empty")
        raise ValueError(f"holds no LoRA weights for a UNet or a text encoder: {first}")
    grouped: dict[str, dict[_Place, LazyTensor]] = {}
    for key, place in places.items():
        if place is None:
            raise ValueError(_refusal(key))
        found = grouped.setdefault(place.name, {})
        twin = next((other for other in found if other.part == place.part), None)
        if twin:
            raise ValueError(f"holds {place.part} of {place.name} twice, as {twin.key} and as {place.key}")
        found[place] = tensors[key]
    return grouped


def _refusal(key: str) -> str:
    reason = next((reason for mark, reason in _REFUSALS if mark in key), "not a tensor of a LoRA, LoHa or LoKr")
    return f"{key}: {reason}"


def _place(key: str) -> _Place | None:
    """Where a tensor belongs; None for a key that is not understood."""
    processor = _PROCESSOR_KEY.fullmatch(key)
    match = processor or _KEY.fullmatch(key)
    found = _component(match[1]) if match else None
    if match is None or found is None or any(mark in key for mark in _EMBEDDINGS):
        return None
    component, module = found
    if processor:
        layer = f"{module}.{_projection(component, match[2])}"
        return _Place(component, layer, match[3], f"{match[1]}.to_{match[2]}_lora")
    return _Place(component, module, _PARTS[match[2]], match[1])


def _component(owner: str) -> tuple[str, str] | None:
    if owner.startswith(_BARE_UNET):
        return "unet", owner
    names = _DOTTED if "." in owner else _KOHYA
    prefix = next((prefix for prefix in names if owner.startswith(prefix)), None)
    return (names[prefix], owner.removeprefix(prefix)) if prefix else None


def _projection(component: str, name: str) -> str:
    """The layer that an attention processor's `to_<name>_lora` stands for."""
    if component == "unet":
        return "to_out.0" if name == "out" else f"to_{name}"
    return f"{name}_proj"


def _module(found: Mapping[_Place, LazyTensor], settings: Mapping[str, Any]) -> LoraModule:
    """The adapter that one layer's tensors make up, with its rank and alpha."""
    place = min(found)
    tensors = {each.part: tensor for each, tensor in sorted(found.items())}
    alpha = tensors.pop("alpha", None)
    if any(tensor.dtype not in FLOATS for tensor in tensors.values()):
        raise ValueError(f"{place.key}: its values are no floating-point numbers, such as those of a quantized file")
    if "mid" in tensors and {"down", "up"} <= tensors.keys():
        tensors["down"] = without_mid(tensors["down"], tensors.pop("mid"))
    kind = _kind(place.key, tensors)
    if kind == "LoRA" and settings.get(f"{place.component}.use_dora"):
        raise ValueError(f"{place.key}: has no lora_magnitude_vector, and the metadata say use_dora: get the whole file")
    try:
        product = factors(tensors)
    except ValueError as error:
        raise ValueError(f"{place.key}: {error}") from error
    if alpha is not None:
        strength = stored_strength(place.key, alpha, product)
    elif settings and "." in place.key:
        name = "alpha" if kind in ("LoHa", "LoKr") else "lora_alpha"
        strength = trained_strength(settings, place.component, place.module, name, product)
    else:
        strength = {"alpha": float(product.rank or 1), "rank": product.rank or 1}
    return LoraModule(place.key, place.component, kind, tensors, **strength)


def _kind(key: str, tensors: LazyTensors) -> Kind:
    held = set(tensors)
    if held == {"down", "up"}:
        return "LoRA"
    if held == {"down", "up", "magnitude"}:
        return "DoRA"
    if held in (set(HADAMARD), {part for part in HADAMARD if "_t" not in part}):
        return "LoHa"
    for first in ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"}):
        for second in ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"}, {"lokr_w2_a", "lokr_w2_b", "lokr_t2"}):
            if held == first | second:
                return "LoKr"
    raise ValueError(f"{key}: holds {' and '.join(sorted(held)) or 'nothing but its alpha'}, which is no whole adapter")
