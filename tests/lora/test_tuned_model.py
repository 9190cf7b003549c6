"""The model that is trained, made ready."""

import shutil
from functools import partial

import pytest
import torch
from diffusers import DDPMScheduler

from stages.lora.adapters import trained_parameters
from stages.lora.batches import batch_at
from stages.lora.loop import fit
from stages.lora.losses import denoising_loss
from stages.lora.tuned_model import prepare_model
from tests.drawing.tiny_models import save_tiny_checkpoint
from tests.lora.settings import loss_config, make_run
from tests.lora.tiny_training import DRAWS, make_stream


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


def train(model, **settings):
    """The trained weights as one vector."""
    stream = make_stream()
    run = make_run(model, streams=[stream], max_train_steps=3, train_batch_size=2, learning_rate=1e-3, **settings)
    tuned = prepare_model(run)
    loss_fn = partial(denoising_loss, noise_scheduler=DDPMScheduler(), config=loss_config())
    fit(run, tuned.model, partial(batch_at, [stream], DRAWS, 2), loss_fn)
    return torch.cat([parameter.detach().flatten() for parameter in trained_parameters(tuned.model).values()])


@pytest.mark.stage
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="there is no C++ compiler")
def test_compiled_blocks_learn_what_others_learn(model, monkeypatch):
    compiled = []
    real = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, *a, **k: compiled.append(module) or real(module, *a, **k))
    plain = train(model)
    assert not compiled
    torch.testing.assert_close(train(model, compile=True), plain, rtol=1e-3, atol=1e-5)
    assert {type(module).__name__ for module in compiled} == {"BasicTransformerBlock"}


def test_without_a_compiler_compiling_is_refused(model, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"compile: given True: there is no C\+\+ compiler: install g\+\+, or set it to false"):
        train(model, compile=True)


def test_gradient_checkpointing_changes_nothing(model):
    assert torch.equal(train(model, gradient_checkpointing=True), train(model))
