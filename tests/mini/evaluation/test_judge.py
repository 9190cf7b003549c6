import numpy as np
import pytest
import torch

from stages.mini.evaluation.judge import Judge, following, load_judge, subject_share, word_share

TINY = (8, 8, 8, 8)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


def test_a_judge_is_saved_in_half_precision_and_judges_as_before(tmp_path, images):
    torch.manual_seed(0)
    judge = Judge(widths=TINY).half().float().eval()
    judge.save(tmp_path)
    assert load_judge(tmp_path).judge(images) == judge.judge(images)


def test_a_missing_judge_says_how_to_train_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="train_judge"):
        load_judge(tmp_path)


def test_a_judge_answers_with_one_word_of_each_head(images):
    judge = Judge({"skin": ("light", "tan"), "style": ("a", "b", "c")}, TINY)
    found = judge.judge(images)
    assert set(found) == {"skin", "style"}
    assert all(len(words) == 3 for words in found.values())
    assert set(found["skin"]) <= {"light", "tan"}


def test_the_subject_needs_both_her_colour_and_her_hair():
    judged = {"hair": ["twin tails", "twin tails", "long", "short"], "hair_color": ["red", "blue", "red", "red"]}
    assert subject_share(judged) == 0.25
    assert word_share(judged["hair"], "twin tails") == 0.5


def test_following_counts_what_was_asked_and_judged():
    judged = {"skin": ["tan", "light"], "glasses": ["yes", "no"]}
    asked = [{"skin": "tan", "expression": "smiling"}, {"skin": "tan", "glasses": "no"}]
    assert following(judged, asked) == {"glasses": (1, 1), "skin": (1, 2)}
