"""The sweep, its images, and what the comparison can say of them."""

from collections.abc import Iterator

import numpy as np

from stages.dataset.config import held_out_problem
from stages.dataset.folders import image_names
from stages.measures.comparing import BY_KEY, applies
from stages.pipeline.checks.remarks import Configs, Finding, note, refuse, trainings
from stages.pipeline.wording import counted


def sweep_is_composed(configs: Configs) -> Iterator[Finding]:
    """A sweep whose cells are another's: params.yaml was edited in part."""
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
            yield refuse(
                f"cells.{name}: {list(used)} is not sweep.{name}, {list(given)}: leave cells as conf/config.yaml has it"
            )


def idle_values(configs: Configs) -> Iterator[Finding]:
    """Values of a sweep that would all give the same."""
    sweep, merge = configs["sweep"], configs["merge"]
    own = merge.component_alpha
    if len(sweep.alpha) > 1 and own.unet is not None and (own.text_encoder is not None or merge.text_encoder != "merged"):
        yield refuse(
            f"sweep.alpha: given {list(sweep.alpha)}: merge.component_alpha leaves nothing to it, so one value is enough"
        )
    if merge.method == "passthrough":
        if len(sweep.alpha) > 1:
            yield refuse(f"sweep.alpha: given {list(sweep.alpha)}: passthrough merges nothing, so one value is enough")
        if merge.blocks is not None or own.unet is not None or own.text_encoder is not None:
            yield note("merge.blocks, merge.component_alpha: have no effect with passthrough, which merges nothing")
    for stage, config, setting, ranks in trainings(configs):
        if config.tuned == "full" and len(ranks) > 1:
            yield refuse(f"{setting}: {stage}.tuned is full, which has no rank: one value is enough")


def compared(configs: Configs) -> Iterator[Finding]:
    """What the comparison can and cannot say."""
    drawn, compare, sweep = configs["generate"], configs["compare"], configs["sweep"]
    primary = BY_KEY[compare.primary]
    asks = np.repeat([True, False], [len(drawn.subject_prompts), len(drawn.other_prompts)])
    if not applies(primary, asks, seeds=2):
        yield refuse(
            f"compare.primary: given {primary.key!r}: it is measured on generate.other_prompts, and there are none: name "
            "some, or take subject_fidelity"
        )
    elif not applies(primary, asks, len(drawn.seeds)):
        yield refuse(f"compare.primary: given {primary.key!r}: it takes two generate.seeds at least, and there is one")
    for name in ("subject_prompts", "other_prompts"):
        if len(getattr(drawn, name)) == 1:
            yield note(f"generate.{name}: of one prompt, nothing can be said of others: intervals take two or more")
    if len(sweep.seed) == 2:
        yield note("sweep.seed: of two trainings, intervals are very wide: take three or more, or one")


def images(configs: Configs) -> Iterator[Finding]:
    """Images that there cannot be: a folder is counted, what comes from elsewhere is not known yet."""
    download = configs["download"]
    most = len(image_names(download.source.path)) if download.source.kind == "folder" else None
    if most is not None and most < download.min_images:
        yield refuse(f"download.min_images: given {download.min_images}: {download.source.path} holds {counted(most, 'image')}")
    most = min((limit for limit in (most, download.max_images) if limit is not None), default=None)
    if most is not None and (problem := held_out_problem(download.held_out_images, most, f"at most {counted(most, 'image')}")):
        yield refuse(problem)


def sizes(configs: Configs) -> Iterator[Finding]:
    """Images of another size than those that were trained on."""
    trained, drawn = configs["encode_images"].resolution, configs["generate"].resolution
    if trained != drawn:
        yield note(f"generate.resolution: {drawn}, and the LoRAs are trained at encode_images.resolution {trained}")
