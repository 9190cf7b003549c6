"""On a CUDA GPU: what each stage computes, against a CPU; the same bytes; recorded steps against single ones (`make test-gpu`).

The bounds are for float32 without TF32, where a GPU adds up in another order than a CPU and nothing else differs.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from stages.dataset.captioner import generate_captions, load_blip
from stages.dataset.config import CaptioningConfig
from stages.drawing.embeddings import embed_image, embed_texts, load_clip, load_dino
from stages.drawing.loaded_models import load_models
from stages.drawing.sampling import draw
from stages.encoding.latents import encode_images, load_vae
from stages.encoding.prompts import embed_prompts, load_text_encoder
from stages.lora import processes
from stages.lora.adapters import trained_parameters
from stages.lora.batches import Draws, Stream, batch_at
from stages.lora.examples import Examples
from stages.lora.loop import fit
from stages.lora.losses import denoising_loss
from stages.lora.run import Run, TrainedPrompts
from stages.lora.tuned_model import prepare_model
from stages.pipeline.config import RuntimeConfig, validate
from stages.pipeline.recorded import make_recorder
from stages.pipeline.torch_runtime import prepare
from tests.drawing.small_drawing import CONFIG
from tests.lora.settings import make_run, noise_config
from tests.runtime import CPU

GPU = torch.device("cuda")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")]

MINI = Path("data/mini")
MODEL = MINI / "base"
PROMPTS = ["", "asuka, green background", "a portrait, blond hair"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
DRAWS = Draws(seed=0, num_train_timesteps=1000, random_flip=True, config=noise_config())


@pytest.fixture(autouse=True, scope="module")
def prepared():
    prepare(validate("runtime", RuntimeConfig, CPU | {"device": GPU.type}))
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def pictures() -> list[Path]:
    return sorted((MINI / "asuka").glob("*.png"))[:6]


def on_both(function: Any) -> list[Any]:
    return [function(device) for device in (torch.device("cpu"), GPU)]


def test_images_are_encoded_as_on_a_cpu(pictures):
    def encode(device):
        return encode_images(load_vae(MODEL / "vae", device), pictures, (64, 64), "lanczos", 4)

    for expected, found in zip(*on_both(encode), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_prompts_are_embedded_as_on_a_cpu():
    expected, found = on_both(lambda device: embed_prompts(*load_text_encoder(MODEL, device), PROMPTS, 0, 8))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_captions_are_those_of_a_cpu(pictures):
    config = CaptioningConfig(prompt=None, num_beams=1, max_new_tokens=48, batch_size=4)

    def caption(device):
        return list(generate_captions(*load_blip(MINI / "captioner", device, torch.float32), pictures, config))

    expected, found = on_both(caption)
    assert found == expected


def test_images_are_seen_as_on_a_cpu(pictures):
    def embed(device):
        clip, dino = (load(MINI / name, device, torch.float32) for load, name in ((load_clip, "scorer"), (load_dino, "dino")))
        by_clip, by_dino = (torch.stack([embed_image(encoder, path) for path in pictures]) for encoder in (clip, dino))
        return by_clip, by_dino, embed_texts(clip, PROMPTS)

    for expected, found in zip(*on_both(embed), strict=True):
        assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.9999


def drawn(device: torch.device, graphs: bool = True, dtype: torch.dtype = torch.float32) -> np.ndarray:
    models = load_models(MODEL, device, dtype, make_recorder(graphs, device))
    config = replace(CONFIG, resolution=64, num_inference_steps=8)
    return np.stack([np.asarray(image, dtype=np.int16) for image in draw(models, PROMPTS[1:], (3, 1, 4), config)])


def test_images_are_drawn_as_on_a_cpu():
    expected, found = on_both(drawn)
    assert np.abs(found - expected).mean() < 0.5  # of 255


@pytest.mark.parametrize("dtype", DTYPES)
def test_recorded_drawing_gives_the_bytes_of_single_operations(dtype):
    """Twice, with a batch of two and one of one."""
    first, again, single = (drawn(GPU, graphs, dtype) for graphs in (True, True, False))
    assert (first == again).all()
    assert (first == single).all()


def make_streams(number: int = 1, embeds: bool = True, masks: bool = False) -> list[Stream]:
    generator = torch.Generator().manual_seed(0)
    unet = load_models(MODEL, torch.device("cpu")).unet
    mean = torch.randn(6, 2, unet.config["in_channels"], 8, 8, generator=generator)
    prompts = torch.randn(6, 77, unet.config["cross_attention_dim"], generator=generator) if embeds else torch.arange(6)
    names = tuple(f"{each}.png" for each in range(6))
    pixel_weights = torch.rand(6, 8, 8, generator=generator) if masks else None
    examples = Examples(mean, torch.full_like(mean, 0.1), 1.0, prompts, prompts[0], names, pixel_weights=pixel_weights)
    return [Stream("instance", examples), Stream("class", examples, 0.5)][:number]


def make_training(
    device: torch.device, dtype: torch.dtype = torch.float32, streams: int = 1, masks: bool = False, **changes: Any
) -> Run:
    embeds = not changes.get("train_text_encoder")
    prompts = None if embeds else TrainedPrompts([f"a portrait, {number}" for number in range(6)], 0)
    settings = {"max_train_steps": 10, "train_batch_size": 3, "learning_rate": 1e-3} | changes
    of_run = {"streams": make_streams(streams, embeds, masks), "device": device, "dtype": dtype, "trained_prompts": prompts}
    return make_run(MODEL, **of_run, **settings)


def train(run: Run, dies_at: int | None = None) -> tuple[torch.Tensor, list[float]]:
    """The weights, and the losses."""
    tuned = prepare_model(run)
    dtype = torch.float32 if run.autocasts else run.dtype
    loss_fn = partial(denoising_loss, noise_scheduler=DDPMScheduler(), config=run.config, dtype=dtype)

    def batches(number):
        if number == dies_at:
            raise KeyboardInterrupt
        return batch_at(run.streams, replace(DRAWS, config=run.config), run.config.train_batch_size, number)

    history = fit(run, tuned.model, batches, loss_fn)
    weights = torch.cat([weight.detach().flatten().cpu() for weight in trained_parameters(tuned.model).values()])
    return weights, [row.loss for row in history]


RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    "dropout": {"lora_dropout": 0.3},
    "min-SNR": {"snr_gamma": 5.0},
    "class images": {"streams": 2},
    "text encoder": {"train_text_encoder": True},
    "convolutions": {"target_modules": ["to_q", "conv1", "ff.net.2"]},
    "DoRA": {"use_dora": True},
    "LoKr": {"peft_type": "lokr"},
    "all weights": {"tuned": "full", "learning_rate": 1e-4},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "an optimizer in several passes": {"optimizer": "adamw"},
    "masks": {"masks": True, "streams": 2},
    "pseudo-Huber": {"loss_type": "huber", "huber_schedule": "snr"},
    "debiased estimation": {"debiased_estimation": True, "timestep_distribution": "logit_normal"},
    "input perturbation": {"input_perturbation": 0.1, "multires_noise_iterations": 3},
    "averaged weights": {"ema_decay": 0.9},
    "rates of their own": {"loraplus_lr_ratio": 4.0, "block_lr": {"M00": 0.5, "IN01": 0.0}},
    "OFT": {"peft": {"peft_type": "OFT", "r": 0, "oft_block_size": "rank"}},
    "schedulefree": {"optimizer": "schedulefree.AdamWScheduleFree", "lr_scheduler": "constant"},
}


@pytest.mark.parametrize("options", RUNS.values(), ids=list(RUNS))
def test_a_step_is_that_of_a_cpu(options):
    if "lora_dropout" in options:
        pytest.skip("a GPU draws other numbers")
    (_, expected), (_, found) = on_both(lambda device: train(make_training(device, **options)))
    assert found[:3] == pytest.approx(expected[:3], rel=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", RUNS.values(), ids=list(RUNS))
def test_twice_and_recorded_or_not_a_training_gives_the_same_bytes(options, dtype):
    weights, losses = train(make_training(GPU, dtype, **options))
    again, _ = train(make_training(GPU, dtype, **options))
    single, single_losses = train(make_training(GPU, dtype, cuda_graphs=False, **options))
    assert torch.equal(weights, again)
    torch.testing.assert_close(weights, single, rtol=1e-3, atol=1e-5)
    assert losses == pytest.approx(single_losses, rel=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_resumed_training_gives_the_same_bytes(tmp_path, dtype):
    whole, losses = train(make_training(GPU, dtype))
    with pytest.raises(KeyboardInterrupt):
        train(make_training(GPU, dtype, folder=tmp_path, checkpointing_steps=2), dies_at=7)
    resumed, again = train(make_training(GPU, dtype, folder=tmp_path, checkpointing_steps=2))
    assert torch.equal(resumed, whole)
    assert again == losses


def test_an_operation_without_a_deterministic_form_is_an_error():
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        torch.nn.functional.interpolate(
            torch.ones(1, 1, 4, 4, device=GPU, requires_grad=True), scale_factor=2, mode="bicubic"
        ).sum().backward()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")
def test_two_gpus_learn_what_one_learns(tmp_path):
    run = make_training(GPU, train_batch_size=4)
    one, _ = train(run)
    processes.run_processes(2, GPU, train_and_save, run, tmp_path)
    first, second = (torch.load(tmp_path / f"{number}.pt") for number in range(2))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, one, rtol=1e-3, atol=1e-5)


def train_and_save(run: Run, folder: Path) -> None:
    weights, _ = train(run)
    torch.save(weights, folder / f"{processes.process_number()}.pt")
