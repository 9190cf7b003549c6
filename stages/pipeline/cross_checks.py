"""What the settings of several stages say together: what could not work is refused before the first of them runs.

Each stage checks its own settings, and most of what it reads; but a wrong pair of settings, such as a prompt number beyond the
list of prompts, would show after the trainings, in the last stage of all. Only what can be told without the hub is looked at.
"""

import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages.checkpoints.merging.methods import MERGE_METHODS
from stages.dataset.config import held_out_problem
from stages.dataset.folders import image_names
from stages.dataset.own_captions import image_sets
from stages.drawing.noise_schedulers import NOISE_SCHEDULERS
from stages.encoding.prompt_syntax import unread_markup
from stages.lora.config import OPTIMIZER_PACKAGES
from stages.measures.comparing import BY_KEY, applies
from stages.pipeline.variants import kept_steps
from stages.pipeline.wording import counted, has_phrase

Configs = Mapping[str, Any]
"""The checked settings by section."""

SMALL_WORLD = Path("data/mini")


class Finding(NamedTuple):
    """Something that the settings say together.

    Attributes:
        text: The setting, what is wrong with it, and what to do.
        refused: Whether the experiment cannot work so; else it may not be what was meant.
    """

    text: str
    refused: bool


def look(configs: Configs) -> list[Finding]:
    """All findings: first what is refused."""
    found = [finding for check in CHECKS for finding in check(configs)]
    return sorted(found, key=lambda finding: not finding.refused)


class Training(NamedTuple):
    """A stage that trains, its settings, and the ranks that it is run with, with the setting that says them."""

    stage: str
    config: Any
    setting: str
    ranks: Sequence[int]


def _trainings(configs: Configs) -> list[Training]:
    sweep = configs["sweep"]
    return [
        Training("train_text2img", configs["train_text2img"], "sweep.rank", sweep.rank),
        Training("train_dreambooth", configs["train_dreambooth"], "sweep.dreambooth_rank", sweep.dreambooth_rank),
        Training("train_textual_inversion", configs["train_textual_inversion"], "sweep.vectors", sweep.vectors),
    ]


def _no(text: str) -> Finding:
    return Finding(text, refused=True)


def _note(text: str) -> Finding:
    return Finding(text, refused=False)


def _sweep_is_composed(configs: Configs) -> Iterator[Finding]:
    sweep, cells = configs["sweep"], configs["cells"]
    pairs = {
        "alpha": (sweep.alpha, cells.alpha),
        "rank": (sweep.rank, cells.rank),
        "dreambooth_rank": (sweep.dreambooth_rank, cells.dreambooth_rank),
        "vectors": (sweep.vectors, cells.vectors),
        "seed": (sweep.seed, cells.seed),
    }
    for name, (given, used) in pairs.items():
        if list(given) != list(used):
            yield _no(f"cells.{name}: {list(used)} is not sweep.{name}, {list(given)}: leave cells as conf/config.yaml has it")


def _trigger(configs: Configs) -> Iterator[Finding]:
    trigger, subjects = configs[""].trigger, configs[""].subjects
    if trigger is None:
        return

    def named_in(text: str | None) -> bool:
        return any(each.casefold() in (text or "").casefold() for each in (trigger, *subjects.values()))

    drawn = configs["generate"]
    if not any(named_in(prompt) for prompt in drawn.subject_prompts):
        yield _no(f"trigger: given {trigger!r}: no prompt of generate.subject_prompts names it, so no image would show it")
    if without := [prompt for prompt in drawn.subject_prompts if not named_in(prompt)]:
        yield _note(f"generate.subject_prompts: {without[0]!r} does not name the trigger {trigger!r}")
    if named := [prompt for prompt in drawn.other_prompts if named_in(prompt)]:
        yield _no(f"generate.other_prompts: {named[0]!r} names the trigger {trigger!r}: put it among subject_prompts")
    if configs["sweep"].dreambooth_rank and not named_in(configs["train_dreambooth"].instance_prompt):
        prompt = configs["train_dreambooth"].instance_prompt
        yield _note(f"train_dreambooth.instance_prompt: {prompt!r} does not name the trigger {trigger!r}")
    if not named_in(configs["caption"].prefix):
        yield _note(f"caption.prefix: {configs['caption'].prefix!r} does not name the trigger {trigger!r}; captions should")


def _prompts(configs: Configs) -> Iterator[Finding]:
    """What A1111 would not read as words, where it is read so."""
    drawn = configs["generate"]
    for setting in ("subject_prompts", "other_prompts") if drawn.prompt_syntax == "plain" else ():
        for prompt in getattr(drawn, setting):
            if markup := unread_markup(prompt):
                yield _note(
                    f"generate.{setting}: {prompt!r}: {markup} is read as words; prompt_syntax=a1111 reads it otherwise"
                )


def _zero_snr(configs: Configs) -> Iterator[Finding]:
    if not configs["merge"].rescale_betas_zero_snr:
        return
    drawn = ("class_images",) if configs["class_images"].num_class_images else ()
    for stage in (*drawn, "generate"):
        name = configs[stage].noise_scheduler
        if not NOISE_SCHEDULERS[name].zero_snr:
            yield _no(
                f"{stage}.noise_scheduler: given {name!r}: it cannot begin in noise alone: take ddim, euler or dpmsolver++"
            )


def _subjects(configs: Configs) -> Iterator[Finding]:
    """Subjects that have no images, or that nothing is said of."""
    subjects, download = configs[""].subjects, configs["download"]
    if not subjects:
        return
    if download.source.kind == "folder":
        folder = download.source.path
        there = {each.name for each in image_sets(image_names(folder), folder.name).values()} - {""}
        for name in sorted(subjects.keys() - there):
            others = ", ".join(sorted(there)) or "none"
            yield _no(
                f"subjects: names {name!r}, which is no image set of {folder} (a folder such as 1_{name}); there are: {others}"
            )
    if 0 < download.held_out_images < len(subjects):
        few = f"download.held_out_images: given {download.held_out_images}"
        yield _no(f"{few}: there are {len(subjects)} subjects: at least one image of each, or 0")
    prompts = configs["generate"].subject_prompts
    for name, trigger in subjects.items():
        if not any(has_phrase(prompt, trigger) for prompt in prompts):
            yield _note(f"generate.subject_prompts: none names {trigger!r} (subjects.{name}): nothing is drawn or said of it")
    if configs["sweep"].vectors and len(subjects) > 1:
        yield _note(f"sweep.vectors: a word is taught by the images of all {len(subjects)} subjects together")


def _compared(configs: Configs) -> Iterator[Finding]:
    """What the comparison can and cannot say."""
    drawn, compare, sweep = configs["generate"], configs["compare"], configs["sweep"]
    primary = BY_KEY[compare.primary]
    asks = np.repeat([True, False], [len(drawn.subject_prompts), len(drawn.other_prompts)])
    if not applies(primary, asks, seeds=2):
        yield _no(
            f"compare.primary: given {primary.key!r}: it is measured on generate.other_prompts, and there are none: name "
            "some, or take subject_fidelity"
        )
    elif not applies(primary, asks, len(drawn.seeds)):
        yield _no(f"compare.primary: given {primary.key!r}: it takes two generate.seeds at least, and there is one")
    for name in ("subject_prompts", "other_prompts"):
        if len(getattr(drawn, name)) == 1:
            yield _note(f"generate.{name}: of one prompt, nothing can be said of others: intervals take two or more")
    if len(sweep.seed) == 2:
        yield _note("sweep.seed: of two trainings, intervals are very wide: take three or more, or one")


def _kept_steps(configs: Configs) -> Iterator[Finding]:
    """LoRAs on the way that shall draw, and that no training keeps."""
    for stage, config, _, _ in _trainings(configs):
        kind = stage.removeprefix("train_")
        kept = kept_steps(config.keep_every, config.max_train_steps)
        if missing := [step for step in configs["sweep"].kept_steps.get(kind, ()) if step not in kept]:
            yield _no(
                f"sweep.kept_steps.{kind}: names step {missing[0]}, and {stage}.keep_every ({config.keep_every}) keeps "
                f"{', '.join(map(str, kept)) or 'none'} of {config.max_train_steps} steps: leave it as conf/config.yaml has it"
            )


def _originals(configs: Configs) -> Iterator[Finding]:
    method, base = configs["merge"].method, configs["base"]
    needed = MERGE_METHODS[method].models
    for number, (name, checkpoint) in enumerate({"theta1": base.theta1, "theta2": base.theta2}.items(), start=2):
        given = checkpoint is not None
        if given != (number <= needed):
            said = "which is null: name a checkpoint" if not given else "which is not null: set it to null"
            how = "takes" if number <= needed else "does not take"
            yield _no(f"merge.method: {method} {how} base.{name}, {said}, or choose another method")
    if base.theta1 is None and configs["merge"].text_encoder == "theta1":
        yield _no("merge.text_encoder: given 'theta1': base.theta1 is null; take merged or theta0")
    if base.theta1 is None and configs["vae"].source in ("theta1", "merged"):
        yield _no(f"vae.source: given {configs['vae'].source!r}: base.theta1 is null; take theta0 or other")
    if base.theta1 is None and "theta1" in configs["sweep"].bases:
        yield _no("sweep.bases: names theta1, and base.theta1 is null: take it out")


def _idle_values(configs: Configs) -> Iterator[Finding]:
    """Values of a sweep that would all give the same."""
    sweep, merge = configs["sweep"], configs["merge"]
    own = merge.component_alpha
    if len(sweep.alpha) > 1 and own.unet is not None and (own.text_encoder is not None or merge.text_encoder != "merged"):
        yield _no(f"sweep.alpha: given {list(sweep.alpha)}: merge.component_alpha leaves nothing to it, so one value is enough")
    if merge.method == "passthrough":
        if len(sweep.alpha) > 1:
            yield _no(f"sweep.alpha: given {list(sweep.alpha)}: passthrough merges nothing, so one value is enough")
        if merge.blocks is not None or own.unet is not None or own.text_encoder is not None:
            yield _note("merge.blocks, merge.component_alpha: have no effect with passthrough, which merges nothing")
    for stage, config, setting, ranks in _trainings(configs):
        if config.tuned == "full" and len(ranks) > 1:
            yield _no(f"{setting}: {stage}.tuned is full, which has no rank: one value is enough")


def _instance_prompt(configs: Configs) -> Iterator[Finding]:
    config = configs["train_dreambooth"]
    if configs["sweep"].dreambooth_rank and config.instance_prompt is None and not config.instance_prompts:
        yield _no("train_dreambooth.instance_prompt: is null: name the subject, or set sweep.dreambooth_rank to []")


def _word(configs: Configs) -> Iterator[Finding]:
    """A word that nothing names, or that no prompt would have."""
    config = configs["train_textual_inversion"]
    if not configs["sweep"].vectors:
        return
    if config.placeholder_token is None:
        yield _no(
            "train_textual_inversion.placeholder_token: is null: name the word, such as <asuka>, or set sweep.vectors to []"
        )
        return
    words = [each.casefold() for each in (config.placeholder_token, config.replaces) if each]
    prompts = configs["generate"].subject_prompts
    if without := [prompt for prompt in prompts if not any(word in prompt.casefold() for word in words)]:
        yield _note(f"generate.subject_prompts: {without[0]!r} has neither {' nor '.join(words)}: no word stands there")


def _optimizers(configs: Configs) -> Iterator[Finding]:
    for stage, config, _, ranks in _trainings(configs):
        package = OPTIMIZER_PACKAGES.get(config.optimizer)
        if ranks and package and importlib.util.find_spec(package) is None:
            yield _no(f"{stage}.optimizer: given {config.optimizer!r}: pip install {package}, or take adamw_fused")
        if ranks and "." in config.optimizer and importlib.util.find_spec(config.optimizer.partition(".")[0]) is None:
            package = config.optimizer.partition(".")[0]
            yield _no(f"{stage}.optimizer: given {config.optimizer!r}: there is no module {package}: pip install its package")
        if ranks and config.optimizer == "prodigy" and config.learning_rate != 1:
            yield _note(f"{stage}.learning_rate: {config.learning_rate:g}: prodigy finds it itself and wants 1 here")


def _adapters(configs: Configs) -> Iterator[Finding]:
    """Adapters that only PEFT knows: whether it does, and what of a sweep makes no difference to them."""
    for stage, config, setting, ranks in _trainings(configs):
        if not ranks or not config.peft or config.tuned != "lora":
            continue
        from stages.lora.adapters import peft_config

        try:
            peft_config(ranks[0], config, config.target_modules)
        except ValueError as error:
            yield _no(f"{stage}.{error}")
        if len(ranks) > 1 and not config.has_rank:
            yield _no(f'{setting}: given {list(ranks)}: no setting of {stage}.peft is "rank", so one value is enough')
        if others := [scale for scale in configs["sweep"].lora_scale if scale not in (0, 1)]:
            yield _no(f"sweep.lora_scale: given {others[0]:g}: {config.kind} ({stage}.peft) has no strength but 1 and 0")


def _ranks(configs: Configs) -> Iterator[Finding]:
    for stage, config, setting, of_sweep in _trainings(configs):
        if stage == "train_textual_inversion":
            setting, of_sweep = f"{stage}.rank", [config.rank]
        if config.kind == "LORA" and config.tuned == "lora" and config.init_lora_weights == "orthogonal":
            for name, ranks in ((setting, of_sweep), (f"{stage}.rank_pattern", config.rank_pattern.values())):
                if odd := [rank for rank in ranks if rank % 2]:
                    yield _no(f"{stage}.init_lora_weights: orthogonal takes even ranks, and {name} has {odd[0]}")


def _images(configs: Configs) -> Iterator[Finding]:
    """Images that there cannot be: a folder is counted, what comes from elsewhere is not known yet."""
    download = configs["download"]
    most = len(image_names(download.source.path)) if download.source.kind == "folder" else None
    if most is not None and most < download.min_images:
        yield _no(f"download.min_images: given {download.min_images}: {download.source.path} holds {counted(most, 'image')}")
    most = min((limit for limit in (most, download.max_images) if limit is not None), default=None)
    if most is not None and (problem := held_out_problem(download.held_out_images, most, f"at most {counted(most, 'image')}")):
        yield _no(problem)


def _layers(configs: Configs) -> Iterator[Finding]:
    """Layers of the text encoder that cannot all be left out."""
    layers = _text_layers(configs["base"].theta0)
    dreambooth = ("train_dreambooth",) if configs["sweep"].dreambooth_rank else ()
    drawn = ("class_images",) if configs["class_images"].num_class_images else ()
    stages = ("encode_captions", *drawn, *dreambooth, "generate")
    for stage in stages:
        skipped = configs[stage].clip_skip
        if layers is not None and skipped >= layers:
            yield _no(f"{stage}.clip_skip: given {skipped}: theta0's text encoder has {layers} layers")
    common = configs[""].clip_skip
    for stage in stages:
        if (skipped := configs[stage].clip_skip) != common:
            yield _note(f"{stage}.clip_skip: {skipped}, and clip_skip is {common}: training and drawing should read one layer")


def _text_layers(original: Any) -> int | None:
    """How many layers the text encoder of an original has, if its config.json is on this machine."""
    for source in (original.source, original.config):
        path = source and source.path and source.path / "text_encoder" / "config.json"
        if path and path.is_file():
            try:
                return int(json.loads(path.read_text()).get("num_hidden_layers", 12))
            except (ValueError, TypeError, AttributeError):
                return None
    return None


def _looking_models(configs: Configs) -> Iterator[Finding]:
    """Models that look at images: whether they are there, and whether these are images that they know."""
    images = getattr(configs["download"].source, "path", None)
    foreign = images is None or not _is_below(images, SMALL_WORLD)
    for setting, source in (
        ("caption.model", configs["caption"].model),
        ("embed.clip", configs["embed"].clip),
        ("embed.dino", configs["embed"].dino),
    ):
        path = source and source.path
        if path and not (path / "config.json").is_file():
            yield _no(f"{setting}.path: {path} is no model in the transformers layout: config.json is missing in it")
        if path and foreign and _is_below(path, SMALL_WORLD):
            if setting == "caption.model":
                alone = f"{path} knows the drawings of {SMALL_WORLD} and nothing else"
                yield _no(f"{setting}: {alone}: take caption/model=blip_base")
            else:
                yield _note(f"{setting}: {path} knows the drawings of {SMALL_WORLD} alone: its measures will mean nothing")


def _is_below(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _sizes(configs: Configs) -> Iterator[Finding]:
    trained, drawn = configs["encode_images"].resolution, configs["generate"].resolution
    if trained != drawn:
        yield _note(f"generate.resolution: {drawn}, and the LoRAs are trained at encode_images.resolution {trained}")


CHECKS: tuple[Callable[[Configs], Iterator[Finding]], ...] = (
    _sweep_is_composed,
    _trigger,
    _subjects,
    _zero_snr,
    _prompts,
    _instance_prompt,
    _word,
    _compared,
    _kept_steps,
    _originals,
    _idle_values,
    _optimizers,
    _adapters,
    _ranks,
    _images,
    _layers,
    _looking_models,
    _sizes,
)
