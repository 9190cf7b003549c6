"""Put all variants side by side: grids, scores with confidence intervals, and a report to read.

Reads the images and scores of every variant of the sweep, the captioned training images, and the histories and previews of
the LoRAs' trainings. Writes grid.png, scores.csv, variants.csv, metrics.json, tables for `dvc plots` (loss.csv,
held_out_loss.csv, learning_rate.csv, grad_norm.csv), charts/ with a sweep-<kind>.png for each kind of LoRA (alpha down,
rank across) and every chart of the page as SVG, and index.html, a page that needs no other file. A report that is there
stays until the new one is whole.

A stage of its own, and without torch, so that the look of the report and the words in it can be changed in seconds. A
variant that lies in the folders and is not in the sweep is left alone: a value that is taken out of the sweep is gone from the
report, and back when the sweep has it again.
"""

import sys
from pathlib import Path

from stages.checkpoints.file_names import HISTORY_FILE, PREVIEWS
from stages.pipeline.command import run
from stages.pipeline.outputs import atomic_directory
from stages.report.config import ReportConfig
from stages.report.sweep import Sweep


def stage(config: ReportConfig, sweep: Sweep, images: Path, scores: Path, loras: Path, dataset: Path, out: Path) -> None:
    """Compare the variants of `sweep`.

    Args:
        config: the section of params.yaml named as the stage.
        sweep: the section `sweep`.
        images: the directory with the images of each variant, in a directory of its own.
        scores: the directory with the scores of each variant, a .csv file of its own.
        loras: the directory with the LoRAs, and the history and the previews of each training.
        dataset: the directory of the training images and their captions.
        out: the directory to write the report to.
    """
    from stages.report.contents import Comparison, read_previews, read_training_images
    from stages.report.histories import read_history
    from stages.report.report import font_problems, write_report
    from stages.report.results import read_results

    trained = [variant for variant in sweep.variants if variant.rank is not None]
    comparison = Comparison(
        results=read_results(sweep, images, scores),
        training=read_training_images(dataset, config.training_images),
        histories={variant: read_history(loras / variant.name / HISTORY_FILE) for variant in trained},
        previews={variant: read_previews(loras / variant.name / PREVIEWS) for variant in trained},
        config=config,
    )
    for problem in font_problems(comparison):
        print(f"warning: compare.{problem}", file=sys.stderr)
    with atomic_directory(out) as folder:
        write_report(comparison, folder)


if __name__ == "__main__":
    run(stage)
