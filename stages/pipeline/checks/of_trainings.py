"""Optimizers, adapters, ranks and kept steps of all trainings."""

import importlib.util
from collections.abc import Iterator

from stages.lora.config import OPTIMIZER_PACKAGES
from stages.pipeline.checks.remarks import Configs, Finding, note, refuse, trainings
from stages.pipeline.variants import kept_steps


def optimizers(configs: Configs) -> Iterator[Finding]:
    """Optimizers whose package is not installed."""
    for stage, config, _, ranks in trainings(configs):
        package = OPTIMIZER_PACKAGES.get(config.optimizer)
        if ranks and package and importlib.util.find_spec(package) is None:
            yield refuse(f"{stage}.optimizer: given {config.optimizer!r}: pip install {package}, or take adamw_fused")
        if ranks and "." in config.optimizer and importlib.util.find_spec(config.optimizer.partition(".")[0]) is None:
            package = config.optimizer.partition(".")[0]
            yield refuse(
                f"{stage}.optimizer: given {config.optimizer!r}: there is no module {package}: pip install its package"
            )
        if ranks and config.optimizer == "prodigy" and config.learning_rate != 1:
            yield note(f"{stage}.learning_rate: {config.learning_rate:g}: prodigy finds it itself and wants 1 here")


def adapters(configs: Configs) -> Iterator[Finding]:
    """Adapters that only PEFT knows: whether it does, and what of a sweep makes no difference to them."""
    for stage, config, setting, ranks in trainings(configs):
        if not ranks or not config.peft or config.tuned != "lora":
            continue
        from stages.lora.adapters import peft_config

        try:
            peft_config(ranks[0], config, config.target_modules)
        except ValueError as error:
            yield refuse(f"{stage}.{error}")
        if len(ranks) > 1 and not config.has_rank:
            yield refuse(f'{setting}: given {list(ranks)}: no setting of {stage}.peft is "rank", so one value is enough')
        if others := [scale for scale in configs["sweep"].lora_scale if scale not in (0, 1)]:
            yield refuse(f"sweep.lora_scale: given {others[0]:g}: {config.kind} ({stage}.peft) has no strength but 1 and 0")


def ranks(configs: Configs) -> Iterator[Finding]:
    """Ranks that the first weights of a LoRA cannot have."""
    for stage, config, setting, of_sweep in trainings(configs):
        if stage == "train_textual_inversion":
            setting, of_sweep = f"{stage}.rank", [config.rank]
        if config.kind == "LORA" and config.tuned == "lora" and config.init_lora_weights == "orthogonal":
            for name, ranks in ((setting, of_sweep), (f"{stage}.rank_pattern", config.rank_pattern.values())):
                if odd := [rank for rank in ranks if rank % 2]:
                    yield refuse(f"{stage}.init_lora_weights: orthogonal takes even ranks, and {name} has {odd[0]}")


def kept_on_the_way(configs: Configs) -> Iterator[Finding]:
    """LoRAs on the way that shall draw, and that no training keeps."""
    for stage, config, _, _ in trainings(configs):
        kind = stage.removeprefix("train_")
        kept = kept_steps(config.keep_every, config.max_train_steps)
        if missing := [step for step in configs["sweep"].kept_steps.get(kind, ()) if step not in kept]:
            yield refuse(
                f"sweep.kept_steps.{kind}: names step {missing[0]}, and {stage}.keep_every ({config.keep_every}) keeps "
                f"{', '.join(map(str, kept)) or 'none'} of {config.max_train_steps} steps: leave it as conf/config.yaml has it"
            )
