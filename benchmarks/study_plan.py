"""The plan of study.py: which ways of training there are, which of them are compared, and where each training lies."""

import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from study_cell import DIVERGED, EMBEDDINGS, ROOT

sys.path.insert(0, str(ROOT))

from stages.pipeline.outputs import atomic_file
from stages.pipeline.resume import run_digest
from stages.pipeline.variants import DATASET, Variant

FOLDER = Path(".study")
RAW, IMAGES = Path("data/raw"), Path("data/encoded/images.safetensors")
DATASET_EMBEDDINGS = Path(f"data/embeddings/{DATASET}.safetensors")
RATES = (1, 3, 9)
"""Learning rates that are tried unless told, as multiples of the experiment's."""
FULL_RATE = 0.1
"""The share of them which full fine-tuning takes: the weights themselves go astray at an adapter's rates."""
SEEDS = 5

CHANGES: Mapping[str, Mapping[str, Any]] = {
    "min-SNR": {"snr_gamma": 5.0},
    "debiased estimation": {"debiased_estimation": True},
    "pseudo-Huber": {"loss_type": "huber", "huber_schedule": "snr"},
    "logit-normal timesteps": {"timestep_distribution": "logit_normal"},
    "pyramid noise": {"multires_noise_iterations": 6},
    "input perturbation": {"input_perturbation": 0.1},
    "averaged weights": {"ema_decay": 0.99},
    "LoRA+": {"loraplus_lr_ratio": 16.0},
    "AdamW schedule-free": {"optimizer": "schedulefree.AdamWScheduleFree", "lr_scheduler": "constant"},
    "shuffled tags": {"shuffle_caption": True, "caption_tag_dropout": 0.1},
    "EVA": {"init_lora_weights": "eva"},
    "CorDA": {"init_lora_weights": "corda"},
    "OFT": {"peft": {"peft_type": "OFT", "r": 0, "oft_block_size": "rank"}},
}
"""Settings of a text2img LoRA that are held against the one without them."""

Method = Literal["text2img", "dreambooth"]
METHODS: Mapping[Method, str] = {"text2img": "text2img", "dreambooth": "DreamBooth"}
ADAPTERS: Mapping[str, Mapping[str, Any]] = {
    "LoRA": {"tuned": "lora", "peft_type": "lora", "use_dora": False},
    "DoRA": {"tuned": "lora", "peft_type": "lora", "use_dora": True},
    "LoKr": {"tuned": "lora", "peft_type": "lokr", "use_dora": False},
    "LoHa": {"tuned": "lora", "peft_type": "loha", "use_dora": False},
    "all weights": {"tuned": "full", "train_text_encoder": False},
}


@dataclass(frozen=True)
class Arm:
    """A way of training.

    Attributes:
        method: text2img learns from captions, DreamBooth from one prompt.
        adapter: what is trained, a key of `ADAPTERS`.
        regularised: whether it learns from class images too.
        text_encoder: whether the text encoder gets an adapter too.
        change: of the settings, a key of `CHANGES`; "" for none.
    """

    method: Method
    adapter: str = "LoRA"
    regularised: bool = True
    text_encoder: bool = False
    change: str = ""

    @property
    def trained(self) -> str:
        """What is trained, and with which change of the settings."""
        return ", ".join(filter(None, (self.adapter, self.change)))

    @property
    def name(self) -> str:
        """In tables and sentences."""
        parts = (self.trained, "text encoder" if self.text_encoder else "", "" if self.regularised else "no class images")
        return f"{METHODS[self.method]} ({', '.join(filter(None, parts))})"

    @property
    def folder(self) -> str:
        """Of its trainings."""
        parts = (self.method, self.adapter, "text encoder" if self.text_encoder else "", self.change)
        ends = ("" if self.regularised else "no class images",)
        return "-".join(part.lower().replace(" ", "-").replace("+", "-plus") for part in (*parts, *ends) if part)

    def settings(self, section: Mapping[str, Any]) -> dict[str, Any]:
        """The section of its stage, changed to this."""
        own = {"train_text_encoder": self.text_encoder, **ADAPTERS[self.adapter]}
        weight = section["prior_loss_weight"] if self.regularised else 0
        fixed = {"use_rslora": False, "lora_dropout": 0.0, **own, "prior_loss_weight": weight}
        return {**section, **fixed, **CHANGES.get(self.change, {})}


TEXT2IMG, DREAMBOOTH = Arm("text2img", text_encoder=True), Arm("dreambooth", text_encoder=True)
ARMS = (
    DREAMBOOTH,
    TEXT2IMG,
    replace(TEXT2IMG, text_encoder=False),
    replace(DREAMBOOTH, regularised=False),
    replace(TEXT2IMG, text_encoder=False, regularised=False),
    replace(DREAMBOOTH, text_encoder=False),
    *(
        replace(arm, adapter=adapter, text_encoder=arm.text_encoder and adapter != "all weights")
        for adapter in ADAPTERS
        if adapter != "LoRA"
        for arm in (replace(TEXT2IMG, text_encoder=False), DREAMBOOTH)
    ),
    *(replace(TEXT2IMG, text_encoder=False, change=change) for change in CHANGES),
)
"""In the order of the plan: what is there early answers the first questions wholly."""
CONTRASTS = (
    (DREAMBOOTH, TEXT2IMG),
    (DREAMBOOTH, replace(DREAMBOOTH, text_encoder=False)),
    (TEXT2IMG, replace(TEXT2IMG, text_encoder=False)),
    (DREAMBOOTH, replace(DREAMBOOTH, regularised=False)),
    (replace(TEXT2IMG, text_encoder=False), replace(TEXT2IMG, text_encoder=False, regularised=False)),
    *((arm, Arm(arm.method, text_encoder=arm.text_encoder)) for arm in ARMS if arm.adapter != "LoRA" or arm.change),
)
"""What is compared, the first against the second; the first pair is the main question."""


@dataclass(frozen=True)
class Cell:
    """One training; without an arm, the model that all are trained on."""

    arm: Arm | None = None
    rate: float = 0.0
    seed: int = 0

    @property
    def name(self) -> str:
        """Of its folder."""
        return "base" if self.arm is None else f"{self.arm.folder}/lr{self.rate:g}/s{self.seed}"


@dataclass(frozen=True)
class Study:
    """All that is trained, on what, and where it lies.

    Attributes:
        params: of the experiment.
        steps: optimizer steps of each training.
        seeds: how many trainings of each arm and learning rate.
        threads: of each process.
        arms: what is trained.
        tried: learning rates, as multiples of the experiment's.
        root: the folder that `folder` is in.
    """

    params: Mapping[str, Any]
    steps: int
    seeds: int
    threads: int
    arms: Sequence[Arm] = ARMS
    tried: Sequence[float] = RATES
    root: Path = FOLDER

    @cached_property
    def folder(self) -> Path:
        """Where its trainings are: named by all that they share."""
        ranks = {arm.method: self.rank(arm) for arm in ARMS}
        return self.root / run_digest(self._common() | ranks, self.inputs())[:12]

    @property
    def merge(self) -> Variant:
        """The model that is trained on."""
        return Variant("merge", self.params["sweep"]["alpha"][0])

    def rank(self, arm: Arm) -> int:
        """Of its adapters."""
        return self.params["sweep"]["rank" if arm.method == "text2img" else "dreambooth_rank"][0]

    def rates(self, arm: Arm) -> list[float]:
        """Its learning rates."""
        factor = self.params[f"train_{arm.method}"]["learning_rate"] * (FULL_RATE if arm.adapter == "all weights" else 1)
        return [float(f"{factor * share:.2g}") for share in self.tried]

    def cells(self) -> list[Cell]:
        """The plan, in its order."""
        return [
            Cell(),
            *(
                Cell(arm, rate, seed)
                for arm in self.arms
                for seed, rate in itertools.product(range(self.seeds), self.rates(arm))
            ),
        ]

    def inputs(self) -> list[Path]:
        """What the trainings read."""
        captions = Path(f"data/encoded/captions-{self.merge.name}.safetensors")
        return [Path(self.merge.model), IMAGES, captions, Path(f"data/class_images/{self.merge.name}")]

    def is_done(self, cell: Cell) -> bool:
        """Whether all of it is there."""
        folder = self.folder / cell.name
        return (folder / EMBEDDINGS).is_file() or (folder / DIVERGED).is_file()

    def write_params(self, cell: Cell) -> Path:
        """Write what a cell's process reads; its folder."""
        folder = self.folder / cell.name
        folder.mkdir(parents=True, exist_ok=True)
        sections = self._common() | {"housekeeping": self.params["housekeeping"]}
        model, images, captions, class_images = map(str, self.inputs())
        told: dict[str, Any] = {"model": model}
        if cell.arm is not None:
            stage = f"train_{cell.arm.method}"
            sections[stage] = cell.arm.settings(sections[stage]) | {"learning_rate": cell.rate}
            told |= {"stage": stage, "images": images, "captions": captions, "class_images": class_images}
            told |= {"rank": self.rank(cell.arm), "seed": cell.seed}
        with atomic_file(folder / "params.yaml") as part:
            part.write_text(yaml.safe_dump(sections | {"cell": told}, sort_keys=False))
        return folder

    def _common(self) -> dict[str, Any]:
        """The settings that all trainings share; previews and what is kept on the way would only take time."""
        lean = {"max_train_steps": self.steps, "held_out_steps": self.steps, "preview_prompts": [], "keep_every": None}
        changes = dict.fromkeys(("train_text2img", "train_dreambooth"), lean)
        changes |= {"generate": {}, "embed": {}, "runtime": {"threads": self.threads}}
        # Of a section, unlike of a mapping in it, the order says nothing.
        return {name: dict(sorted({**self.params[name], **changed}.items())) for name, changed in changes.items()}


def check_experiment(params: Mapping[str, Any]) -> None:
    """Refuse an experiment that leaves out what the plan compares.

    Raises:
        ValueError: it names the setting.
    """
    if not params["sweep"]["dreambooth_rank"]:
        raise ValueError("sweep.dreambooth_rank: is empty, and DreamBooth is compared: name a rank")
    if not params["class_images"]["num_class_images"]:
        raise ValueError("class_images.num_class_images: is 0, and what class images change is compared: take some")
    for stage in ("train_text2img", "train_dreambooth"):
        if not params[stage]["prior_loss_weight"]:
            raise ValueError(f"{stage}.prior_loss_weight: is 0, and what class images change is compared: set a weight")
