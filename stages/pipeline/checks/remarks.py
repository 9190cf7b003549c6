"""What a check finds, and the settings that it reads."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Configs = Mapping[str, Any]
"""The checked settings by section."""


class Finding(NamedTuple):
    """Something that the settings say together.

    Attributes:
        text: The setting, what is wrong with it, and what to do.
        refused: Whether the experiment cannot work so; else it may not be what was meant.
    """

    text: str
    refused: bool


class Training(NamedTuple):
    """A stage that trains, its settings, and the ranks that it is run with, with the setting that says them."""

    stage: str
    config: Any
    setting: str
    ranks: Sequence[int]


def trainings(configs: Configs) -> list[Training]:
    """All stages that train, those that the sweep leaves out with no ranks."""
    sweep = configs["sweep"]
    return [
        Training("train_text2img", configs["train_text2img"], "sweep.rank", sweep.rank),
        Training("train_dreambooth", configs["train_dreambooth"], "sweep.dreambooth_rank", sweep.dreambooth_rank),
        Training("train_textual_inversion", configs["train_textual_inversion"], "sweep.vectors", sweep.vectors),
    ]


def refuse(text: str) -> Finding:
    """What could not work."""
    return Finding(text, refused=True)


def note(text: str) -> Finding:
    """What may not be meant."""
    return Finding(text, refused=False)
