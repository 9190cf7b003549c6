"""What is added to the layers of a model. Imports no torch."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from stages.pipeline.config import Count, Positive, Table, Text, strict

BelowOne = Annotated[float, Field(ge=0, lt=1)]
OWN_SETTINGS = ("LORA", "LOKR", "LOHA")
"""Kinds of adapters that have settings of their own, by PEFT's names."""
RANK = "rank"
"""What stands for the rank of the sweep among the settings of another kind of adapter."""
ON_CHANGED_WEIGHTS = ("pissa", "olora", "corda")
"""First weights of a LoRA that are taken off the model's own."""
BY_DATA = ("eva", "corda")
"""First weights of a LoRA that depend on the data."""


def _number_or_rank(value: Any) -> Any:
    """Refuse other values with one message; pydantic's own has one for each half of the union."""
    if value != "rank" and not (isinstance(value, int | float) and not isinstance(value, bool) and value > 0):
        raise ValueError('give a number greater than 0, or "rank"')
    return value


LoraAlpha = Annotated[float | Literal["rank"], BeforeValidator(_number_or_rank)]


@dataclass(frozen=True, config=strict)
class AdapterConfig:
    """What is added to the layers of a model, in PEFT's terms.

    Attributes:
        peft_type: "lora" (Hu et al. 2021, arXiv:2106.09685), "lokr" or "loha" (Yeh et al. 2023, arXiv:2309.14859).
        lora_alpha: the adapter's output is scaled by lora_alpha / rank; "rank" keeps that at 1 for every rank.
        use_rslora: scale by lora_alpha / sqrt(rank) instead (Kalajdzievski 2023, arXiv:2312.03732).
        use_dora: learn each row's length apart from its direction (Liu et al. 2024, arXiv:2402.09353).
        lora_dropout: share of an adapter's inputs that are dropped while training.
        target_modules: layers that get an adapter, by the end of their names.
        rank_pattern: other ranks for layers whose names end as the key says; of several keys that fit, the first counts.
        alpha_pattern: other alphas, likewise; with lora_alpha "rank" they come before the ranks of rank_pattern.
        init_lora_weights: first weights of a LoRA; the adapter begins as nothing added whichever is chosen. "pissa"
            (Meng et al. 2024, arXiv:2404.02948) and "olora" (Büyükakyüz 2024, arXiv:2406.01775) begin with the main
            directions of each weight and double the rank of the file; "orthogonal" takes an even rank. "eva" and "corda" look
            at the data before the first step (`stages.lora.data_init`), "corda" as "pissa" does. LoKr and LoHa have first
            weights of their own.
        peft: another kind of adapter that PEFT has, in place of all these but target_modules: its peft_type, such as OFT, BOFT
            or FOURIERFT, and PEFT's settings for it, of which "rank" is that of the sweep; null for none.
    """

    peft_type: Literal["lora", "lokr", "loha"]
    lora_alpha: LoraAlpha
    use_rslora: bool
    use_dora: bool
    lora_dropout: BelowOne
    target_modules: Annotated[tuple[Text, ...], Field(min_length=1)]
    rank_pattern: Table[Text, Count]
    alpha_pattern: Table[Text, Positive]
    init_lora_weights: Literal["gaussian", "kaiming", "orthogonal", "pissa", "olora", "eva", "corda"]
    peft: Table[Text, Any]

    def __post_init__(self) -> None:
        """Refuse what PEFT would ignore, and what its file could not say."""
        if self.peft:
            self._check_peft()
        if self.peft_type != "lora":
            of_lora = {"use_rslora": self.use_rslora, "use_dora": self.use_dora, "lora_dropout": self.lora_dropout}
            for name, value in of_lora.items():
                if value:
                    raise ValueError(f"{name}: given {value!r}: {self.peft_type} has none; only lora does")
        if self.use_dora and self.init_lora_weights in ON_CHANGED_WEIGHTS:
            raise ValueError(f"init_lora_weights: given {self.init_lora_weights!r}: not together with use_dora")

    def _check_peft(self) -> None:
        kind = self.peft.get("peft_type")
        if not isinstance(kind, str):
            raise ValueError("peft: peft_type is missing: name the kind, such as {peft_type: OFT, oft_block_size: rank}")
        if kind.upper() in OWN_SETTINGS:
            raise ValueError(f"peft: given {kind}: it has settings of its own: set peft_type to {kind.lower()}")
        if "target_modules" in self.peft:
            raise ValueError("peft: target_modules has a setting of its own, beside peft")

    @property
    def kind(self) -> str:
        """What kind of adapter it is, by PEFT's name for it."""
        return str(self.peft.get("peft_type", self.peft_type)).upper()

    @property
    def begins_with_data(self) -> bool:
        """Whether the first weights depend on the data."""
        return self.kind == "LORA" and self.init_lora_weights in BY_DATA

    @property
    def has_rank(self) -> bool:
        """Whether the rank of the sweep makes a difference."""
        return not self.peft or RANK in self.peft.values()
