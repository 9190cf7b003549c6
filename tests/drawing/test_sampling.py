import inspect
import itertools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file

from stages.drawing.config import SamplingConfig
from stages.drawing.loaded_models import Models, load_lora, load_models
from stages.drawing.noise_schedulers import NOISE_SCHEDULERS
from stages.drawing.sampling import draw, encode_prompt, generators, initial_latents, make_noise_scheduler
from tests.drawing.tiny_models import save_tiny_checkpoint

CPU = torch.device("cpu")
SAMPLING = SamplingConfig(
    "ugly", "ddim", num_inference_steps=4, guidance_scale=3.0, resolution=32, batch_size=2, clip_skip=0, prompt_syntax="plain"
)
SEEDS = [3, 4]
SPACINGS = ("", "_karras", "_exponential")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def models(checkpoint) -> Models:
    return load_models(checkpoint, CPU)


def make_pipeline(models: Models, noise_scheduler: str = "ddim") -> StableDiffusionPipeline:
    make: Any = StableDiffusionPipeline
    pipeline = make(
        unet=models.unet,
        vae=models.vae,
        text_encoder=models.text_encoder,
        tokenizer=models.tokenizer,
        scheduler=make_noise_scheduler(models.folder, noise_scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run_pipeline(pipeline: StableDiffusionPipeline, prompt: str, sampling: SamplingConfig) -> np.ndarray:
    call: Any = pipeline
    images = call(
        [prompt] * len(SEEDS),
        negative_prompt=["ugly"] * len(SEEDS),
        num_inference_steps=sampling.num_inference_steps,
        guidance_scale=sampling.guidance_scale,
        height=sampling.resolution,
        width=sampling.resolution,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
    ).images
    return pixels(images)


def pixels(images) -> np.ndarray:
    return np.stack([np.asarray(image).astype(int) for image in images])


@pytest.mark.parametrize("noise_scheduler", NOISE_SCHEDULERS)
@pytest.mark.parametrize("guidance_scale", [3.0, 1.0])
def test_same_images_as_the_pipeline(models, noise_scheduler, guidance_scale):
    sampling = replace(SAMPLING, noise_scheduler=noise_scheduler, guidance_scale=guidance_scale)
    expected = run_pipeline(make_pipeline(models, noise_scheduler), "a cat", sampling)
    drawn = pixels(draw(models, ["a cat"], SEEDS, sampling))
    assert drawn.std() > 10, "a flat image would be equal to anything"
    assert np.abs(drawn - expected).max() <= 1


def test_initial_latents_depend_on_the_seed_alone(models):
    alone, together = initial_latents(models, generators([5]), 32), initial_latents(models, generators([3, 5]), 32)
    assert torch.equal(alone[0], together[1])
    assert not torch.equal(together[0], together[1])


def test_another_prompt_leaves_the_images_alone(models):
    alone = pixels(draw(models, ["a cat"], SEEDS, SAMPLING))
    together = pixels(draw(models, ["two dogs", "a cat"], SEEDS, SAMPLING))
    assert np.array_equal(alone, together[2:])
    assert not np.array_equal(alone, together[:2])


def test_negative_prompt_counts_only_with_guidance(models):
    for guidance_scale in (1.0, 3.0):
        configs = (replace(SAMPLING, guidance_scale=guidance_scale, negative_prompt=text) for text in ("", "zzz"))
        plain, negative = (pixels(draw(models, ["a"], SEEDS, config)) for config in configs)
        assert np.array_equal(plain, negative) == (guidance_scale == 1.0)


ADDS_NOISE = ("ddpm", "dpm2_a", "dpm2_a_karras", "dpmsolver++_sde", "dpmsolver++_sde_karras", "euler_a", "lcm")


@pytest.mark.parametrize("noise_scheduler", ADDS_NOISE)
def test_noise_that_is_added_on_the_way_depends_on_the_images_own_seed(models, noise_scheduler):
    config = replace(SAMPLING, noise_scheduler=noise_scheduler)
    first, again = (pixels(draw(models, ["a cat"], SEEDS, config)) for _ in range(2))
    alone = pixels(draw(models, ["a cat"], SEEDS[1:], config))
    assert np.array_equal(first, again)
    assert np.abs(alone[0] - first[1]).max() <= 1
    assert not np.array_equal(first[0], first[1])


def test_a_spacing_of_noise_levels_is_another_scheduler(models):
    drawn = [pixels(draw(models, ["a cat"], SEEDS, replace(SAMPLING, noise_scheduler=f"euler{end}"))) for end in SPACINGS]
    assert not any(np.array_equal(first, second) for first, second in itertools.combinations(drawn, 2))


def test_clip_skip_reads_an_earlier_layer(models):
    expected = StableDiffusionPipeline.encode_prompt(make_pipeline(models), "a cat", CPU, 1, False)[0]
    assert torch.equal(encode_prompt(models, "a cat"), expected)
    text_model = getattr(models.text_encoder, "text_model", models.text_encoder)
    with torch.no_grad():
        text_model.encoder.layers[-1].mlp.fc2.bias += 1
        after = encode_prompt(models, "a cat", clip_skip=1)
        text_model.encoder.layers[-1].mlp.fc2.bias -= 1
    assert torch.allclose(encode_prompt(models, "a cat", clip_skip=1), after)
    assert not torch.allclose(encode_prompt(models, "a cat"), after)


def test_long_prompt_is_cut_with_a_warning(models, caplog):
    assert encode_prompt(models, "a " * 100).shape == (1, 77, 16)
    assert "1 prompt has more than 77 tokens; the rest is cut off: a a a" in caplog.text


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"resolution": 30}, "resolution\n  Input should be a multiple of 8"),
        ({"clip_skip": 2}, "clip_skip: given 2: this text encoder has 2 layers"),
        ({"noise_scheduler": "heunn"}, "choose one of ddim, ddpm, .*; with _karras or _exponential at the end of deis, "),
    ],
)
def test_unfit_setting_is_refused_before_drawing(models, changed, message):
    with pytest.raises(ValueError, match=message):
        draw(models, ["a"], SEEDS, replace(SAMPLING, **changed))


def test_missing_part_is_named(tmp_path):
    (tmp_path / "unet").mkdir()
    with pytest.raises(FileNotFoundError, match="no vae, text_encoder, tokenizer, scheduler"):
        load_models(tmp_path, CPU)


def save_lora(checkpoint: Path, folder: Path, rank: int = 4, lora_alpha: int = 16) -> Path:
    """A LoRA of random weights for the UNet and the text encoder."""
    models = load_models(checkpoint, CPU)
    torch.manual_seed(1)
    targets = {"unet": ["to_q", "to_k", "to_v", "to_out.0"], "text_encoder": ["q_proj", "v_proj"]}
    for name, part in (("unet", models.unet), ("text_encoder", models.text_encoder)):
        part.add_adapter(LoraConfig(r=rank, lora_alpha=lora_alpha, target_modules=targets[name], init_lora_weights=False))
    save: Any = StableDiffusionPipeline.save_lora_weights
    save(
        folder,
        unet_lora_layers=get_peft_model_state_dict(models.unet),
        text_encoder_lora_layers=get_peft_model_state_dict(models.text_encoder),
        **_collate_lora_metadata({"unet": models.unet, "text_encoder": models.text_encoder}),
    )
    return folder


@pytest.fixture(scope="module")
def lora(checkpoint, tmp_path_factory) -> Path:
    return save_lora(checkpoint, tmp_path_factory.mktemp("lora"))


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_a_checkpoint_without_weights_of_a_part_draws_nothing(tmp_path, checkpoint, part):
    shutil.copytree(checkpoint, tmp_path / "model")
    (tmp_path / "model" / part / ("model" if part == "text_encoder" else "diffusion_pytorch_model")).with_suffix(
        ".safetensors"
    ).unlink()
    with pytest.raises(OSError, match=rf"model: no weights of {part} in it, .*sweep\.bases"):
        load_models(tmp_path / "model", CPU)


def test_lora_draws_what_the_pipeline_draws_with_it(checkpoint, lora):
    pipeline = make_pipeline(load_models(checkpoint, CPU))
    plain = run_pipeline(pipeline, "a cat", SAMPLING)
    pipeline.load_lora_weights(lora, weight_name="pytorch_lora_weights.safetensors")
    expected = run_pipeline(pipeline, "a cat", SAMPLING)
    models = load_models(checkpoint, CPU)
    load_lora(models, lora)
    drawn = pixels(draw(models, ["a cat"], SEEDS, SAMPLING))
    assert np.abs(plain - expected).max() > 20, "the LoRA must show"
    assert np.abs(drawn - expected).max() <= 1


def test_lora_scale_zero_is_the_model_itself(checkpoint, lora, models):
    with_lora = load_models(checkpoint, CPU)
    load_lora(with_lora, lora / "pytorch_lora_weights.safetensors", lora_scale=0.0)
    drawn, plain = (pixels(draw(each, ["a cat"], SEEDS, SAMPLING)) for each in (with_lora, models))
    assert np.array_equal(drawn, plain)


def test_lora_of_another_architecture_is_refused(checkpoint, tmp_path):
    state_dict = {
        f"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_{part}.weight": torch.zeros(shape)
        for part, shape in (("A", (4, 320)), ("B", (320, 4)))
    }
    save_file(state_dict, tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(ValueError, match="does not fit"):
        load_lora(load_models(checkpoint, CPU), tmp_path)


def test_missing_or_foreign_lora_is_refused(models, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such LoRA file"):
        load_lora(models, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"missing: no such file or directory"):
        load_lora(models, tmp_path / "missing")
    save_file({"something.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no LoRA weights"):
        load_lora(models, tmp_path / "other.safetensors")


@pytest.fixture(scope="module")
def zero_snr(tmp_path_factory) -> Path:
    """A model that predicts v, and whose noise schedule ends in noise alone."""
    folder = save_tiny_checkpoint(tmp_path_factory.mktemp("zero_snr"))
    config = folder / "scheduler/scheduler_config.json"
    changes = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    return folder


@pytest.mark.parametrize("name", [name for name, each in NOISE_SCHEDULERS.items() if not each.spacing])
def test_images_of_a_model_that_ends_in_noise_alone_begin_there(zero_snr, name):
    import diffusers

    each = NOISE_SCHEDULERS[name]
    takes = inspect.signature(getattr(diffusers, each.class_name).__init__).parameters
    assert each.zero_snr == ("rescale_betas_zero_snr" in takes)
    if not each.zero_snr:
        with pytest.raises(ValueError, match=rf"noise_scheduler: given '{re.escape(name)}': .* begins in noise alone"):
            make_noise_scheduler(zero_snr, name)
        return
    scheduler = make_noise_scheduler(zero_snr, name)
    scheduler.set_timesteps(4)
    assert scheduler.timesteps[0] == 999
    drawn = next(draw(load_models(zero_snr, CPU), ["a"], [0], replace(SAMPLING, noise_scheduler=name)))
    assert drawn.size == (32, 32)


A1111 = replace(SAMPLING, prompt_syntax="a1111")


def test_prompts_without_weights_are_drawn_alike_in_both_syntaxes(models):
    plain, read = (pixels(list(draw(models, ["a cat, hat"], SEEDS, config))) for config in (SAMPLING, A1111))
    np.testing.assert_allclose(read, plain, atol=1)


def test_weights_and_prompts_of_any_length_are_drawn_as_diffusers_draws_their_embeddings(models):
    prompt = "(a cat:1.4), " + "hat, " * 40
    found = pixels(list(draw(models, [prompt], SEEDS, A1111)))
    embeds = encode_prompt(models, prompt, syntax="a1111")
    short, empty = (encode_prompt(models, text, syntax="a1111") for text in ("ugly", ""))
    assert embeds.shape[1] == 3 * 77
    call: Any = make_pipeline(models)
    expected = call(
        prompt_embeds=embeds.expand(2, -1, -1),
        negative_prompt_embeds=torch.cat([short, empty, empty], dim=1).expand(2, -1, -1),
        num_inference_steps=4,
        guidance_scale=3.0,
        height=32,
        width=32,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
    ).images
    np.testing.assert_array_equal(found, pixels(expected))
    assert not np.array_equal(found, pixels(list(draw(models, ["a cat, " + "hat, " * 40], SEEDS, A1111))))


def test_a_prompt_that_names_a_file_is_refused_by_its_setting():
    with pytest.raises(ValueError, match="negative_prompt: '<lora:x:1>': <lora:… names a file"):
        replace(SAMPLING, negative_prompt="<lora:x:1>")
    with pytest.raises(ValueError, match=r"negative_prompt: 'a AND b': prompts that are composed"):
        replace(A1111, negative_prompt="a AND b")
