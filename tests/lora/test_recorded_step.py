"""Recorded steps against those that are made operation by operation, with a stand-in for CUDA graphs."""

import gc
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import pytest
import torch

from stages.lora import loop
from stages.lora.batches import Stream, batch_at
from stages.pipeline.recorded import OneByOne, make_recorder, no_garbage_collected
from tests.drawing.tiny_models import save_tiny_checkpoint
from tests.lora.tiny_training import DRAWS, make_stream, train
from tests.recording import StandIn

RUNS = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 3},
    "min-SNR": {"snr_gamma": 5.0},
    "a schedule": {"lr_scheduler": "cosine", "lr_warmup_steps": 2, "learning_rate": 0.01},
    "no clipping": {"max_grad_norm": None},
    "several operations a pass": {"target_modules": ["to_q", "ff.net.2", "conv1"]},
    "all weights": {"tuned": "full", "learning_rate": 1e-4},
    "half precision, with scaled gradients": {"dtype": torch.float16},
    "bfloat16": {"dtype": torch.bfloat16, "gradient_accumulation_steps": 2},
    "DoRA in bfloat16": {"dtype": torch.bfloat16, "use_dora": True},
    "convolutions in bfloat16": {"dtype": torch.bfloat16, "target_modules": ["to_q", "conv1"]},
    "an optimizer that is not recorded": {"optimizer": "adamw"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def recorder():
    stand_in = StandIn()
    with patch.object(loop, "make_recorder", lambda wanted, device: stand_in if wanted else None):
        yield stand_in


def both(model, recorder, **options):
    """A training with recordings, and one without."""
    recorded = train(model, make_stream(), **options)
    assert recorder.launched > 0
    launched = recorder.launched
    plain = train(model, make_stream(), cuda_graphs=False, **options)
    assert recorder.launched == launched
    return recorded, plain


@pytest.mark.parametrize("options", RUNS.values(), ids=list(RUNS))
def test_recorded_steps_do_what_steps_do(model, recorder, options):
    if options.get("optimizer") == "adamw":
        with patch.object(loop, "records", lambda *_: False):
            (weights, history), (expected, expected_history) = both(model, recorder, **options)
    else:
        (weights, history), (expected, expected_history) = both(model, recorder, **options)
    # A learning rate that is a tensor is one of 32 bits.
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-6)
    for row, other in zip(history, expected_history, strict=True):
        assert row.learning_rate == other.learning_rate
        assert row.loss == pytest.approx(other.loss, rel=1e-5)
        assert row.grad_norm == pytest.approx(other.grad_norm, rel=1e-4)


def test_an_update_has_the_arithmetic_of_a_recorded_one_where_nothing_is_recorded(model, recorder):
    """To the bit, though a learning rate is then a number of 32 bits: so it is on a GPU."""
    options = {"lr_scheduler": "cosine", "learning_rate": 0.01}
    weights, history = train(model, make_stream(), **options)
    with patch.object(loop, "make_recorder", lambda *_: OneByOne()):
        again, rows = train(model, make_stream(), **options)
    assert torch.equal(again, weights)
    assert [row.loss for row in rows] == [row.loss for row in history]


def test_no_garbage_is_collected_while_work_is_recorded():
    """Of a CUDA graph, say, whose end would end the capture."""
    ended = []

    class Ends:
        def __init__(self):
            self.myself = self

        def __del__(self):
            ended.append(gc.isenabled())

    Ends()
    with no_garbage_collected():
        assert ended == [True]
        Ends()
        [[] for _ in range(10_000)]
        assert len(ended) == 1
    assert gc.isenabled()
    gc.collect()
    assert len(ended) == 2


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with pytest.raises(KeyboardInterrupt), no_garbage_collected():
            raise KeyboardInterrupt
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_shape_is_recorded_once(model, recorder):
    train(model, make_stream(), max_train_steps=6)
    assert recorder.recorded == 2  # the gradients and the update
    assert recorder.launched == 6 + 5  # the first update makes the optimizer's state


def test_each_shape_has_a_recording(model, recorder):
    stream = make_stream()

    def batches(number):
        batch = batch_at([stream], DRAWS, 2, number)
        return batch if number % 2 else replace(batch, latents=batch.latents[..., :4], noise=batch.noise[..., :4])

    weights, _ = train(model, stream, batches, max_train_steps=6)
    assert recorder.recorded == 3
    expected, _ = train(model, stream, batches, max_train_steps=6, cuda_graphs=False)
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-6)


def test_a_second_stream_of_another_shape_is_recorded_with_the_first(model, recorder):
    instance = make_stream()
    narrow = replace(instance.examples, mean=instance.examples.mean[..., :4], std=instance.examples.std[..., :4])
    batches = partial(batch_at, [instance, Stream("class", narrow, weight=0.5)], DRAWS, 2)
    weights, _ = train(model, instance, batches)
    expected, _ = train(model, instance, batches, cuda_graphs=False)
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-6)


def test_a_resumed_run_ends_with_the_same_bytes(model, recorder, tmp_path):
    whole, whole_history = train(model, make_stream(), gradient_accumulation_steps=2)

    def until_power_cut(number):
        if number == 8:
            raise KeyboardInterrupt
        return batch_at([make_stream()], DRAWS, 2, number)

    options = {"folder": tmp_path, "checkpointing_steps": 2, "gradient_accumulation_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        train(model, make_stream(), batches=until_power_cut, **options)
    resumed, history = train(model, make_stream(), **options)
    assert torch.equal(resumed, whole)
    assert history == whole_history


@pytest.mark.parametrize("options", [{"gradient_checkpointing": True}, {"peft_type": "lokr"}, {"peft_type": "loha"}])
def test_what_cannot_be_recorded_is_not(model, recorder, options):
    train(model, make_stream(), **options)
    assert recorder.recorded == 0


def test_work_that_waits_for_a_number_is_found_out():
    numbers = torch.zeros(2)
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        StandIn().record(lambda: numbers.fill_(float(numbers.sum())))


def test_the_stand_in_records_without_doing_and_repeats_with_what_is_there_then():
    given, kept = torch.tensor([1.0]), torch.zeros(1)
    launch = StandIn().record(lambda: kept.add_(2 * given))
    assert kept.tolist() == [0.0]
    launch()
    given.fill_(5)
    launch()
    assert kept.tolist() == [12.0]


def test_a_cpu_records_nothing():
    assert make_recorder(True, torch.device("cpu")) is None
