"""Where the results come from, as far as the files say it: what two runs that give the same report have in common."""

from typing import Any

from stages.report.contents import Comparison

MACHINE = "{device}, {threads} threads, {dtype}"
PARTS = {"unet_sha256": "UNet", "text_encoder_sha256": "text encoder", "vae_sha256": "VAE", "lora_sha256": "LoRA"}
"""The weights that draw an image, by their keys in its recipe."""


def lineage(comparison: Comparison) -> dict[str, Any]:
    """The digests of all weights that drew an image, of the images themselves, and of what they were measured by."""
    drawn = comparison.recipes
    shown = {key: name for key, name in PARTS.items() if any(key in recipe for recipe in drawn.values())}
    machines = {MACHINE.format(**recipe) for recipe in drawn.values() if "device" in recipe}
    encoders = comparison.results.encoders
    facts = {
        "Device": "; ".join(sorted(machines)),
        "CLIP, sha256": encoders["clip"],
        "DINOv2, sha256": encoders["dino"],
        "Training images and captions, sha256": comparison.training.digest,
    }
    weights = [(comparison.namer.label(variant), [recipe.get(key, "") for key in shown]) for variant, recipe in drawn.items()]
    return {"columns": list(shown.values()), "weights": weights, "facts": [fact for fact in facts.items() if fact[1]]}
