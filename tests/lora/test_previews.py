"""Images drawn on the way: what they leave behind in a training."""

import gc
import weakref

import pytest
import torch

from stages.lora import previews
from stages.lora.previews import SampleSize
from stages.lora.run import Place, make_sampler, prepare_model
from stages.lora.text_encoder import TrainedPrompts
from tests.drawing.tiny_models import save_tiny_checkpoint
from tests.lora.settings import training_config

CONFIG = training_config(sample_prompts=["a portrait", "asuka"], sample_steps=4, max_train_steps=10)
SIZE = SampleSize(32, 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


def place_at(folder):
    return Place(torch.device("cpu"), torch.float32, folder / "checkpoint.pt")


@pytest.mark.parametrize("prompts", [None, TrainedPrompts(["a", "b"], 0)], ids=["UNet", "UNet and text encoder"])
def test_training_goes_on_as_if_nothing_had_been_drawn(model, tmp_path, prompts, monkeypatch):
    """Weights, gradients to be, training mode and the global random state; the VAE is gone from memory."""
    loaded = []
    load_vae = previews.load_vae
    monkeypatch.setattr(previews, "load_vae", lambda *arguments: loaded.append(weakref.ref(vae := load_vae(*arguments))) or vae)
    tuned = prepare_model(model, CONFIG, 2, prompts)
    tuned.model.train()
    sampler = make_sampler(model, tuned, CONFIG, place_at(tmp_path), SIZE)
    assert sampler is not None
    before = {name: tensor.clone() for name, tensor in tuned.model.state_dict().items()}
    state = torch.get_rng_state()
    sampler(4)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tuned.model.state_dict().items())
    assert all(module.training for module in tuned.model.modules())
    gc.collect()
    assert [vae() for vae in loaded] == [None]
    assert sorted(path.name for path in sampler.folder.glob("p*")) == ["p0-step000004.png", "p1-step000004.png"]


def test_nothing_is_drawn_where_nothing_is_asked_for(model, tmp_path):
    tuned = prepare_model(model, CONFIG, 2, None)
    assert make_sampler(model, tuned, training_config(), place_at(tmp_path), SIZE) is None
    assert make_sampler(model, tuned, CONFIG, Place(torch.device("cpu"), torch.float32, None), SIZE) is None


def test_images_are_drawn_every_so_many_steps_and_at_the_end():
    assert [step for step in range(1, 11) if CONFIG.samples_after(step)] == [4, 8, 10]
    assert not any(training_config().samples_after(step) for step in range(1, 1000))
