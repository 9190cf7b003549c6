"""Two processes that share a batch learn what one learns from the whole."""

from functools import partial
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from stages.lora import processes
from stages.lora.adapters import trained_parameters
from stages.lora.batches import batch_at, tensors_of
from stages.lora.loop import fit
from stages.lora.losses import denoising_loss
from tests.drawing.tiny_models import save_tiny_checkpoint
from tests.lora.settings import loss_config, make_run
from tests.lora.tiny_training import DRAWS, make_stream, make_unet

SETTINGS = {"max_train_steps": 4, "train_batch_size": 3, "gradient_accumulation_steps": 2}


def train_and_save(model, out):
    """What each process does; the first one saves."""
    unet = make_unet(model)
    loss_fn = partial(denoising_loss, noise_scheduler=DDPMScheduler(), config=loss_config(snr_gamma=5.0))
    history = fit(make_run(model, **SETTINGS), unet, partial(batch_at, [make_stream()], DRAWS, 3), loss_fn)
    weights = torch.cat([parameter.detach().flatten() for parameter in trained_parameters(unet).values()])
    torch.save({"weights": weights, "losses": [row.loss for row in history]}, f"{out}-{processes.process_number()}")


def test_shares_are_the_whole_batch(monkeypatch):
    """Each sample is in one share, with its weight; three samples for two processes."""
    batch: Any = batch_at([make_stream()], DRAWS, 3, 0)
    monkeypatch.setattr(processes, "process_count", lambda: 2)
    shares = []
    for number in range(2):
        monkeypatch.setattr(processes, "process_number", lambda number=number: number)
        shares.append(processes.own_samples(batch))
    assert [len(share.weights) for share in shares] == [2, 1]
    for whole, *parts in zip(tensors_of(batch), *map(tensors_of, shares), strict=True):
        assert torch.equal(torch.cat(parts), whole[[0, 2, 1]])


def test_one_process_shares_with_nobody():
    batch: Any = batch_at([make_stream()], DRAWS, 3, 0)
    assert processes.own_samples(batch) is batch
    processes.add_up([batch.weights])
    assert batch.weights.sum() == pytest.approx(1)


@pytest.mark.stage
def test_two_processes_learn_what_one_learns(tmp_path):
    model = save_tiny_checkpoint(tmp_path / "model")
    train_and_save(model, tmp_path / "one")
    processes.run_processes(2, torch.device("cpu"), train_and_save, model, tmp_path / "two")
    one, first, second = (torch.load(tmp_path / name) for name in ("one-0", "two-0", "two-1"))
    assert torch.equal(first["weights"], second["weights"])
    assert first["losses"] == pytest.approx(one["losses"], rel=1e-5)
    torch.testing.assert_close(first["weights"], one["weights"], rtol=1e-3, atol=1e-5)


@pytest.mark.stage
def test_failure_of_a_process_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"a training process failed: .*no such model"):
        processes.run_processes(2, torch.device("cpu"), fail, tmp_path)


def fail(folder):
    raise OSError(f"{folder}: no such model")


def test_processes_that_something_else_started_are_refused(monkeypatch):
    processes.refuse_torchrun()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="num_processes: torchrun or the like started 2 processes"):
        processes.refuse_torchrun()
