"""How long does it take to measure 3,000 images anew from their embeddings, and to compare all that they are of?

`python benchmarks/rescore.py` makes up embeddings of the sizes of CLIP ViT-B/32 (512) and DINOv2-base (768): 112 training
images, and 48 images of each variant of a sweep over four alphas, two ranks and four training seeds. Then it does what the
stage compare does before it draws: it reads them, measures them, compares the arms, and writes every table. On two threads,
where OPENBLAS_NUM_THREADS says no other number.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OPENBLAS_NUM_THREADS", "2")

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from stages.dataset.metadata import TEST, TRAIN, ManifestRow, write_manifest  # noqa: E402
from stages.drawing.cells import cells_of, write_cells  # noqa: E402
from stages.measures.comparing import BY_KEY  # noqa: E402
from stages.measures.embedded_files import Embedded, write_embedded  # noqa: E402
from stages.pipeline.compose import group_values  # noqa: E402
from stages.pipeline.config import validate  # noqa: E402
from stages.pipeline.variants import DATASET  # noqa: E402
from stages.report.config import ReportConfig  # noqa: E402
from stages.report.contents import Comparison, TrainingImages  # noqa: E402
from stages.report.results import read_results  # noqa: E402
from stages.report.score_tables import write_cell_tables, write_contrasts, write_distances, write_levels, write_metrics  # noqa: E402
from stages.report.sweep import Sweep  # noqa: E402

SIZES = {"clip": 512, "dino": 768}
SWEEP = Sweep(
    alpha=(0.7, 0.3, 0.5, 0.9),
    rank=(8, 4),
    dreambooth_rank=(8, 4),
    vectors=(),
    seed=(0, 1, 2, 3),
    lora_scale=(1.0,),
    kept_steps={"text2img": (), "dreambooth": (), "textual_inversion": ()},
    bases=("theta0", "theta1"),
)
PROMPTS, SEEDS, TRAINING, HELD_OUT = 12, 4, 112, 12


def unit(generator: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Random embeddings of length 1 that are as like to each other as images of one kind are."""
    rows = generator.normal(size=shape) + 1.5
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def write_world(root: Path) -> int:
    """Write what is read; how many images were drawn."""
    generator = np.random.default_rng(0)
    texts = [f"prompt {number}" for number in range(PROMPTS)]
    cells = cells_of(texts[: PROMPTS // 2], texts[PROMPTS // 2 :], range(SEEDS))
    of_prompts, encoders = unit(generator, PROMPTS, SIZES["clip"]), dict.fromkeys(SIZES, "made up")

    def write(name: str, names: list[str], rows: NDArray[np.float32], prompts: list[str]) -> None:
        images = {encoder: unit(generator, len(names), size) for encoder, size in SIZES.items()}
        write_embedded(Embedded(images, rows, names, names, prompts, encoders, ""), root / f"embeddings/{name}.safetensors")

    for variant in SWEEP.variants:
        folder = root / "images" / variant.name
        folder.mkdir(parents=True)
        for cell in cells:
            (folder / cell.file_name).touch()
        write_cells(folder, cells)
        write(variant.name, [cell.file_name for cell in cells], of_prompts, texts)
    names = [f"{number:04}.png" for number in range(TRAINING)]
    (root / "raw").mkdir()
    for name in names:
        (root / "raw" / name).touch()
    write_manifest(
        root / "raw",
        [ManifestRow(name, "", "", "", "", 8, 8, TEST if number < HELD_OUT else TRAIN) for number, name in enumerate(names)],
    )
    write(DATASET, names, of_prompts[:0], [])
    return len(SWEEP.variants) * len(cells)


def report_config() -> ReportConfig:
    """The committed settings of the comparison."""
    values: dict[str, Any] = group_values("compare", ROOT / "conf") | {"title": "made up"}
    values["card"]["base_models"] = []
    return validate("compare", ReportConfig, values)


def rescore(root: Path) -> None:
    """Read, measure, compare, write."""
    config = report_config()
    results = read_results(SWEEP, root / "images", root / "embeddings", root / "raw", config.subjects)
    comparison = Comparison(results, TrainingImages([], [], 0), {}, {}, {}, {}, {}, config, root, root)
    write_cell_tables(comparison, root)
    for write in (write_levels, write_contrasts, write_distances, write_metrics):
        write(comparison, root / "table")
    for line in comparison.findings.sentences[:1]:
        print(line)


def main() -> None:
    """Make up, time, print."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        count = write_world(Path(folder))
        started, used = time.perf_counter(), time.process_time()
        rescore(Path(folder))
        took, used = time.perf_counter() - started, time.process_time() - used
    print(f"{count} images of {len(SWEEP.variants)} variants, {len(BY_KEY)} measures: {took:.1f} s ({used:.1f} s of CPU)")


if __name__ == "__main__":
    main()
