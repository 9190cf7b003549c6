import numpy as np
import pytest

from stages.measures.embedded_files import Embedded
from stages.measures.measuring import dataset_of, measure

NAMES = [f"{number}.png" for number in range(8)]
SETS = {"0.png": "one", "1.png": "one", "2.png": "other", "3.png": "other"}


def embedded(rows, texts, names) -> Embedded:
    images = {"clip": np.array(rows, dtype=np.float32), "dino": np.array(rows, dtype=np.float32)}
    return Embedded(images, np.array(texts, dtype=np.float32), names, [""] * len(names), [""] * len(texts), {}, "")


AXES = np.eye(4).tolist()
DATASET = embedded([AXES[0], AXES[0], AXES[1], AXES[1], *AXES], np.zeros((0, 4)), NAMES)
IMAGES = embedded([AXES[0], AXES[0], AXES[0], AXES[0]], [AXES[0], AXES[1]], ["a", "b", "c", "d"])


def similarity(subjects, held_out=NAMES[:4], sets=SETS):
    return measure(IMAGES, IMAGES, dataset_of(DATASET, held_out, sets), subjects, 2).by_image["dino_similarity"]


def test_without_subjects_likeness_is_to_all_references():
    assert similarity([(), ()], sets=None).tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert similarity([(), ()]).tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_a_prompt_that_names_a_subject_is_measured_by_its_images():
    assert similarity([("one",), ("other",)]).tolist() == [[1.0, 1.0], [0.0, 0.0]]
    assert similarity([("one", "other"), ()]).tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_what_likeness_reaches_is_that_among_images_of_one_subject():
    assert dataset_of(DATASET, NAMES[:4]).ceilings["dino"] == pytest.approx(1 / 3)
    assert dataset_of(DATASET, NAMES[:4], SETS).ceilings["dino"] == pytest.approx(1.0)


def test_a_subject_of_which_nothing_is_held_out_is_named():
    with pytest.raises(ValueError, match=r"no image of other is held out: set download\.held_out_images higher"):
        similarity([("other",), ()], held_out=NAMES[:2])
