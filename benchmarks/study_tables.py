"""What study.py found: a table of all ways of training, their differences, and how often chance alone makes one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from study_cell import DIVERGED, EMBEDDINGS, IMAGES, LORA
from study_plan import CONTRASTS, DATASET_EMBEDDINGS, METHODS, RAW, Arm, Cell, Study

from stages.checkpoints.file_names import lora_file
from stages.dataset.metadata import TEST, read_manifest
from stages.drawing.cells import read_cells
from stages.measures.comparing import (
    BY_KEY,
    ArmValues,
    Contrast,
    Declared,
    applies,
    chosen_on,
    compare,
    estimate,
    halves,
    select,
)
from stages.measures.embedded_files import read_embedded
from stages.measures.measuring import METRICS, Dataset, Measured, dataset_of, measure
from stages.pipeline.wording import counted
from stages.report.findings import interval, number, plain, say
from stages.report.score_tables import trained_weights

PRIMARY = BY_KEY["trigger_specificity"]
COLUMNS = {
    "trigger_specificity": "specificity",
    "subject_fidelity": "fidelity",
    "leak": "leak",
    "prompt_alignment_other": "alignment, not named",
    "diversity": "diversity",
}
FEWEST = 2
"""Trainings of an arm and learning rate, fewer of which say nothing of a method."""


@dataclass(frozen=True)
class Found:
    """An arm at its best learning rate.

    Attributes:
        arm: which.
        rate: the learning rate, chosen by the primary measure on one half of the prompts and seeds.
        seeds: the training seeds that there are at each learning rate.
        diverged: learning rates at which a training diverged; they cannot be chosen.
        weights: how many are trained.
    """

    arm: Arm
    rate: float
    seeds: Sequence[int]
    diverged: Sequence[float]
    weights: int


class Evidence:
    """What the images of a study say."""

    def __init__(self, study: Study) -> None:
        self.study = study
        cells = read_cells(study.folder / Cell().name / IMAGES)
        self.asks: NDArray[np.bool_] = np.array(list({cell.prompt_index: cell.prompts == "subject" for cell in cells}.values()))
        self.noise_seeds = len({cell.seed for cell in cells})
        self.even, self.odd = halves(self.noise_seeds)
        self.reported = ~chosen_on(self.asks)
        if len(study.tried) == 1:  # nothing is chosen
            self.odd, self.reported = np.ones_like(self.odd), np.ones_like(self.asks)
        rows = read_manifest(RAW)
        held_out = [row.file_name for row in rows if row.split == TEST]
        self.dataset: Dataset = dataset_of(read_embedded(DATASET_EMBEDDINGS), held_out)
        self.base = read_embedded(study.folder / Cell().name / EMBEDDINGS)
        self.known: dict[Cell, Measured] = {}

    def measured(self, cell: Cell) -> Measured:
        """The images of one training."""
        if cell not in self.known:
            embedded = read_embedded(self.study.folder / cell.name / EMBEDDINGS)
            self.known[cell] = measure(embedded, self.base, self.dataset, [()] * len(self.asks), self.noise_seeds)
        return self.known[cell]

    def values(self, cells: Sequence[Cell], metric: str, seeds: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """A metric of several trainings, (T, P), over all seeds of the noise or some."""
        return np.stack([self.measured(cell).by_prompt(metric, seeds) for cell in cells])

    def reported_values(self, cells: Sequence[Cell]) -> ArmValues:
        """Each metric of several trainings on what is reported, (T, P)."""
        return {metric: self.values(cells, metric, self.odd)[:, self.reported] for metric in METRICS}

    def whole(self, cells: Sequence[Cell]) -> ArmValues:
        """Each metric of several trainings, (T, P)."""
        return {metric: self.values(cells, metric) for metric in METRICS}

    def seeds_of(self, arm: Arm) -> list[int]:
        """The training seeds that are done at every learning rate."""
        cells = {seed: [Cell(arm, rate, seed) for rate in self.study.rates(arm)] for seed in range(self.study.seeds)}
        return [seed for seed, at_rates in cells.items() if all(map(self.study.is_done, at_rates))]

    @cached_property
    def found(self) -> dict[Arm, Found]:
        """Every arm of which there are enough trainings, at its best learning rate."""
        arms = {arm: self._choose(arm) for arm in self.study.arms if len(self.seeds_of(arm)) >= FEWEST}
        return {arm: found for arm, found in arms.items() if found is not None}

    def _choose(self, arm: Arm) -> Found | None:
        seeds = self.seeds_of(arm)
        cells = {rate: [Cell(arm, rate, seed) for seed in seeds] for rate in self.study.rates(arm)}
        diverged = [rate for rate, of_rate in cells.items() if any(self._diverged(cell) for cell in of_rate)]
        left = {rate: of_rate for rate, of_rate in cells.items() if rate not in diverged}
        if not left:
            return None
        candidates = {
            f"{rate:g}": (self.values(of_rate, PRIMARY.metric, self.even), self.values(of_rate, PRIMARY.metric, self.odd))
            for rate, of_rate in left.items()
        }
        selection = select(candidates, self.asks, PRIMARY)
        rate = float(selection.chosen) if selection else next(iter(left))
        file = lora_file(self.study.folder / Cell(arm, rate, seeds[0]).name / LORA)
        return Found(arm, rate, seeds, diverged, trained_weights(file))

    def _diverged(self, cell: Cell) -> bool:
        return (self.study.folder / cell.name / DIVERGED).is_file()

    @cached_property
    def contrasts(self) -> list[Contrast]:
        """The declared differences of arms at their best learning rates, corrected together."""
        declared = []
        for one, other in CONTRASTS:
            if one in self.found and other in self.found:
                seeds = [seed for seed in self.found[one].seeds if seed in self.found[other].seeds]
                pair = [[Cell(arm, self.found[arm].rate, seed) for seed in seeds] for arm in (one, other)]
                declared.append(Declared((one.name, other.name), [self.reported_values(cells) for cells in pair]))
        seeds = int(self.odd.sum())
        primary = PRIMARY.key if all(arm in self.found for arm in CONTRASTS[0]) else ""
        return compare(declared, self.asks[self.reported], seeds, primary) if declared else []

    def by_chance(self) -> tuple[int, int, int, int]:
        """How many pairs differ in the training seed alone, and how many of them are told apart: of files, then of methods.

        A pair of files are two trainings, with prompts as the units; a pair of methods are two and two, with trainings as the
        units. All verdicts of a pair are corrected together, as on a page that compares just these.
        """
        files, apart, methods, apart_as_methods = 0, 0, 0, 0
        for arm, found in self.found.items():
            for rate in self.study.rates(arm):
                if rate in found.diverged:
                    continue
                cells = [Cell(arm, rate, seed) for seed in found.seeds]
                for one, other in zip(cells[::2], cells[1::2], strict=False):
                    files, apart = files + 1, apart + self._told_apart([one], [other])
                if len(cells) >= 4:
                    methods, apart_as_methods = methods + 1, apart_as_methods + self._told_apart(cells[:2], cells[2:4])
        return files, apart, methods, apart_as_methods

    def _told_apart(self, one: Sequence[Cell], other: Sequence[Cell]) -> bool:
        declared = Declared(("one", "other"), [self.whole(one), self.whole(other)])
        return any(each.told_apart for each in compare([declared], self.asks, self.noise_seeds, PRIMARY.key))


def tables(study: Study) -> Iterator[str]:
    """The table, the differences, and what they do not allow to say, as lines of Markdown."""
    evidence = Evidence(study) if study.is_done(Cell()) else None
    if evidence is None or not evidence.found:
        yield f"nothing to report yet: no way of training has {FEWEST} trainings at each learning rate"
        return
    asks = evidence.asks[evidence.reported]
    measures = [BY_KEY[key] for key in COLUMNS if applies(BY_KEY[key], asks, int(evidence.odd.sum()))]
    names = [COLUMNS[each.key] for each in measures]
    header = ["method", "trained", "text encoder", "class images", "learning rate", "weights", "trainings", *names]
    yield f"| {' | '.join(header)} |"
    yield "|" + "---|" * len(header)
    base = evidence.reported_values([Cell()])
    levels = [number(estimate(each, base[each.metric], asks).mean) for each in measures]
    yield f"| none: the merge | | | | | | | {' | '.join(levels)} |"
    for arm, found in evidence.found.items():
        values = evidence.reported_values([Cell(arm, found.rate, seed) for seed in found.seeds])
        levels = [interval(estimate(each, values[each.metric], asks)) for each in measures]
        yes = {True: "yes", False: "no"}
        told = [METHODS[arm.method], arm.trained, yes[arm.text_encoder], yes[arm.regularised]]
        yield f"| {' | '.join([*told, f'{found.rate:g}', f'{found.weights:,}', str(len(found.seeds)), *levels])} |"
    yield ""
    yield from _sentences(evidence)


def _sentences(evidence: Evidence) -> Iterator[str]:
    """What is told apart, and what none of it allows to say."""
    study, tested = evidence.study, evidence.contrasts
    for each in tested:
        if each.primary or each.told_apart or each.measure == PRIMARY:
            yield f"- {'The main question: ' if each.primary else ''}{plain(say(each))}"
    if left := [each for each in tested if not each.told_apart and each.measure != PRIMARY]:
        yield f"- Not told apart by other measures: {counted(len(left), 'comparison')} of {len(tested)}."
    main = next((each.interval for each in tested if each.primary), None)
    if main is not None and main.detectable is not None:
        yield f"- The smallest difference in the main question that would show, four times in five: {number(main.detectable)}."
    for arm, found in evidence.found.items():
        if found.diverged:
            yield f"- {arm.name}: trainings diverged at the learning rate {', '.join(f'{rate:g}' for rate in found.diverged)}."
    several = len(study.tried) > 1
    for end, further in ((min, "lower"), (max, "higher")) if several else ():
        if edge := [arm.name for arm, found in evidence.found.items() if found.rate == end(study.rates(arm))]:
            yield f"- A {further} learning rate than those tried may be better for {'; '.join(edge)}."
    files, apart, methods, as_methods = evidence.by_chance()
    yield (
        f"- By chance alone: of {files} pairs of trainings that differ in their seed, {apart} are told apart as files; of "
        f"{methods} pairs of two trainings against two, {as_methods} as methods."
    )
    rates = f"one of {len(study.tried)} learning rates" if several else "one learning rate"
    chosen = (
        "The best was chosen by the specificity on half of the prompts and seeds; what stands here comes from the other half. "
    )
    yield (
        f"- Each training has {study.steps} optimizer steps at {rates}. {chosen if several else ''}The units are trainings; "
        "verdicts are corrected together (Holm)."
    )
    rest = [arm for arm in study.arms if arm not in evidence.found]
    if rest:
        yield f"- Not trained often enough yet: {'; '.join(arm.name for arm in rest)}."
