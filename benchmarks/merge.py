"""Time and memory of a merge of two full-size SD1 checkpoints in fp16, by this pipeline and by other tools.

Makes the pair once (random weights under the true keys, 2 GB each), then, one after another with the files in the page cache:
copies them with `cat`, merges them with this pipeline, and with sd-meh, sd-mecha and mergekit, each in an environment of its
own below --venvs (made if it is not there). Prints a table, and compares the results with each other.

    python benchmarks/merge.py --folder DIR               # ours and cat
    python benchmarks/merge.py --folder DIR --venvs VENVS  # the other tools too
    python benchmarks/merge.py --folder DIR --tiny        # a few MB, to see that it runs
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sd1 import SD1
from turns import peak_memory

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

ALPHA = 0.7
SEEDS = {"theta0": 0, "theta1": 1}
TORCH = "torch==2.13.0"
INDEX = "https://download.pytorch.org/whl/cpu"
PEERS = {
    "sd-meh": ["sd-meh==0.9.5", TORCH, "numpy", "safetensors", "tensordict", "scipy", "tqdm"],
    "sd-mecha": ["sd-mecha==1.1.8", TORCH, "numpy"],
    "mergekit": ["mergekit==0.1.5", TORCH],
}
THREADS = {"sd-meh": (1, 2), "sd-mecha": (0, 2), "mergekit": (2,)}
"""What is tried of each; its best counts. sd-mecha's 0 is no threads of its own."""

TINY = {
    "unet": {"block_out_channels": [32, 64, 64, 64]},
    "vae": {"block_out_channels": [32, 32, 64, 64]},
    "text_encoder": {"vocab_size": 1000, "num_hidden_layers": 2},
}

MEH = """
import sys
from sd_meh.merge import merge_models, save_model
a, b, out, threads = sys.argv[1:]
merged = merge_models({"model_a": a, "model_b": b}, {"alpha": [0.7] * 25}, {"alpha": 0.7}, "weighted_sum",
                      precision=16, device="cpu", threads=int(threads))
save_model(merged, out.removesuffix(".safetensors"), "safetensors")
"""
MECHA = """
import sys, sd_mecha
a, b, out, threads = sys.argv[1:]
first = sd_mecha.model(a)
merged = sd_mecha.weighted_sum(first, sd_mecha.model(b), alpha=0.7)
merged = sd_mecha.omit_component(merged, "vae") | sd_mecha.pick_component(first, "vae")
sd_mecha.merge(merged, output=out, threads=int(threads))
"""
MERGEKIT = """
merge_method: linear
models:
  - model: {theta0}
    parameters: {{weight: [{{filter: first_stage_model, value: 1.0}}, {{value: 0.3}}]}}
  - model: {theta1}
    parameters: {{weight: [{{filter: first_stage_model, value: 0.0}}, {{value: 0.7}}]}}
parameters: {{normalize: false}}
dtype: float32
"""


def main() -> None:
    """Measure, print the table, write the figures."""
    options = _options()
    if options.part:
        return {"pair": make_pair, "ours": merge_ours, "compare": compare}[options.part](options)
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if not all((folder / f"{name}.safetensors").exists() for name in SEEDS):
        _part("pair", options, [])
    copy = _measured_copy(folder)
    ours = [_measured(_self("ours", options), folder / "ours.safetensors") for _ in range(options.repeat)]
    best = min(ours, key=lambda figures: figures["wall"])
    best["merge"] = json.loads((folder / "ours.json").read_text())["merge"]
    peers = {} if options.venvs is None else {name: _best_of_peer(name, options.venvs.resolve(), folder) for name in PEERS}
    report = {"copy": copy, "ours": best, "peers": peers, "ratios": _ratios(copy, best, peers)}
    report |= {"comparison": json.loads(_part("compare", options, sorted(peers)))}
    print(_table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")
    return None


def make_pair(options: argparse.Namespace) -> None:
    """Write two checkpoints with the true keys of SD1 and random weights, and the configs that describe them."""
    import numpy as np

    from stages.checkpoints.files.tensors import LazyTensor
    from stages.checkpoints.files.writing import write_safetensors
    from stages.checkpoints.keys.key_maps import component_specs

    configs = _configs(options.tiny)
    _write_configs(options.folder / "configs", configs)
    shapes = {spec.ldm_name: spec.ldm_shape for name, config in configs.items() for spec in component_specs(name, config)}
    for name, seed in SEEDS.items():
        generator = np.random.default_rng(seed)

        def weights(shape: tuple[int, ...], generator: np.random.Generator = generator) -> np.ndarray:
            bits = generator.integers(0, 2**16, shape, np.uint16)  # a random sign and fraction, magnitudes from 2^-8 to 2^-4
            return ((bits & np.uint16(0x8FFF)) | np.uint16(7 << 10)).view(np.float16)

        tensors = {key: LazyTensor(shape, "F16", lambda shape=shape: weights(shape)) for key, shape in shapes.items()}
        positions = configs["text_encoder"]["max_position_embeddings"]
        key = "cond_stage_model.transformer.text_model.embeddings.position_ids"
        tensors[key] = LazyTensor((1, positions), "I64", lambda positions=positions: np.arange(positions))
        write_safetensors(options.folder / f"{name}.safetensors", tensors, "float16", {}, threads=1)


def merge_ours(options: argparse.Namespace) -> None:
    """Merge the pair with this pipeline, from single files to a single file, theta0's VAE in it."""
    start = time.perf_counter()
    from dataclasses import replace

    from stages.checkpoints.merging.config import WEIGHTED_SUM
    from stages.checkpoints.merging.models import merge_models
    from stages.checkpoints.model import read_model
    from stages.checkpoints.single_file import write_single_file

    imported = time.perf_counter()
    models = [read_model(options.folder / f"{name}.safetensors", options.folder / "configs") for name in SEEDS]
    merged = merge_models(models[0], models[1], WEIGHTED_SUM, ALPHA)
    merged = replace(merged, components={**merged.components, "vae": models[0].components["vae"]})
    write_single_file(merged, options.folder / "ours.safetensors", "float16")
    merge = time.perf_counter() - imported
    (options.folder / "ours.json").write_text(json.dumps({"imports": imported - start, "merge": merge}))


def compare(options: argparse.Namespace) -> None:
    """Print, as JSON, how far each result is from exact arithmetic, and how many units in the last place from ours."""
    import numpy as np

    from stages.checkpoints.files.tensors import open_safetensors

    originals = [open_safetensors(options.folder / f"{name}.safetensors") for name in SEEDS]
    results = {name: _result(options.folder, name) for name in ("ours", *options.peers)}
    figures = {name: {"largest_error": 0.0, "ulps_from_ours": 0, "keys": 0, "missing": 0} for name in results}
    for key in sorted(originals[0]):
        if originals[0][key].dtype != "F16" or key.startswith("first_stage_model."):
            continue
        theta0, theta1 = (original[key].read().astype(np.float32) for original in originals)
        exact = (1 - ALPHA) * theta0.astype(np.float64) + ALPHA * theta1
        ours = results["ours"][key].read()
        for name, tensors in results.items():
            if key not in tensors:
                figures[name]["missing"] += 1
                continue
            theirs = tensors[key].read()
            error, ulps = np.abs(theirs - exact).max(), np.abs(_ordered(theirs) - _ordered(ours)).max()
            figures[name]["largest_error"] = max(figures[name]["largest_error"], float(error))
            figures[name]["ulps_from_ours"] = max(figures[name]["ulps_from_ours"], int(ulps))
            figures[name]["keys"] += 1
    print(json.dumps(figures))


def _ordered(values: Any) -> Any:
    """Integers in the order of the float16 values that `values` round to, neighbours being 1 apart."""
    import numpy as np

    bits = values.astype(np.float16).view(np.int16).astype(np.int32)
    return np.where(bits < 0, -(bits & 0x7FFF), bits)


def _result(folder: Path, name: str) -> dict[str, Any]:
    from stages.checkpoints.files.tensors import open_safetensors

    path = folder / name if (folder / name).is_dir() else folder / f"{name}.safetensors"
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return {key: tensor for file in files for key, tensor in open_safetensors(file).items()}


def _measured_copy(folder: Path) -> dict[str, float]:
    inputs = [str(folder / f"{name}.safetensors") for name in SEEDS]
    subprocess.run(["cat", *inputs], stdout=subprocess.DEVNULL, check=True)  # into the page cache
    start = time.perf_counter()
    subprocess.run(["cat", *inputs], stdout=subprocess.DEVNULL, check=True)
    with (folder / "copy.safetensors").open("wb") as out:
        subprocess.run(["cat", inputs[0]], stdout=out, check=True)
    wall = time.perf_counter() - start
    (folder / "copy.safetensors").unlink()
    return {"wall": wall}


def _measured(command: Sequence[str], out: Path) -> dict[str, float]:
    """Wall time, processor time (s) and peak memory (GiB) of a process that writes `out` anew."""
    subprocess.run(["rm", "-rf", str(out)], check=True)
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"exit status {process.returncode}: {' '.join(command[:3])} …")
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "peak_rss_gib": peak_memory(usage) / 2**30}


def _best_of_peer(name: str, venvs: Path, folder: Path) -> dict[str, float]:
    python = venvs / name / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venvs / name)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--extra-index-url", INDEX]
        subprocess.run([*pip, *PEERS[name]], check=True)
    runs = []
    for threads in THREADS[name]:
        out = folder / (name if name == "mergekit" else f"{name}.safetensors")
        runs.append({**_measured(_peer_command(name, python, folder, threads), out), "threads": threads})
    return min(runs, key=lambda run: run["wall"])


def _peer_command(name: str, python: Path, folder: Path, threads: int) -> list[str]:
    inputs = {theta: str(folder / f"{theta}.safetensors") for theta in SEEDS}
    if name == "mergekit":
        (folder / "mergekit.yml").write_text(MERGEKIT.format(**inputs))
        tool = str(python.with_name("mergekit-pytorch"))
        return [tool, str(folder / "mergekit.yml"), str(folder / "mergekit"), "--lazy-unpickle"]
    script = {"sd-meh": MEH, "sd-mecha": MECHA}[name]
    return [str(python), "-c", script, *inputs.values(), str(folder / f"{name}.safetensors"), str(threads)]


def _ratios(copy: Mapping[str, float], ours: Mapping[str, float], peers: Mapping[str, Any]) -> dict[str, float]:
    ratios = {"wall_vs_copy": ours["merge"] / copy["wall"]}
    return ratios | ({"wall_vs_best_peer": ours["wall"] / min(peer["wall"] for peer in peers.values())} if peers else {})


def _table(report: Mapping[str, Any]) -> str:
    rows = [f"{'':22}{'wall s':>8}{'cpu s':>8}{'RSS GiB':>9}{'largest error':>15}{'ulps from ours':>16}{'keys':>6}"]
    rows += [f"{'cat':22}{report['copy']['wall']:8.2f}", f"{'ours, the merge itself':22}{report['ours']['merge']:8.2f}"]
    for name, run in {"ours": report["ours"], **report["peers"]}.items():
        seen = report["comparison"][name]
        rows.append(
            f"{name + ', whole process':22}{run['wall']:8.2f}{run['cpu']:8.2f}{run['peak_rss_gib']:9.2f}"
            f"{seen['largest_error']:15.2e}{seen['ulps_from_ours']:16}{seen['keys']:6}"
        )
    return "\n".join([*rows, *(f"{name}: {ratio:.2f}" for name, ratio in report["ratios"].items())])


def _configs(tiny: bool) -> dict[str, dict[str, Any]]:
    return {name: {**config, **(TINY[name] if tiny else {})} for name, config in SD1.items()}


def _write_configs(folder: Path, configs: Mapping[str, Mapping[str, Any]]) -> None:
    files = {f"{name}/config.json": config for name, config in configs.items()}
    files["model_index.json"] = {"_class_name": "StableDiffusionPipeline"}
    files["scheduler/scheduler_config.json"] = {"prediction_type": "epsilon"}
    files["tokenizer/tokenizer_config.json"] = {}
    for path, values in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(values))


def _self(part: str, options: argparse.Namespace, peers: Sequence[str] = ()) -> list[str]:
    command = [sys.executable, str(Path(__file__).resolve()), "--folder", str(options.folder.resolve()), "--part", part]
    return [*command, *(["--tiny"] if options.tiny else []), *peers]


def _part(part: str, options: argparse.Namespace, peers: Sequence[str]) -> str:
    """Run a part in a process of its own: this one stays small, because a child's peak memory counts its parent's."""
    return subprocess.run(_self(part, options, peers), stdout=subprocess.PIPE, text=True, check=True).stdout


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the pair lies, or is made; 7 to 16 GB")
    parser.add_argument(
        "--venvs", type=Path, help="where the other tools' environments lie, or are made; without it, they are left out"
    )
    parser.add_argument("--tiny", action="store_true", help="a pair of a few MB; the other tools may refuse it")
    parser.add_argument("--repeat", type=int, default=2, help="runs of ours, of which the best counts")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--part", choices=["pair", "ours", "compare"], help=argparse.SUPPRESS)
    parser.add_argument("peers", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
