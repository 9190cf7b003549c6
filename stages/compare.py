"""Put all variants side by side: grids, scores with confidence intervals, and a report to read.

Reads the images of every variant of the sweep and their embeddings, the captioned training images, the manifest that says which
images were held out, and the files, histories and previews of the LoRAs' trainings. Writes grid.png, levels.csv, contrasts.csv,
cells.csv and cells.parquet, distances.csv, costs.csv, findings.txt (the answer in sentences), metrics.json, tables for
`dvc plots` (loss.csv, held_out_loss.csv, learning_rate.csv, grad_norm.csv), charts/ with the grids of the sweep for each kind
of LoRA (sweep-<kind>.png: alpha down, rank across) and every chart of the page as SVG, and index.html with the pictures that it
shows, in images/, thumbnails/, dataset/ and lora/. A report that is there stays until the new one is whole.

A stage of its own, and without torch, so that the look of the report and the words in it can be changed in seconds. A
variant that lies in the folders and is not in the sweep is left alone: a value that is taken out of the sweep is gone from the
report, and back when the sweep has it again.
"""

import sys
from dataclasses import asdict
from pathlib import Path

from stages.checkpoints.file_names import HISTORY_FILE, PREVIEWS, trained_file
from stages.checkpoints.merging.config import MergeConfig
from stages.lora.config import DreamboothConfig, Text2imgConfig, TextualInversionConfig
from stages.pipeline.command import run
from stages.pipeline.outputs import atomic_directory
from stages.report.config import ReportConfig
from stages.report.sweep import Sweep


def stage(  # noqa: PLR0913
    config: ReportConfig,
    sweep: Sweep,
    merge: MergeConfig,
    train_text2img: Text2imgConfig,
    train_dreambooth: DreamboothConfig,
    train_textual_inversion: TextualInversionConfig,
    images: Path,
    embeddings: Path,
    loras: Path,
    raw: Path,
    dataset: Path,
    out: Path,
) -> None:
    """Compare the variants of `sweep`.

    Args:
        config: the section of params.yaml named as the stage.
        sweep: the section `sweep`.
        merge: the section `merge`, to be told of.
        train_text2img: the section `train_text2img`, likewise.
        train_dreambooth: the section `train_dreambooth`, likewise.
        train_textual_inversion: the section `train_textual_inversion`, likewise.
        images: the directory with the images of each variant, in a directory of its own.
        embeddings: the directory with the embeddings of each variant and of the dataset, a file each.
        loras: the directory with the LoRAs, and the history and the previews of each training.
        raw: the directory of the dataset's images and of their manifest.
        dataset: the directory of the training images and their captions.
        out: the directory to write the report to.
    """
    from stages.report.contents import Comparison, read_previews, read_training_images
    from stages.report.histories import read_history
    from stages.report.report import font_problems, write_report
    from stages.report.results import read_results

    trained = sweep.trained
    comparison = Comparison(
        results=read_results(sweep, images, embeddings, raw, config.subjects),
        training=read_training_images(dataset, raw, config.training_images),
        histories={variant: read_history(loras / variant.name / HISTORY_FILE) for variant in trained},
        previews={variant: read_previews(loras / variant.name / PREVIEWS) for variant in trained},
        files={variant: trained_file(loras / variant.name) for variant in trained},
        trainings={
            "text2img": train_text2img.of_weights,
            "dreambooth": train_dreambooth.of_weights,
            "textual_inversion": train_textual_inversion.of_weights,
        },
        merging=asdict(merge),
        config=config,
        dataset=dataset,
        loras=loras,
    )
    for problem in font_problems(comparison):
        print(f"warning: compare.{problem}", file=sys.stderr)
    with atomic_directory(out) as folder:
        write_report(comparison, folder)


if __name__ == "__main__":
    run(stage)
