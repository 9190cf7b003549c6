"""Score the images of one variant with CLIP.

Reads a folder of cells (stage generate) and the training images. Writes a csv file: file_name, prompt, seed, and

- prompt_similarity: cosine between the image and its prompt (CLIP-T);
- reference_similarity: mean cosine between the image and the training images (CLIP-I), a sign of how much of the subject
  or the style was learnt. A copy of a training image scores highest, so look at the grid too.

A stage of its own because another scorer must not cost new images, and because the report needs no torch once the scores
are written.
"""

from pathlib import Path

from pydantic.dataclasses import dataclass

from stages.pipeline.command import run
from stages.pipeline.config import ModelSource, RuntimeConfig, strict
from stages.pipeline.outputs import atomic_file

BATCH_SIZE = 32
"""Images that are embedded together; no setting, because the last digits of a score depend on it."""


@dataclass(frozen=True, config=strict)
class ScoreConfig:
    """What scores.

    Attributes:
        scorer: CLIP, a directory or a hub id with its commit.
    """

    scorer: ModelSource


def stage(config: ScoreConfig, runtime: RuntimeConfig, images: Path, references: Path, out: Path) -> None:
    """Score the cells of the folder `images` against their prompts and the images of the folder `references`.

    Args:
        config: the section of params.yaml named as the stage.
        runtime: the section `runtime`.
        images: the directory of the images to score, as the stage generate writes it.
        references: the directory of the .png images that they are compared with.
        out: the .csv file to write.
    """
    from stages.drawing.cells import read_cells
    from stages.report.scores import write_scores

    cells = read_cells(images)
    reference_files = sorted(references.glob("*.png"))
    if not reference_files:
        raise FileNotFoundError(f"{references}: holds no PNG files to compare with")

    from stages.drawing import embeddings
    from stages.pipeline.hub.repositories import fetch_model
    from stages.pipeline.torch_runtime import prepare, weight_dtype

    device = prepare(runtime)
    scorer = embeddings.load_scorer(fetch_model("score.scorer", config.scorer), device, weight_dtype(runtime))
    scores = embeddings.score_cells(scorer, images, cells, reference_files, BATCH_SIZE)
    with atomic_file(out) as part:
        write_scores(part, scores)


if __name__ == "__main__":
    run(stage)
