"""Learning rates of single weights, and averages of the weights."""

import copy
from functools import partial

import pytest
import torch
from diffusers import DDPMScheduler

from stages.lora.adapters import trained_parameters
from stages.lora.batches import batch_at
from stages.lora.losses import denoising_loss
from stages.lora.optimizers import learning_rates, make_lr_scheduler, make_optimizer
from stages.lora.run import TrainedPrompts
from stages.lora.text_encoder import with_text_encoder
from stages.lora.tuned_model import load_unet
from tests.drawing.tiny_models import save_tiny_checkpoint
from tests.lora.settings import loss_config, training_config
from tests.lora.tiny_training import DRAWS, batches_until_power_cut, make_stream, make_unet, train


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def stream():
    return make_stream()


def rates_of(unet, **changes) -> dict[str, float]:
    return learning_rates(unet, training_config(learning_rate=1e-3, **changes))


def test_lora_plus_raises_the_rate_of_the_second_factor_alone(model):
    rates = rates_of(make_unet(model), loraplus_lr_ratio=16.0)
    for name, rate in rates.items():
        assert rate == pytest.approx(1.6e-2 if ".lora_B." in name else 1e-3), name
    assert {name.rpartition(".lora_")[2][0] for name in rates} == {"A", "B"}


def test_blocks_have_rates_of_their_own(model):
    factors = {"IN01": 0.5, "M00": 0.0, "OUT03": 2.0}
    rates = rates_of(make_unet(model), block_lr=factors)
    named = {"down_blocks.0.attentions.0": 0.5, "mid_block.attentions.0": 0.0, "up_blocks.1.attentions.1": 2.0}
    for name, rate in rates.items():
        factor = next((value for part, value in named.items() if name.startswith(part)), 1.0)
        assert rate == pytest.approx(1e-3 * factor), name
    assert {factor for part, factor in named.items() if any(name.startswith(part) for name in rates)} == {0.5, 0.0, 2.0}


def test_all_weights_and_those_of_a_text_encoder_have_blocks(model):
    unet = load_unet(model).requires_grad_(True)
    rates = rates_of(unet, tuned="full", block_lr={"IN00": 0.5, "OUT03": 3.0})
    assert rates["conv_in.weight"] == rates["time_embedding.linear_1.bias"] == pytest.approx(5e-4)
    assert rates["conv_out.weight"] == pytest.approx(3e-3)
    assert rates["mid_block.resnets.0.conv1.weight"] == pytest.approx(1e-3)
    both = with_text_encoder(make_unet(model), model, TrainedPrompts(["a"], 0))
    both.text_encoder.requires_grad_(True)
    rates = rates_of(both, block_lr={"text_encoder": 0.1, "M00": 0.5})
    for name, rate in rates.items():
        factor = 0.1 if name.startswith("text_encoder.") else 0.5 if name.startswith("unet.mid_block") else 1.0
        assert rate == pytest.approx(1e-3 * factor), name


def test_a_block_without_weights_that_are_trained_is_refused(model):
    with pytest.raises(ValueError, match=r"block_lr: IN09 has no weights that are trained; those that have: IN01, M00, OUT02"):
        rates_of(make_unet(model), block_lr={"IN09": 0.5})
    with pytest.raises(ValueError, match="block_lr: text_encoder has no weights that are trained"):
        rates_of(make_unet(model), block_lr={"text_encoder": 0.5})
    with pytest.raises(ValueError, match="block_lr"):
        training_config(block_lr={"middle": 0.5})


def test_the_schedule_scales_all_rates_and_the_first_is_the_one_that_is_shown(model):
    config = training_config(learning_rate=1e-3, loraplus_lr_ratio=4.0, lr_scheduler="linear", max_train_steps=10)
    optimizer = make_optimizer(make_unet(model), config)
    lr_scheduler = make_lr_scheduler(optimizer, config)
    for _ in range(5):
        optimizer.step()
        lr_scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([5e-4, 2e-3])


def test_a_rate_of_zero_leaves_the_weights_as_they_are(model, stream):
    """What is trained is then as if the block had no adapter's update, to the bit."""
    unet = make_unet(model)
    first = {name: weight.detach().clone() for name, weight in trained_parameters(unet).items()}
    weights, _ = train(model, stream, block_lr={"M00": 0.0}, adam_weight_decay=0.1)
    place = 0
    for name, before in first.items():
        after = weights[place : place + before.numel()]
        assert torch.equal(after, before.flatten()) == name.startswith("mid_block"), name
        place += before.numel()


def averages(model, stream, decay: float, steps: int) -> torch.Tensor:
    """The average over a training of so many steps, from the weights after each of them: shadow + (1 - d) (weight - shadow)."""
    shadow = torch.cat([weight.detach().flatten() for weight in trained_parameters(make_unet(model)).values()])
    for step in range(1, steps + 1):
        # The learning rate's course is that of the whole training, so the weights after n steps are those of a constant one.
        weights, _ = train(model, stream, max_train_steps=step, lr_scheduler="constant")
        used = 0.0 if step == 1 else min(decay, step / (9 + step))
        shadow = shadow - (1 - used) * (shadow - weights)
    return shadow


def test_the_average_is_over_the_weights_after_each_step(model, stream):
    found, _ = train(model, stream, max_train_steps=5, lr_scheduler="constant", ema_decay=0.3)
    torch.testing.assert_close(found, averages(model, stream, 0.3, 5), rtol=1e-4, atol=1e-6)
    last, _ = train(model, stream, max_train_steps=5, lr_scheduler="constant")
    assert not torch.allclose(found, last, rtol=1e-4, atol=1e-6)


def test_the_average_survives_an_interruption_to_the_bit_and_looks_change_nothing(model, stream, tmp_path):
    options = {"max_train_steps": 6, "ema_decay": 0.5}
    whole, _ = train(model, stream, **options)

    kept = options | {"folder": tmp_path, "checkpointing_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        train(model, stream, batches=batches_until_power_cut(stream, 5), **kept)
    assert torch.equal(train(model, stream, **kept)[0], whole)
    seen = []
    looked, _ = train(model, stream, after_step=seen.append, keep_every=2, **options)
    assert seen == [2, 4]
    assert torch.equal(looked, whole)


def test_what_is_shown_on_the_way_is_the_average(model, stream):
    from stages.lora.loop import TrainingState

    unet = make_unet(model)
    config = training_config(ema_decay=0.5, learning_rate=0.1, lr_scheduler="constant")
    state = TrainingState(unet, config, scale_gradients=False)
    parameters = list(state.parameters.values())
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        state.update(torch.zeros(()))
    plain = copy.deepcopy(parameters)
    with state.averaged():
        assert all(not torch.equal(one, other) for one, other in zip(parameters, plain, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(parameters, plain, strict=True))


def test_a_mean_that_is_not_kept_costs_nothing(model, stream):
    batches = partial(batch_at, [stream], DRAWS, 2)
    assert torch.equal(train(model, stream, batches=batches)[0], train(model, stream)[0])


OTHERS = {
    "torch.optim.Adafactor": {},
    "torch.optim.SGD": {"momentum": 0.9, "nesterov": True},
    "transformers.Adafactor": {"relative_step": False, "scale_parameter": False},
    "schedulefree.AdamWScheduleFree": {"betas": [0.9, 0.99]},
}


@pytest.mark.parametrize("optimizer", OTHERS)
def test_any_optimizer_trains_and_resumes_by_its_import_path(model, stream, tmp_path, optimizer):
    pytest.importorskip(optimizer.partition(".")[0])
    options = {"optimizer": optimizer, "optimizer_args": OTHERS[optimizer], "learning_rate": 1e-2, "lr_scheduler": "constant"}
    whole, history = train(model, stream, **options)
    assert history[0].loss != history[-1].loss

    kept = options | {"folder": tmp_path, "checkpointing_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        train(model, stream, batches=batches_until_power_cut(stream, 5), **kept)
    assert torch.equal(train(model, stream, **kept)[0], whole)
    looked, _ = train(model, stream, after_step=lambda step: None, keep_every=2, **options)
    assert torch.equal(looked, whole), "what looks at the weights on the way changes nothing"


def test_an_optimizer_that_averages_by_itself_ends_with_its_average(model, stream):
    schedulefree = pytest.importorskip("schedulefree")
    config = training_config(optimizer="schedulefree.AdamWScheduleFree", learning_rate=0.1, lr_scheduler="constant")
    linear = torch.nn.Linear(2, 2)
    optimizer = make_optimizer(linear, config)
    assert isinstance(optimizer, schedulefree.AdamWScheduleFree)
    found, _ = train(model, stream, optimizer="schedulefree.AdamWScheduleFree", learning_rate=1e-2, lr_scheduler="constant")
    unet = make_unet(model)
    parameters = list(trained_parameters(unet).values())
    plain: torch.optim.Optimizer = schedulefree.AdamWScheduleFree(parameters, lr=1e-2)
    plain.train()
    loss_of = partial(denoising_loss, unet, noise_scheduler=DDPMScheduler(), config=loss_config())
    unet.train()
    for number in range(6):
        loss_of(batch_at([stream], DRAWS, 2, number)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        plain.step()
        plain.zero_grad()
    plain.eval()
    torch.testing.assert_close(found, torch.cat([weight.detach().flatten() for weight in parameters]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "torch.optim.Adam8"}, r"optimizer: given 'torch\.optim\.Adam8': .*; is torch installed"),
        ({"optimizer": "nowhere.Lion"}, r"optimizer: given 'nowhere\.Lion': No module named 'nowhere'"),
        ({"optimizer": "torch.optim.SGD", "optimizer_args": {"beta": 1}}, r"optimizer_args: torch\.optim\.SGD refuses .*beta"),
        ({"optimizer": "torch.optim.SGD", "optimizer_args": {"momentum": -1}}, r"optimizer_args: .*momentum"),
        ({"optimizer": "collections.Counter"}, r"it is no torch\.optim\.Optimizer|refuses"),
    ],
)
def test_an_optimizer_that_is_none_or_refuses_is_one_line(changes, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(torch.nn.Linear(1, 1), training_config(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"optimizer": "lion"},
            "take one of adamw_fused, adamw, adamw_8bit, prodigy, or an import path",
        ),
        ({"optimizer_args": {"momentum": 0.9}}, "optimizer_args: adamw_fused has the adam_ settings"),
    ],
)
def test_settings_of_optimizers_that_no_one_reads_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        training_config(**changes)
