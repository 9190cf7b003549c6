"""What test_settings runs every stage on: tiny models, a few pictures, and settings that make each stage quick."""

import contextlib
import importlib
import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import yaml
from PIL import Image
from safetensors.numpy import load_file, save_file

from stages.pipeline.command import run
from tests.checkpoints.tiny import SCHEDULER, WEIGHTS, ldm_weights, random_weights, save_configs, save_diffusers
from tests.dataset.tiny_blip import save_tiny_blip
from tests.drawing.tiny_models import save_tiny_checkpoint, save_tiny_dino, save_tiny_scorer
from tests.lora.settings import conf_values
from tests.report.small_comparison import NAMES, SWEEP, write_world
from tests.runtime import CPU
from tests.training.running import arguments

RESOLUTION = 32
SIZES = [(48, 48), (48, 40), (32, 40), (96, 48), (56, 56)]


def local(path: str) -> dict[str, str | None]:
    """A source on this machine."""
    return {"path": path, "repo": None, "revision": None, "file": None, "sha256": None}


TRAINING = {"max_train_steps": 4, "train_batch_size": 2, "learning_rate": 0.001, "max_grad_norm": 1.0}
SAMPLING = {
    "negative_prompt": "",
    "noise_scheduler": "ddim",
    "num_inference_steps": 2,
    "guidance_scale": 4.0,
    "resolution": RESOLUTION,
    "batch_size": 2,
    "clip_skip": 0,
    "prompt_syntax": "plain",
}
NO_MERGE = {"unet": None, "text_encoder": None}

PARAMS: dict[str, Any] = {
    "runtime": dict(CPU),
    "housekeeping": {"checkpointing_steps": 100, "logging_steps": 100},
    "sweep": {
        "alpha": [0.7],
        "rank": [4],
        "dreambooth_rank": [4],
        "vectors": [2],
        "seed": [0],
        "lora_scale": [1.0],
        "kept_steps": {"text2img": [], "dreambooth": [], "textual_inversion": []},
        "bases": ["theta0", "theta1"],
    },
    "download": {
        "source": {"kind": "folder", "path": "pictures", "masks": None},
        "on_bad": "skip",
        "min_size": 8,
        "max_pixels": 10**6,
        "min_images": 1,
        "max_images": None,
        "alpha_mask": True,
        "held_out_images": 1,
    },
    "caption": {
        "own": "ignore",
        "model": local("captioner"),
        "prompt": None,
        "num_beams": 1,
        "max_new_tokens": 8,
        "batch_size": 2,
        "prefix": "a picture",
        "prefixes": {},
        "drop_phrases": [],
        "drop_common_phrases": None,
        "suffix": None,
    },
    "base": {
        "theta0": {
            "source": local("model0"),
            "config": local("configs"),
            "fill": False,
            "ema": False,
            "prediction_type": None,
        },
        "theta1": None,
        "theta2": None,
        "dtype": "float32",
    },
    "vae": {"source": "theta0", "alpha": None, "other": None, "dtype": "float32"},
    "merge": {
        "method": "weighted_sum",
        "component_alpha": NO_MERGE,
        "blocks": None,
        "density": 0.5,
        "seed": 0,
        "text_encoder": "merged",
        "rescale_betas_zero_snr": False,
        "dtype": "float16",
    },
    "encode_images": {"resolution": RESOLUTION, "max_aspect_ratio": 1, "interpolation": "lanczos", "batch_size": 2},
    "encode_captions": {"clip_skip": 0},
    "train_text2img": conf_values("train_text2img", caption_dropout=0.0, **TRAINING),
    "class_images": {"num_class_images": 1, "class_prompts": ["a portrait"], "seed": 3, **SAMPLING},
    "train_dreambooth": conf_values("train_dreambooth", instance_prompt="asuka", clip_skip=0, **TRAINING),
    "train_textual_inversion": conf_values(
        "train_textual_inversion",
        placeholder_token="<asuka>",
        replaces="asuka",
        initializer="a portrait",
        templates=["{}", "a portrait of {}"],
        clip_skip=0,
        **TRAINING,
    ),
    "generate": {"subject_prompts": ["a portrait"], "other_prompts": ["a hat"], "seeds": [0], **SAMPLING},
    "embed": {"clip": local("clip"), "dino": local("dino")},
    "compare": {
        "title": "a title",
        "names": dict(vars(NAMES)),
        "subjects": {},
        "primary": "trigger_specificity",
        "contrasts": [["text2img", "merge"]],
        "images_per_cell": 1,
        "grid_prompts": 1,
        "image_size": 24,
        "resampling": "lanczos",
        "training_images": 1,
        "card": {"license": None, "base_models": []},
        "single_file": False,
        "font": None,
    },
    "export": {"dtype": "float16", "lora_dtype": "float32"},
}
for _kind in ("train_text2img", "train_dreambooth", "train_textual_inversion"):
    PARAMS[_kind]["preview_guidance_scale"] = 4.0

_TRAINED = {"images": "images.safetensors", "class_images": "class", "model": "model", "rank": 2, "seed": 0}
_WORD = {"images": "images.safetensors", "dataset": "dataset", "model": "model", "vectors": 2, "seed": 0}
_COMPARISON = {name: f"comparison/{name}" for name in ("images", "embeddings", "raw", "dataset")} | {"loras": "comparison/lora"}
_MERGED = {"theta0": "model0", "theta1": "model1", "vae": "model0/vae", "alpha": 0.5}


def ways(stage: str, params: dict[str, Any]) -> list[dict[str, Any]]:
    """The options of the commands by which a stage is run."""
    theta2 = {"theta2": "model2"} if params["merge"]["method"] in ("add_difference", "ties", "dare") else {}
    found: dict[str, list[dict[str, Any]]] = {
        "download": [{"out": "out"}],
        "caption": [{"images": "raw", "out": "out"}],
        "base": [{"name": "theta0", "out": "out"}],
        "vae": [{"theta0": "model0", "theta1": "model1", "out": "out"}],
        "merge": [_MERGED | theta2 | {"out": "out"}],
        "encode_images": [{"images": "raw", "vae": "model/vae", "out": "out.safetensors"}],
        "encode_captions": [{"dataset": "dataset", "model": "model", "out": "out.safetensors"}],
        "train_text2img": [_TRAINED | {"captions": "captions.safetensors", "out": "out"}],
        "class_images": [{"model": "model", "out": "out"}],
        "train_dreambooth": [_TRAINED | {"out": "out"}],
        "train_textual_inversion": [_WORD | {"out": "out"}],
        "generate": [{"model": "model", "out": "out"}],
        "embed": [{"images": "comparison/images/theta0", "out": "out.safetensors"}],
        "compare": [_COMPARISON | {"out": "out"}],
        "export": [{"source": source, "out": "out.safetensors"} for source in ("model0", "lora")],
    }
    return found[stage]


def run_stage(name: str, **options: Any) -> None:
    """Run a stage in this process as its command line does, and say nothing."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            run(importlib.import_module(f"stages.{name}").stage, arguments(**options))
        except SystemExit as error:
            raise AssertionError(said.getvalue()) from error


def make_world(root: Path) -> None:
    """All that the stages read, below `root`, which is the working directory."""
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    _pictures(root)
    for number in range(3):
        save_diffusers(root / f"model{number}", random_weights(number))
    save_configs(root / "configs")
    save_configs(root / "configs-v", scheduler=SCHEDULER | {"prediction_type": "v_prediction"})
    whole = ldm_weights(random_weights())
    unet = {key: tensor for key, tensor in whole.items() if key.startswith("model.diffusion_model.")}
    moving_average = {f"model_ema.{key.removeprefix('model.').replace('.', '')}": tensor + 0.1 for key, tensor in unet.items()}
    save_file(whole | moving_average, root / "ema.safetensors")
    save_file(unet, root / "unet.safetensors")
    save_tiny_checkpoint(root / "model")
    for name, save in (("captioner", save_tiny_blip), ("clip", save_tiny_scorer), ("dino", save_tiny_dino)):
        _changed(save(root / name), root / f"other-{name}")
    shutil.copyfile(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSerif.ttf"), root / "font.ttf")
    write_world(root / "comparison", replace(SWEEP, vectors=(2,)))
    for file in (root / "comparison/images/theta0").glob("*.png"):  # of one colour, all would be alike to an encoder
        Image.fromarray(np.random.default_rng(len(file.name)).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
    run_stage("download", out="raw")
    run_stage("caption", images="raw", out="dataset")
    run_stage("encode_images", images="raw", vae="model/vae", out="images.safetensors")
    run_stage("encode_captions", dataset="dataset", model="model", out="captions.safetensors")
    run_stage("class_images", model="model", out="class")
    run_stage("train_text2img", **_TRAINED, captions="captions.safetensors", out="lora")


def _pictures(root: Path) -> None:
    """Pictures that are transparent towards the top, with captions beside them, one that is broken, and other pictures."""
    random = np.random.default_rng(0)
    for folder in ("pictures", "other-pictures"):
        (root / folder).mkdir()
        for number, (width, height) in enumerate(SIZES):
            pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            picture = Image.fromarray(pixels)
            picture.putalpha(Image.linear_gradient("L").resize((width, height)))
            picture.save(root / folder / f"{number}.png")
            (root / folder / f"{number}.txt").write_text(f"a portrait, number {number}")
    (root / "pictures" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")


def _changed(model: Path, copy: Path) -> None:
    """The same model with other weights."""
    shutil.copytree(model, copy)
    random = np.random.default_rng(1)
    weights = load_file(model / WEIGHTS["text_encoder"])
    changed = {
        name: tensor + random.normal(0, 0.5, tensor.shape).astype(tensor.dtype) if tensor.ndim else tensor
        for name, tensor in weights.items()
    }
    save_file(changed, copy / WEIGHTS["text_encoder"], metadata={"format": "pt"})
