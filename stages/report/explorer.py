"""What the page's script knows: variants with their recipes, axes to lay images out along, a few numbers of each image."""

from collections.abc import Mapping, Sequence
from typing import Any

from stages.pipeline.variants import TRAINED_KINDS, Variant, in_full
from stages.report.contents import Comparison

METRICS = {"dino_similarity": "to the subject", "prompt_similarity": "to the prompt"}
"""What is written below images, by the metric."""
RECIPE = {
    "negative_prompt": "Negative prompt",
    "noise_scheduler": "Sampler",
    "num_inference_steps": "Steps",
    "guidance_scale": "Guidance scale",
    "resolution": "Pixels of a side",
    "clip_skip": "Text encoder layers skipped",
    "batch_size": "Images at once",
    "model": "Model",
    "unet_sha256": "UNet, sha256",
    "text_encoder_sha256": "Text encoder, sha256",
    "vae_sha256": "VAE, sha256",
    "lora": "LoRA",
    "lora_sha256": "LoRA, sha256",
    "lora_scale": "LoRA scale",
    "device": "Device",
    "threads": "Threads",
    "dtype": "Precision",
}
"""The parts of an image's recipe that are shown, beside its prompt and its seed."""

Axis = Mapping[str, Any]
"""A direction that images can be laid out along: its key, its name, its values with their labels, and the first of them."""


def explorer(comparison: Comparison) -> dict[str, Any]:
    """All that the script knows, as JSON has it. Prompts, seeds and variants are known by their place in their lists."""
    results, namer = comparison.results, comparison.namer
    lists = {index: name for name, indices in results.groups.items() for index in indices}
    return {
        "axes": axes(comparison),
        "first_ranks": {kind: results.sweep.leading_lora(kind).rank for kind in results.sweep.kinds},
        "images_per_cell": comparison.config.images_per_cell,
        "metrics": METRICS,
        "prompts": [{"index": index, "text": prompt, "list": lists[index]} for index, prompt in results.prompts.items()],
        "seeds": results.seeds,
        "values": {metric: [_values(comparison, variant, metric) for variant in results.sweep.variants] for metric in METRICS},
        "variants": [
            {
                "kind": variant.kind,
                "alpha": variant.alpha,
                "rank": variant.rank,
                "step": variant.step,
                "lora_scale": None if variant.rank is None else variant.lora_scale,
                "train_seed": variant.seed,
                "label": namer.label(variant),
                "recipe": recipe(comparison, variant),
                "again": draw_again(variant),
            }
            for variant in results.sweep.variants
        ],
    }


def axes(comparison: Comparison) -> list[Axis]:
    """What images can be laid out along, in the order in which the page offers it."""
    results, sweep = comparison.results, comparison.results.sweep
    trained = [variant for variant in sweep.variants if variant.rank is not None]
    leading = sweep.leading[-1]
    leading_ranks = {sweep.leading_lora(kind).rank for kind in sweep.kinds}
    sizes: dict[int, dict[str, None]] = {}  # a rank and as many vectors are one choice
    for variant in trained:
        sizes.setdefault(variant.rank or 0, {})[variant.size] = None
    ranks = [[rank, ", ".join(names)] for rank, names in sorted(sizes.items())]
    several = [["first", "the first of each"]] if len(leading_ranks) > 1 else []
    steps = sorted({variant.step for variant in trained if variant.step is not None})
    return [
        _axis("prompt", "Prompt", list(enumerate(results.prompts.values())), _first_subject_prompt(comparison)),
        _axis("model", "Model", [[each.kind, comparison.config.names.of(each.kind)] for each in sweep.leading], leading.kind),
        _axis("alpha", "Alpha", [[alpha, f"alpha {in_full(alpha)}"] for alpha in sorted(sweep.alpha)], sweep.alpha[0]),
        _axis("rank", "Rank", [["none", "no LoRA"], *several, *ranks], "first" if several else leading.rank),
        _axis("step", "Step", [*([step, f"step {step}"] for step in steps), ["end", "the end"]], "end"),
        _axis(
            "lora_scale",
            "Strength",
            [[scale, f"strength {in_full(scale)}"] for scale in sorted(sweep.lora_scale)],
            sweep.lora_scale[0],
        ),
        _axis("train_seed", "Training seed", [[seed, f"seed {seed}"] for seed in sweep.seed], sweep.seed[0]),
        _axis("seed", "Seed", [[place, f"seed {seed}"] for place, seed in enumerate(results.seeds)], "all"),
    ]


def _axis(key: str, name: str, values: Sequence[Sequence[Any]], first: Any) -> Axis:
    return {"key": key, "name": name, "values": values, "first": first}


def _first_subject_prompt(comparison: Comparison) -> int:
    return list(comparison.results.prompts).index(comparison.subject_prompts[0])


def _values(comparison: Comparison, variant: Variant, metric: str) -> list[float]:
    """A metric of each image of a variant, prompt by prompt."""
    return [round(value, 4) for value in comparison.results.measured[variant].by_image[metric].ravel().tolist()]


def recipe(comparison: Comparison, variant: Variant) -> list[tuple[str, str]]:
    """What the images of a variant have in common, by name: how they were drawn, and how its LoRA was trained."""
    of_image = comparison.recipes[variant]
    facts = [(name, said(of_image[key])) for key, name in RECIPE.items() if key in of_image]
    if variant.kind in TRAINED_KINDS:
        settings = comparison.training_of(variant)
        facts += [(f"Training: {name.replace('_', ' ')}", said(value)) for name, value in settings.items()]
    return facts


def draw_again(variant: Variant) -> str:
    """The command that draws one of a variant's images again; {file} stands for the name of the image's file."""
    option = "embedding" if variant.is_word else "lora"
    lora = f" --{option} {variant.trained}" if variant.rank is not None else ""
    return f"python -m stages.drawing {variant.images}/{{file}} --again again.png --model {variant.model}{lora}"


def said(value: Any) -> str:
    """A value of a recipe or of a setting, as the page writes it."""
    if isinstance(value, float):
        return in_full(value)
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value in ("", None) else str(value)
