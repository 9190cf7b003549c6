"""The metadata of kohya's trainer, which A1111, ComfyUI and Civitai read: those of its keys that are true of a LoRA here.

What it learnt from, and by which settings, is in the file of the training, see `TRAINING`. Times and numbers of sessions are
left out.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from stages.checkpoints.adapters.lora_files import LoraFile

TRAINING = "training"
"""The key, among PEFT's settings in the file of a training, of the settings that its weights depend on, and of its data."""
HASH = {"sshs_model_hash": ""}
"""The metadata that holds the sha256 of the tensors."""
_BASE_VERSIONS = {768: "sd_v1", 1024: "sd_v2"}
_MODULES = {"LoRA": "networks.lora", "DoRA": "networks.lora", "LoHa": "lycoris.kohya", "LoKr": "lycoris.kohya"}
_SAME = {
    "ss_seed": "seed",
    "ss_steps": "steps",
    "ss_max_train_steps": "max_train_steps",
    "ss_learning_rate": "learning_rate",
    "ss_unet_lr": "learning_rate",
    "ss_lr_scheduler": "lr_scheduler",
    "ss_lr_warmup_steps": "lr_warmup_steps",
    "ss_optimizer": "optimizer",
    "ss_gradient_accumulation_steps": "gradient_accumulation_steps",
    "ss_gradient_checkpointing": "gradient_checkpointing",
    "ss_max_grad_norm": "max_grad_norm",
    "ss_min_snr_gamma": "snr_gamma",
    "ss_noise_offset": "noise_offset",
    "ss_prior_loss_weight": "prior_loss_weight",
    "ss_caption_dropout_rate": "caption_dropout",
    "ss_network_dropout": "lora_dropout",
    "ss_num_train_images": "images",
    "ss_num_reg_images": "class_images",
    "ss_sd_model_name": "model",
    "ss_mixed_precision": "dtype",
}
"""kohya's keys, and the names that their values have here."""
_BATCH = ("train_batch_size", "gradient_accumulation_steps")


def kohya_metadata(lora: LoraFile, name: str) -> dict[str, str]:
    """What is known of a LoRA under kohya's keys; of a file of another program the few that its tensors show.

    Args:
        lora: the file.
        name: what it is called.
    """
    told: Mapping[str, Any] = lora.settings.get(TRAINING, {})
    kinds = lora.kinds()
    module = next(_MODULES[kind] for kind in sorted(kinds))
    algorithm = {"algo": next(iter(kinds)).lower()} if module == "lycoris.kohya" else None
    found = {
        "ss_output_name": name,
        "ss_network_module": module,
        "ss_network_args": algorithm and json.dumps(algorithm),
        "ss_network_dim": _common(module.rank for module in lora.modules.values()),
        "ss_network_alpha": _common(module.alpha for module in lora.modules.values()),
        "ss_base_model_version": _BASE_VERSIONS.get(embedding_width(lora) or 0),
        **{key: told.get(value) for key, value in _SAME.items()},
        "ss_text_encoder_lr": told.get("learning_rate") if told.get("train_text_encoder") else None,
        "ss_total_batch_size": math.prod(told[name] for name in _BATCH) if set(_BATCH) <= set(told) else None,
        "ss_resolution": told.get("resolution") and f"({told['resolution']}, {told['resolution']})",
        "ss_clip_skip": told["clip_skip"] + 1 if "clip_skip" in told else None,  # counted from 1
        "ss_tag_frequency": json.dumps({name: told["tag_frequency"]}, ensure_ascii=False) if "tag_frequency" in told else None,
    }
    return {key: str(value) for key, value in found.items() if value is not None}


def tag_frequency(captions: Iterable[str]) -> dict[str, int]:
    """How many captions hold each tag; tags are what stands between commas. The most frequent come first."""
    tags = (tag for caption in captions for tag in dict.fromkeys(map(str.strip, caption.split(","))) if tag)
    return dict(sorted(Counter(tags).items(), key=lambda each: (-each[1], each[0])))


def embedding_width(lora: LoraFile) -> int | None:
    """How many numbers a text is embedded in, by the layers that take it; None where the LoRA has none of these."""
    widths = {module.shape[1] for name, module in lora.modules.items() if name.endswith(("attn2_to_k", "attn2_to_v"))}
    return widths.pop() if len(widths) == 1 else None


def _common(values: Any) -> str:
    """A value that all layers share; "Dynamic", as LyCORIS' tools write it, where they differ."""
    found = {f"{value:g}" for value in values}
    return found.pop() if len(found) == 1 else "Dynamic"
