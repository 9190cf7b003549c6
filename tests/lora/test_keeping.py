"""What keeping on the way leaves behind in a training, and what it hands over."""

import pytest
import torch
from safetensors.torch import load_file

from stages.checkpoints.file_names import LORA_FILE, UNET_FILE
from stages.lora.adapters import trained_parameters
from stages.lora.keeping import make_keeper
from stages.lora.run import TrainedPrompts
from stages.lora.tuned_model import prepare_model, weights_files, write_weights
from stages.pipeline.seals import is_whole
from tests.drawing.tiny_models import save_tiny_checkpoint
from tests.lora.settings import make_run
from tests.lora.tiny_adapters import shake

BASE = {"base_unet_sha256": "abc"}
SETTINGS = {"keep_every": 4, "max_train_steps": 10}
KINDS = {
    "lora": {},
    "dropout": {"lora_dropout": 0.5},
    "pissa": {"init_lora_weights": "pissa"},
    "dora": {"use_dora": True},
    "text encoder": {"trained_prompts": TrainedPrompts(["a", "b"], 0)},
    "all weights": {"tuned": "full"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


def base_of(run):
    return None if run.config.tuned == "full" else BASE


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_as_if_nothing_had_been_kept(model, tmp_path, kind):
    """Weights, gradients, training mode and the global random state."""
    run = make_run(model, folder=tmp_path, **SETTINGS, **KINDS[kind])
    tuned = prepare_model(run)
    tuned.model.train()
    for parameter in trained_parameters(tuned.model).values():
        parameter.grad = torch.ones_like(parameter)
    keeper = make_keeper(run, tuned, lambda: base_of(run))
    assert keeper is not None
    before = {name: tensor.clone() for name, tensor in tuned.model.state_dict().items()}
    state = torch.get_rng_state()
    keeper(4)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tuned.model.state_dict().items())
    assert all(module.training for module in tuned.model.modules())
    for parameter in trained_parameters(tuned.model).values():
        assert parameter.requires_grad
        assert parameter.grad is not None
        assert (parameter.grad == 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_each_step_hands_over_the_weights_as_they_were_then(model, tmp_path, kind):
    run = make_run(model, folder=tmp_path / "run", **SETTINGS, **KINDS[kind])
    tuned = prepare_model(run)
    keeper = make_keeper(run, tuned, lambda: base_of(run))
    assert keeper is not None
    for step in (4, 8):
        shake(tuned.model)
        keeper(step)
        write_weights(run, tuned, base_of(run), weights_files(run)[0], tmp_path / f"then-{step}")
    shake(tuned.model)
    (tmp_path / "out").mkdir()
    keeper.hand_over(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["step-4", "step-8"]
    name = f"unet/{UNET_FILE}" if kind == "all weights" else LORA_FILE
    handed = [(tmp_path / "out" / folder / name).read_bytes() for folder in ("step-4", "step-8")]
    assert handed == [(tmp_path / f"then-{step}").read_bytes() for step in (4, 8)]
    assert handed[0] != handed[1]


def test_a_kept_lora_is_a_file_alone_and_a_kept_model_is_whole(model, tmp_path):
    for name, settings in (("lora", {}), ("full", {"tuned": "full"})):
        run = make_run(model, folder=tmp_path / name, **SETTINGS, **settings)
        keeper = make_keeper(run, prepare_model(run), lambda run=run: base_of(run))
        assert keeper is not None
        keeper(4)
        keeper(8)
        (tmp_path / f"{name}-out").mkdir()
        keeper.hand_over(tmp_path / f"{name}-out")
    assert [path.name for path in (tmp_path / "lora-out/step-4").iterdir()] == [LORA_FILE]
    files = {path.relative_to(model) for path in model.rglob("*") if path.is_file()}
    for folder in ("step-4", "step-8"):
        kept = tmp_path / "full-out" / folder
        assert {path.relative_to(kept) for path in kept.rglob("*") if path.is_file()} == files
        assert load_file(kept / "unet" / UNET_FILE).keys() == load_file(model / "unet" / UNET_FILE).keys()


def test_a_step_that_is_made_again_is_kept_again(model, tmp_path):
    """A run that was killed after it kept, and before its next checkpoint, comes by once more."""
    run = make_run(model, folder=tmp_path, **SETTINGS)
    tuned = prepare_model(run)
    keeper = make_keeper(run, tuned, lambda: BASE)
    assert keeper is not None
    keeper(4)
    shake(tuned.model)
    keeper(4)
    write_weights(run, tuned, BASE, LORA_FILE, tmp_path / "now")
    (kept,) = tmp_path.rglob(f"step-4/{LORA_FILE}")
    assert kept.read_bytes() == (tmp_path / "now").read_bytes()
    assert is_whole(kept)


def test_nothing_is_kept_where_only_the_last_is_wanted(model, tmp_path):
    tuned = prepare_model(make_run(model))
    assert make_keeper(make_run(model, folder=tmp_path), tuned, lambda: BASE) is None
    assert make_keeper(make_run(model, **SETTINGS), tuned, lambda: BASE) is None
