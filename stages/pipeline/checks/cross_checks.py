"""What the settings of several stages say together: what could not work is refused before the first of them runs.

Each stage checks its own settings, and most of what it reads; but a wrong pair of settings, such as a prompt number beyond the
list of prompts, would show after the trainings, in the last stage of all. Only what can be told without the hub is looked at.
"""

from collections.abc import Callable, Iterator

from stages.pipeline.checks import of_comparing, of_models, of_trainings, of_words
from stages.pipeline.checks.remarks import Configs, Finding

CHECKS: tuple[Callable[[Configs], Iterator[Finding]], ...] = (
    of_comparing.sweep_is_composed,
    of_words.trigger,
    of_words.subjects,
    of_models.zero_snr,
    of_words.prompts,
    of_words.instance_prompt,
    of_words.word,
    of_comparing.compared,
    of_trainings.kept_on_the_way,
    of_models.originals,
    of_comparing.idle_values,
    of_trainings.optimizers,
    of_trainings.adapters,
    of_trainings.ranks,
    of_comparing.images,
    of_models.layers,
    of_models.looking_models,
    of_comparing.sizes,
)


def look(configs: Configs) -> list[Finding]:
    """All findings: first what is refused."""
    found = [finding for check in CHECKS for finding in check(configs)]
    return sorted(found, key=lambda finding: not finding.refused)
