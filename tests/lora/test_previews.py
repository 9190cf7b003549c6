"""Previews: what drawing them leaves behind in a training."""

import gc
import weakref
from functools import partial

import pytest
import torch

from stages.drawing import preview_images as drawing
from stages.lora.previews import make_previewer
from stages.lora.run import Previews, TrainedPrompts
from stages.lora.tuned_model import prepare_model
from tests.drawing.tiny_models import save_tiny_checkpoint
from tests.lora.settings import make_run, training_config

SETTINGS = {"preview_prompts": ["a portrait", "asuka"], "preview_steps": 4, "max_train_steps": 10}
PREVIEWS = Previews(partial(drawing.draw_previews, guidance_scale=3.0, resolution=32), {}, 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("prompts", [None, TrainedPrompts(["a", "b"], 0)], ids=["UNet", "UNet and text encoder"])
def test_training_goes_on_as_if_nothing_had_been_drawn(model, tmp_path, prompts, monkeypatch):
    """Weights, gradients to be, training mode and the global random state; the VAE is gone from memory."""
    loaded = []
    load_vae = drawing.load_vae
    monkeypatch.setattr(drawing, "load_vae", lambda *arguments: loaded.append(weakref.ref(vae := load_vae(*arguments))) or vae)
    run = make_run(model, folder=tmp_path, trained_prompts=prompts, previews=PREVIEWS, **SETTINGS)
    tuned = prepare_model(run)
    tuned.model.train()
    previewer = make_previewer(run, tuned.model)
    assert previewer is not None
    before = {name: tensor.clone() for name, tensor in tuned.model.state_dict().items()}
    state = torch.get_rng_state()
    previewer(4)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tuned.model.state_dict().items())
    assert all(module.training for module in tuned.model.modules())
    gc.collect()
    assert [vae() for vae in loaded] == [None]
    assert sorted(path.name for path in previewer.folder.glob("p*")) == ["p0-step000004.png", "p1-step000004.png"]


def test_nothing_is_drawn_where_nothing_is_asked_for(model, tmp_path):
    nowhere = make_run(model, previews=PREVIEWS, **SETTINGS)
    tuned = prepare_model(nowhere).model
    assert make_previewer(nowhere, tuned) is None
    assert make_previewer(make_run(model, folder=tmp_path, previews=PREVIEWS), tuned) is None


def test_images_are_drawn_every_so_many_steps_and_at_the_end():
    config = training_config(**SETTINGS)
    assert [step for step in range(1, 11) if config.draws_previews(step)] == [4, 8, 10]
    assert not any(training_config().draws_previews(step) for step in range(1, 1000))
