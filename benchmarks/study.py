"""Which way of training teaches a name best, and how sure is that: methods, adapters, learning rates and training seeds.

`make study`, or `python benchmarks/study.py [--hours H] [--workers N]` where the stages before the trainings have run, takes
the experiment that params.yaml describes and trains its subject in every way of the plan: each with as many optimizer steps of
as many images, at three learning rates, with five training seeds. Each training draws the experiment's prompts, and its images
are embedded. Then the best learning rate of each way is chosen on half of the prompts and seeds, and reported on the others.

It says its plan first, and takes hours on a CPU. Ctrl-C, a scheduler's SIGTERM, or the end of --hours, leaves what was made
in .study; the same command goes on from there. --report computes the tables from what there is, of every way that has two
trainings at each learning rate.
"""

import argparse
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from threading import Event
from typing import Any, Literal

import yaml
from study_cell import DIVERGED, EMBEDDINGS, ROOT

sys.path.insert(0, str(ROOT))

from stages.pipeline.command import errors_in_one_line
from stages.pipeline.config import read_params
from stages.pipeline.interruption import Interrupted, handled
from stages.pipeline.outputs import atomic_file
from stages.pipeline.progress import say, track
from stages.pipeline.resume import run_digest
from stages.pipeline.variants import DATASET, Variant
from stages.pipeline.wording import counted

FOLDER = Path(".study")
RAW, IMAGES = Path("data/raw"), Path("data/encoded/images.safetensors")
DATASET_EMBEDDINGS = Path(f"data/embeddings/{DATASET}.safetensors")
RATES = (1 / 3, 1, 3)
"""Learning rates, as shares of the experiment's."""
FULL_RATE = 0.1
"""And that of them which full fine-tuning takes: the weights themselves go astray at an adapter's rates."""
SEEDS = 5

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
    """

    method: Method
    adapter: str = "LoRA"
    regularised: bool = True
    text_encoder: bool = False

    @property
    def name(self) -> str:
        """In tables and sentences."""
        parts = (self.adapter, "text encoder" if self.text_encoder else "", "" if self.regularised else "no class images")
        return f"{METHODS[self.method]} ({', '.join(filter(None, parts))})"

    @property
    def folder(self) -> str:
        """Of its trainings."""
        ends = ("-text-encoder" if self.text_encoder else "", "" if self.regularised else "-no-class-images")
        return f"{self.method}-{self.adapter.lower().replace(' ', '-')}{''.join(ends)}"

    def settings(self, section: Mapping[str, Any]) -> dict[str, Any]:
        """The section of its stage, changed to this."""
        own = {"train_text_encoder": self.text_encoder, **ADAPTERS[self.adapter]}
        weight = section["prior_loss_weight"] if self.regularised else 0
        return {**section, "use_rslora": False, "lora_dropout": 0.0, **own, "prior_loss_weight": weight}


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
)
"""In the order of the plan: what is there early answers the first questions wholly."""
CONTRASTS = (
    (DREAMBOOTH, TEXT2IMG),
    (DREAMBOOTH, replace(DREAMBOOTH, text_encoder=False)),
    (TEXT2IMG, replace(TEXT2IMG, text_encoder=False)),
    (DREAMBOOTH, replace(DREAMBOOTH, regularised=False)),
    (replace(TEXT2IMG, text_encoder=False), replace(TEXT2IMG, text_encoder=False, regularised=False)),
    *((arm, Arm(arm.method, text_encoder=arm.text_encoder)) for arm in ARMS if arm.adapter != "LoRA"),
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
        root: the folder that `folder` is in.
    """

    params: Mapping[str, Any]
    steps: int
    seeds: int
    threads: int
    arms: Sequence[Arm] = ARMS
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
        return [float(f"{factor * share:.2g}") for share in RATES]

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
            part.write_text(yaml.safe_dump(sections | {"cell": told}, sort_keys=True))
        return folder

    def _common(self) -> dict[str, Any]:
        """The settings that all trainings share; previews and what is kept on the way would only take time."""
        lean = {"max_train_steps": self.steps, "held_out_steps": self.steps, "preview_prompts": [], "keep_every": None}
        training = {name: {**self.params[name], **lean} for name in ("train_text2img", "train_dreambooth")}
        runtime = {**self.params["runtime"], "threads": self.threads}
        return {name: self.params[name] for name in ("generate", "embed")} | training | {"runtime": runtime}


class Workers:
    """Processes that make cells, some at once, until they are stopped."""

    def __init__(self, study: Study, hours: float) -> None:
        self.study = study
        self.until = time.monotonic() + 3600 * hours
        self.stopped = Event()
        self.running: set[subprocess.Popen[bytes]] = set()

    def make(self, cell: Cell) -> str | None:
        """Make a cell; what went wrong, "" for nothing, and None where it was not begun."""
        if self.stopped.is_set() or time.monotonic() > self.until:
            return None
        folder = self.study.write_params(cell)
        command = [sys.executable, ROOT / "benchmarks" / "study_cell.py", folder.resolve()]
        threads = str(self.study.threads)
        environment = os.environ | {"OMP_NUM_THREADS": threads, "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
        with (
            (folder / "log.txt").open("ab") as log,
            subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process,
        ):
            self.running.add(process)
            status = process.wait()
            self.running.discard(process)
        if status and not self.stopped.is_set():
            return f"{folder / 'log.txt'}: {_last_line(folder / 'log.txt')}"
        return ""

    def stop(self) -> None:
        """Begin nothing more, and have what is under way leave a checkpoint."""
        self.stopped.set()
        for process in list(self.running):
            process.send_signal(signal.SIGTERM)


def _last_line(path: Path) -> str:
    return (path.read_text(errors="replace").splitlines() or [""])[-1]


def run(study: Study, workers: int, hours: float) -> list[str]:
    """Make what is missing; what went wrong."""
    missing = [cell for cell in study.cells() if not study.is_done(cell)]
    at_work = Workers(study, hours)
    with ThreadPoolExecutor(workers) as pool:
        futures: list[Future[str | None]] = [pool.submit(at_work.make, cell) for cell in missing]
        try:
            results = (future.result() for future in as_completed(futures))
            begun = (result for result in results if result is not None)
            total = len(study.cells())
            return [problem for problem in track(begun, "trainings", total, total - len(missing)) if problem]
        except KeyboardInterrupt:
            at_work.stop()
            raise


def say_plan(study: Study) -> None:
    """What will be trained, and how much of it is there."""
    cells = study.cells()
    done = sum(map(study.is_done, cells))
    ways = counted(len(study.arms), "way")
    say(f"{ways} of training × {len(RATES)} learning rates × {study.seeds} training seeds, {study.steps} steps each:")
    for arm in study.arms:
        rates = ", ".join(f"{rate:g}" for rate in study.rates(arm))
        there = sum(study.is_done(cell) for cell in cells if cell.arm == arm)
        say(f"  {arm.name}: rank {study.rank(arm)}, learning rates {rates}; {there} of {len(RATES) * study.seeds} done")
    say(f"{len(cells)} in all, with the model itself; {done} are in {study.folder}, {len(cells) - done} to do")


def chosen_arms(names: Sequence[str] | None) -> Sequence[Arm]:
    """The ways of training that are asked for, by the names of their folders; all where none is.

    Raises:
        ValueError: there is no such way.
    """
    known = {arm.folder: arm for arm in ARMS}
    if strange := [name for name in names or () if name not in known]:
        raise ValueError(f"--only: given {strange[0]!r}: there is {', '.join(known)}")
    return ARMS if names is None else [arm for folder, arm in known.items() if folder in names]


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


def missing_inputs(study: Study) -> Iterator[Path]:
    """What the stages before have not made yet."""
    yield from (path for path in (*study.inputs(), RAW, DATASET_EMBEDDINGS) if not path.exists())


def main() -> None:
    """Say the plan, do it, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps of each training (400)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"trainings of each arm and learning rate ({SEEDS})")
    parser.add_argument("--workers", type=int, default=2, help="trainings at once (2)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each (1); another number gives other bytes")
    parser.add_argument("--hours", type=float, default=float("inf"), help="begin no training after so many")
    parser.add_argument("--only", nargs="+", metavar="WAY", help="ways of training, by the names of their folders (all)")
    parser.add_argument("--plan", action="store_true", help="say the plan and end")
    parser.add_argument("--report", action="store_true", help="train nothing; print what came of what there is")
    options = parser.parse_args()
    with errors_in_one_line("study"), handled():
        arms = chosen_arms(options.only)
        params = read_params()
        check_experiment(params)
        study = Study(params, options.steps, options.seeds, options.threads, arms)
        if absent := next(missing_inputs(study), None):
            raise FileNotFoundError(f"{absent}: missing; make study runs the stages that make it")
        problems = []
        if not options.report:
            say_plan(study)
        if not options.plan and not options.report:
            problems = run(study, options.workers, options.hours)
        if not options.plan:
            from study_tables import tables

            print("\n".join(tables(study)))
        if problems:
            raise ValueError(f"{len(problems)} trainings failed; the first: {problems[0]}")


if __name__ == "__main__":
    try:
        main()
    except Interrupted as interruption:
        print("study: interrupted; the same command goes on", file=sys.stderr)
        raise SystemExit(128 + interruption.signal_number) from None
