"""The seed of a training."""

import shutil

import pytest
from safetensors.numpy import load_file

from stages.checkpoints.file_names import LORA_FILE
from tests.training.running import TRAININGS, digests, history_of, kill_at_a_checkpoint, run_stage, write_params

pytestmark = [pytest.mark.stage, pytest.mark.usefixtures("in_the_world")]


@pytest.mark.parametrize("stage", TRAININGS)
def test_another_seed_is_another_training_and_the_same_one_the_same(encoded, stage):
    """The first loss tells that other images, noise or timesteps were drawn: a fresh adapter adds nothing to the model."""
    write_params(encoded, **{stage: {"max_train_steps": 4}})
    for seed, out in ((0, "one"), (1, "other"), (0, "one-again")):
        run_stage(stage, **TRAININGS[stage] | {"seed": seed}, out=f"{stage}-{out}")
    one, other, again = (encoded / f"{stage}-{out}" for out in ("one", "other", "one-again"))
    assert digests(one) == digests(again)
    assert history_of(one)[0]["loss"] != history_of(other)[0]["loss"]
    weights, others = load_file(one / LORA_FILE), load_file(other / LORA_FILE)
    assert weights.keys() == others.keys()
    assert all((weight != others[name]).any() for name, weight in weights.items())


def test_a_seed_does_not_go_on_from_the_checkpoint_of_another(encoded, capsys):
    write_params(encoded, train_text2img={"max_train_steps": 60})
    options = TRAININGS["train_text2img"]
    kill_at_a_checkpoint(encoded, "train_text2img", **options, out="begun")
    for out in ("fresh", "begun"):
        run_stage("train_text2img", **options | {"seed": 1}, out=out)
    assert "going on after step" not in capsys.readouterr().out
    assert digests(encoded / "begun") == digests(encoded / "fresh")
    shutil.rmtree(encoded / "begun")
    run_stage("train_text2img", **options, out="begun")
    assert digests(encoded / "begun") != digests(encoded / "fresh")
