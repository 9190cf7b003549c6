"""How the experiment is told of in a paper: a paragraph for its section Methods, and a reference; from the settings alone."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from stages.drawing.noise_schedulers import NOISE_SCHEDULERS
from stages.measures.comparing import BY_KEY
from stages.pipeline.variants import Kind, in_full
from stages.pipeline.wording import PROGRAM, counted
from stages.report.contents import Comparison

BIBTEX = f"""@software{{{PROGRAM.replace("-", "_")},
  title = {{{PROGRAM}: merging and fine-tuning Stable Diffusion checkpoints, compared}},
  version = {{{version(PROGRAM)}}},
  license = {{Apache-2.0}},
}}"""
FORMULAS = {
    "weighted_sum": "the weighted sum (1 − α)·θ0 + α·θ1",
    "add_difference": "adding the difference, θ0 + α·(θ1 − θ2)",
    "slerp": "spherical linear interpolation (slerp)",
    "ties": "TIES",
    "dare": "DARE",
    "passthrough": "taking one of them as it is",
}
OBJECTIVE = {
    "snr_gamma": "with min-SNR weighting (γ = {snr_gamma})",
    "debiased_estimation": "with debiased estimation (1/√SNR)",
    "loss_type": "with the pseudo-Huber loss ({loss_type}, c = {huber_c}, schedule: {huber_schedule})",
    "timestep_distribution": "at logit-normal timesteps (mean {logit_mean}, deviation {logit_std})",
    "noise_offset": "with a noise offset of {noise_offset}",
    "multires_noise_iterations": "with pyramid noise ({multires_noise_iterations} layers, discount {multires_noise_discount})",
    "input_perturbation": "with input perturbation ({input_perturbation})",
    "loraplus_lr_ratio": "the second factors at {loraplus_lr_ratio} times the rate (LoRA+)",
    "ema_decay": "the weights averaged over the steps (decay {ema_decay})",
}
"""What is said of settings that are not the usual ones."""
ADAPTERS = {"lora": "LoRA", "lokr": "LoKr", "loha": "LoHa"}


def methods(comparison: Comparison) -> str:
    """A paragraph for the section Methods of a paper."""
    trainings = [_training(comparison, kind) for kind in comparison.results.sweep.kinds]
    return " ".join([_merge(comparison), *trainings, _drawing(comparison), _statistics(comparison)])


def _merge(comparison: Comparison) -> str:
    sweep, names = comparison.results.sweep, comparison.config.names
    if not {"theta0", "theta1"} <= set(sweep.bases):
        return f"All models are based on {names.merge}."
    how, alphas = FORMULAS[comparison.merging["method"]], _listed(map(in_full, sweep.alpha))
    return f"{names.theta0} (θ0) and {names.theta1} (θ1) were merged by {how} with α = {alphas}; the VAE was not merged."


def _training(comparison: Comparison, kind: Kind) -> str:
    sweep, settings = comparison.results.sweep, comparison.trainings[kind]
    sizes = sorted({variant.rank or 0 for variant in sweep.trained if variant.kind == kind})
    pivotal = kind == "textual_inversion" and settings["tuned"] == "lora"
    vectors, ranks = (sizes, [settings["rank"]]) if pivotal else ([], sizes)
    batch = settings["train_batch_size"] * settings["gradient_accumulation_steps"]
    parts = [
        f"{_tuned(settings, ranks)}{_with_word(vectors)}, trained for {settings['max_train_steps']} steps "
        f"on {counted(comparison.training.count, 'image')} in batches of {batch}",
        f"class images of weight {in_full(settings['prior_loss_weight'])}" if settings.get("prior_loss_weight") else "",
        f"by {_optimizer(settings)}",
        f"at a learning rate of {in_full(settings['learning_rate'])} ({settings['lr_scheduler'].replace('_', ' ')})",
        f"{settings['lr_warmup_steps']} steps of warm-up" if settings["lr_warmup_steps"] else "",
        *_objective(settings),
        f"{counted(len(sweep.seed), 'training seed')} ({_listed(sweep.seed)})",
    ]
    return f"{comparison.config.names.of(kind)}: {', '.join(filter(None, parts))}."


def _objective(settings: Mapping[str, Any]) -> Iterator[str]:
    """What differs from the plain loss, from plain noise at all timesteps, and from the weights after the last step."""
    numbers = {name: in_full(value) if isinstance(value, float) else value for name, value in settings.items()}
    for name, words in OBJECTIVE.items():
        if settings.get(name) not in (None, False, 0, "l2", "uniform"):
            yield words.format_map(numbers)
    if settings["min_timestep"] or settings["max_timestep"]:
        yield f"at timesteps from {settings['min_timestep']} to before {settings['max_timestep'] or 'the end'}"
    rates = [f"{block} at {in_full(factor)} times the rate" for block, factor in (settings["block_lr"] or {}).items()]
    if rates:
        yield f"with {_listed(rates)}"


def _tuned(settings: Mapping[str, Any], ranks: Iterable[int]) -> str:
    if settings["tuned"] == "full":
        return "all weights of the UNet"
    if settings["tuned"] == "embedding":
        return f"a word of {_listed(ranks)} vectors, begun as “{settings['initializer']}” (textual inversion)"
    also = " and of the text encoder" if settings["train_text_encoder"] else ""
    layers = _listed(settings["target_modules"])
    if others := settings["peft"]:
        values = _listed(f"{name} {_listed(ranks) if value == 'rank' else value}" for name, value in others.items())
        return f"PEFT's adapter with {values} on the layers {layers} of the UNet{also}"
    adapter = "DoRA" if settings["use_dora"] else ADAPTERS[settings["peft_type"]]
    alpha = "the rank" if settings["lora_alpha"] == "rank" else in_full(settings["lora_alpha"])
    return f"{adapter} of rank {_listed(ranks)} (alpha: {alpha}) on the layers {layers} of the UNet{also}"


def _with_word(vectors: Sequence[int]) -> str:
    return f", and a word of {_listed(vectors)} vectors (pivotal tuning)" if vectors else ""


def _optimizer(settings: Mapping[str, Any]) -> str:
    if settings["optimizer"] == "prodigy":
        return "Prodigy"
    if "." in settings["optimizer"]:
        given = _listed(f"{name} {value}" for name, value in (settings["optimizer_args"] or {}).items())
        return settings["optimizer"] + (f" ({given})" if given else "")
    name = "8-bit AdamW" if settings["optimizer"] == "adamw_8bit" else "AdamW"
    betas = f"{in_full(settings['adam_beta1'])} and {in_full(settings['adam_beta2'])}"
    return f"{name} (β {betas}, weight decay {in_full(settings['adam_weight_decay'])})"


def _drawing(comparison: Comparison) -> str:
    results, recipe = comparison.results, next(iter(comparison.recipes.values()))
    verbs = {"subject": ("names the subject", "name the subject"), "other": ("does not", "do not")}
    prompts = [
        f"{counted(len(indices), 'prompt')} that {verbs[group][len(indices) > 1]}" for group, indices in results.groups.items()
    ]
    drew = f"Each model drew {' and '.join(prompts)}, with the same {counted(len(results.seeds), 'starting noise')} for each"
    sampler = NOISE_SCHEDULERS.get(recipe.get("noise_scheduler", ""))
    if sampler is None:
        return f"{drew}."
    spacing = f", {sampler.spacing} noise levels" if sampler.spacing else ""
    return (
        f"{drew} ({sampler.a1111}{spacing}, {recipe['num_inference_steps']} steps, guidance scale "
        f"{in_full(recipe['guidance_scale'])}, {recipe['resolution']} px)."
    )


def _statistics(comparison: Comparison) -> str:
    results = comparison.results
    held_out = f"{counted(len(results.dataset.references['dino']), 'image')} that no training had seen"
    units = "trainings" if len(results.sweep.seed) > 1 else "prompts"
    return (
        f"Likeness is the mean cosine with {held_out if results.dataset.held_out else 'the training images'}, by DINOv2 and by "
        f"CLIP. The primary measure, declared beforehand, was the {BY_KEY[comparison.config.primary].name}. Values "
        "were averaged within prompts; differences are paired by prompt and starting noise; intervals are Student's "
        f"95 % intervals over {units}; p-values were corrected together (weighted Holm)."
    )


def _listed(values: Iterable[Any]) -> str:
    *first, last = map(str, values)
    return f"{', '.join(first)} and {last}" if first else last
