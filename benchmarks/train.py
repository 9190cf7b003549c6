"""Training side by side: ours, diffusers' example scripts, the UNet's own forward and backward, and full fine-tuning.

`python benchmarks/train.py --diffusers CHECKOUT [--json FILE]`, where CHECKOUT is a clone of
https://github.com/huggingface/diffusers whose examples fit the installed version (measured with commit
58eb52c0803ea9af3abec60841c2a093bdf1f951); without it, the scripts are left out.

Every figure comes from a process of its own. All of a kind are alive at once and take turns of a few steps, so that each is
timed alone and all in the same minutes; a step is the median of the turns, everything included, and a ratio that of the ratios
of turns beside each other. The start is what a process takes apart from its steps. Ours is the stage as DVC runs it; encoding
the images and captions is a stage before it, once for a whole sweep, and is shown apart. The limit is one fixed batch, forward
and backward, through the same UNet with the same adapters, and nothing else; a word that is taught (textual_inversion) has no
adapters, and its text encoder is a part of each step.

--sd1 takes a model of Stable Diffusion 1.5's size with random weights, and fits the other settings to it: 512 px, batch 1 on a
CPU, there one process after the other for want of memory, and 4 on a GPU, there in bfloat16. --compiled adds ours with
`compile: true`, and the limit likewise.
"""

import argparse
import json
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contenders import COMPILED, FULL, LIMIT, ROOT, SCRIPTS, Contender, Setup, contenders, encode, make_world, write_params
from turns import Racer, Run, race

sys.path.insert(0, str(ROOT))
from stages.pipeline.progress import track

SD1_SETTINGS = {
    "cpu": {"resolution": 512, "batch_size": 1, "num_images": 4, "steps": 4, "turn": 4, "rounds": 1, "dtype": "float32"},
    "cuda": {"resolution": 512, "batch_size": 4, "num_images": 16, "steps": 105, "turn": 15, "rounds": 2, "dtype": "bfloat16"},
}
MINI_SETTINGS = {
    "resolution": 64, "batch_size": 4, "num_images": 32, "steps": 56, "turn": 7, "rounds": 2, "dtype": "float32"
}  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """What all rounds of a contender gave.

    Attributes:
        paces: seconds of a step, of each turn.
        start: seconds before the first step and after the last, of the best round.
        memory: peak, in bytes.
        result: bytes of the file with the trained weights.
        notes: what else the program wrote down.
    """

    paces: Sequence[float]
    start: float
    memory: int
    result: int
    notes: Mapping[str, float]

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return statistics.median(self.paces)


def make_racer(setup: Setup, contender: Contender, folder: Path) -> Racer:
    """A process for a contender, in a new folder of its own."""
    options = setup.options
    folder.mkdir()
    write_params(setup, folder, contender.tuned, contender.compiled)
    turns = ["times.json", str(options.steps), str(options.turn)]
    command = [ROOT / "benchmarks" / contender.program, *turns, *contender.words]
    return Racer(command, folder, setup.environment | {"DVC_ROOT": str(folder)})


def measure(setup: Setup, found: Mapping[str, Contender], kind: str) -> dict[str, Figures]:
    """Run all of them, in turns, and that in rounds."""
    options = setup.options
    runs: dict[str, list[Run]] = {name: [] for name in found}
    results: dict[str, int] = {}
    for number in track(range(options.rounds), f"rounds of {kind}"):
        folders = {name: setup.work / f"{kind} {number} {place}" for place, name in enumerate(found)}
        racers = {name: make_racer(setup, contender, folders[name]) for name, contender in found.items()}
        # Where a turn is all of a run, nothing is alive beside anything else.
        groups = [racers] if options.turn < options.steps else [{name: racer} for name, racer in racers.items()]
        for group in groups:
            for name, run in race(group).items():
                runs[name].append(run)
        for name, contender in found.items():
            results[name] = contender.result_bytes(folders[name])
    return {name: summarize(done, results[name]) for name, done in runs.items()}


def summarize(runs: Sequence[Run], result: int) -> Figures:
    """The figures of all rounds."""
    paces = [pace for run in runs for pace in run.paces]
    return Figures(paces, min(run.start for run in runs), max(run.memory for run in runs), result, runs[0].notes)


def quotient(upper: Figures, lower: Figures) -> float:
    """How many times as long a step takes, by turns beside each other."""
    return statistics.median(above / below for above, below in zip(upper.paces, lower.paces, strict=True))


def ratios(figures: Mapping[str, Figures], kind: str, mode: str) -> dict[str, float]:
    """Ours against the script and the limit."""
    mine, theirs = figures[f"{kind}, ours{mode}"], figures.get(f"{kind}, script")
    found = {"step_vs_limit": quotient(mine, figures[LIMIT + mode])}
    if theirs is not None:
        found["steps_per_second"] = quotient(theirs, mine)
        found["peak_memory"] = mine.memory / theirs.memory
        found["start"] = mine.start / theirs.start
    return found


def lora_vs_full(figures: Mapping[str, Figures]) -> dict[str, float]:
    """Ours with an adapter against ours with all weights."""
    lora, full = figures["text2img, ours"], figures[FULL]
    return {"step": quotient(lora, full), "memory": lora.memory / full.memory, "result": lora.result / full.result}


def report(figures: Mapping[str, Figures]) -> None:
    """Print a table, and what the steps reach of the machine."""
    print(f"{'':40}{'ms a step':>12}{'start s':>10}{'peak MiB':>10}{'file MB':>10}")
    for name, found in figures.items():
        result = f"{found.result / 1e6:10.3f}" if found.result else ""
        print(f"{name:40}{found.step * 1000:12.1f}{found.start:10.1f}{found.memory / 2**20:10.0f}{result}")
    notes = figures[LIMIT].notes
    for name, found in figures.items():
        if ", ours" in name and name != FULL:
            reached = notes["flops"] / found.step
            print(
                f"{name}: {reached / 1e9:,.0f} GFLOP/s, {reached / notes['matrix_throughput']:.0%} of the "
                f"{notes['matrix_throughput'] / 1e9:,.0f} of one large matrix product"
            )


def first_compilation(setup: Setup, name: str, contender: Contender) -> None:
    """Run what is compiled once, so that all later runs find the cache; say what that took."""
    racer = make_racer(setup, contender, setup.work / f"first {name}")
    race({name: racer})
    print(f"{name}: {racer.seconds:.0f} s the first time, with compiling", flush=True)


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all."""
    result: dict[str, Any] = {"ratios": {}}
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(Path(folder), Path(folder) / "model" if options.sd1 else options.model.resolve(), options)
        if options.sd1:
            setup.run(ROOT / "benchmarks/sd1.py", setup.model, ROOT / "data/mini/base/tokenizer")
        make_world(setup.work, options)
        for name, seconds in encode(setup).items():
            print(f"encoding {name}, once for a sweep: {seconds:.1f} s", flush=True)
        for kind in options.kinds:
            found = contenders(setup, kind)
            for name in found:
                if name.endswith(COMPILED) and not (setup.work / f"first {name}").exists():
                    first_compilation(setup, name, found[name])
            figures = measure(setup, found, kind)
            report(figures)
            for mode in ("", COMPILED) if options.compiled else ("",):
                result["ratios"][kind + mode] = ratios(figures, kind, mode)
            if FULL in figures:
                result["lora_vs_full"] = lora_vs_full(figures)
    return result


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "data/mini/base", help="in diffusers layout")
    parser.add_argument("--images", type=Path, default=ROOT / "data/mini/asuka", help="a folder with PNG images")
    parser.add_argument("--diffusers", type=Path, help="a checkout of diffusers")
    parser.add_argument("--json", type=Path, help="a file for the ratios")
    parser.add_argument("--kinds", nargs="+", choices=list(SCRIPTS), default=list(SCRIPTS))
    parser.add_argument("--sd1", action="store_true", help="a model of Stable Diffusion 1.5's size in place of --model")
    parser.add_argument("--compiled", action="store_true", help="ours compiled, too")
    parser.add_argument("--steps", type=int, help="of a run")
    parser.add_argument("--turn", type=int, help="steps of a turn; as many as a run has: one process after the other")
    parser.add_argument("--rounds", type=int, help="how often everything runs")
    parser.add_argument("--num-images", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], help="a GPU where there is one, unless told")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"])
    options = parser.parse_args()
    if options.device is None:
        options.device = "cuda" if shutil.which("nvidia-smi") is not None else "cpu"
    settings = SD1_SETTINGS[options.device] if options.sd1 else MINI_SETTINGS
    for name, value in settings.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.steps < 2 or options.turn < 2:
        parser.error("--steps, --turn: at least 2")
    return options


def main() -> None:
    """Measure and print; with --json, write the ratios."""
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no stopped process is left behind
    if options.diffusers is not None:
        options.diffusers = options.diffusers.resolve()
    result = benchmark(options)
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
