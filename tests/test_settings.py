"""Every setting of every stage does something: two values of it give other contents, and those that may not, do not.

A setting that is added without a row in `ROWS` fails the suite.
"""

import contextlib
import copy
import dataclasses
import hashlib
import importlib
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from PIL import Image
from safetensors.numpy import load_file

from stages.drawing.cells import CELLS_FILE
from stages.drawing.taken_over import DRAWN_FILE
from stages.lora.adapter_config import AdapterConfig
from stages.lora.config import OptimizerConfig
from stages.lora.objective import LossConfig, NoiseConfig
from stages.pipeline.command import config_schemas, run
from stages.pipeline.config import ModelSource, Source
from stages.sync import stage_modules
from tests.report.small_comparison import NAMES
from tests.settings_world import PARAMS, local, make_world, ways
from tests.training.running import arguments

pytestmark = pytest.mark.stage

Effect = Literal["changes", "same", "rounding", "refused"]


@dataclass(frozen=True)
class Row:
    """Two values of a setting.

    Attributes:
        setting: its path, from the stage on.
        value: another one than the world's.
        effect: what it does to the stage's output: it changes it, leaves it the same, or may change the last bits, which other
            tests look at; or the stage refuses, with a message that names the setting.
        given: other settings with which this one counts, in both runs.
    """

    setting: str
    value: Any
    effect: Effect = "changes"
    given: dict[str, Any] = field(default_factory=dict)


TRAINING = {
    "tuned": Row("tuned", "full"),
    "train_text_encoder": Row("train_text_encoder", True),
    "peft_type": Row("peft_type", "lokr"),
    "lora_alpha": Row("lora_alpha", 8),
    "use_rslora": Row("use_rslora", True),
    "use_dora": Row("use_dora", True),
    "lora_dropout": Row("lora_dropout", 0.5),
    "target_modules": Row("target_modules", ["to_q"]),
    "rank_pattern": Row("rank_pattern", {"to_q": 1}),
    "alpha_pattern": Row("alpha_pattern", {"to_q": 1.0}),
    "init_lora_weights": Row("init_lora_weights", "kaiming"),
    "peft": Row("peft", {"peft_type": "OFT", "oft_block_size": "rank"}),
    "optimizer": Row("optimizer", "adamw", "rounding"),
    "optimizer_args": Row("optimizer_args", {"momentum": 0.9}, given={"optimizer": "torch.optim.SGD"}),
    "max_train_steps": Row("max_train_steps", 5),
    "num_processes": Row("num_processes", 2, "rounding"),
    "train_batch_size": Row("train_batch_size", 3),
    "gradient_accumulation_steps": Row("gradient_accumulation_steps", 2),
    "learning_rate": Row("learning_rate", 0.01),
    "lr_scheduler": Row("lr_scheduler", "constant"),
    "lr_warmup_steps": Row("lr_warmup_steps", 2),
    "lr_num_cycles": Row("lr_num_cycles", 2, given={"lr_scheduler": "cosine_with_restarts"}),
    "lr_power": Row("lr_power", 2.0, given={"lr_scheduler": "polynomial"}),
    "lr_step_rules": Row("lr_step_rules", "1:2,0.5", given={"lr_scheduler": "piecewise_constant", "lr_step_rules": "1:2,0.1"}),
    "adam_beta1": Row("adam_beta1", 0.5),
    "adam_beta2": Row("adam_beta2", 0.5),
    "adam_weight_decay": Row("adam_weight_decay", 0.5),
    "adam_epsilon": Row("adam_epsilon", 0.01),
    "max_grad_norm": Row("max_grad_norm", 1e-5),
    "loraplus_lr_ratio": Row("loraplus_lr_ratio", 16.0),
    "block_lr": Row("block_lr", {"M00": 0.0}),
    "ema_decay": Row("ema_decay", 0.9),
    "loss_type": Row("loss_type", "huber"),
    "huber_c": Row("huber_c", 0.5, given={"loss_type": "huber"}),
    "huber_schedule": Row("huber_schedule", "constant", given={"loss_type": "huber"}),
    "snr_gamma": Row("snr_gamma", 1.0),
    "debiased_estimation": Row("debiased_estimation", True),
    "min_timestep": Row("min_timestep", 900),
    "max_timestep": Row("max_timestep", 100),
    "timestep_distribution": Row("timestep_distribution", "logit_normal"),
    "logit_mean": Row("logit_mean", 2.0, given={"timestep_distribution": "logit_normal"}),
    "logit_std": Row("logit_std", 0.1, given={"timestep_distribution": "logit_normal"}),
    "multires_noise_iterations": Row("multires_noise_iterations", 3),
    "multires_noise_discount": Row("multires_noise_discount", 0.9, given={"multires_noise_iterations": 3}),
    "input_perturbation": Row("input_perturbation", 0.5),
    "noise_offset": Row("noise_offset", 0.5),
    "random_flip": Row("random_flip", True),
    "unmasked_weight": Row("unmasked_weight", 1.0),
    "prior_loss_weight": Row("prior_loss_weight", 0.1),
    "gradient_checkpointing": Row("gradient_checkpointing", True, "rounding"),
    "compile": Row("compile", True, "rounding"),
    "held_out_steps": Row("held_out_steps", 1),
    "preview_prompts": Row("preview_prompts", ["a portrait"]),
    "preview_steps": Row("preview_steps", 1, given={"preview_prompts": ["a portrait"]}),
    "preview_guidance_scale": Row("preview_guidance_scale", 1.0, given={"preview_prompts": ["a portrait"]}),
    "keep_every": Row("keep_every", 2),
}

SAMPLING = {
    "negative_prompt": Row("negative_prompt", "zebra"),
    "noise_scheduler": Row("noise_scheduler", "euler_a"),
    "num_inference_steps": Row("num_inference_steps", 3),
    "guidance_scale": Row("guidance_scale", 2.0),
    "resolution": Row("resolution", 40),
    "batch_size": Row("batch_size", 1, "rounding"),
    "clip_skip": Row("clip_skip", 1),
    "prompt_syntax": Row("prompt_syntax", "a1111", given={"negative_prompt": "(zebra:1.4)"}),
}


def of(stage: str, rows: dict[str, Row]) -> list[Row]:
    """The rows of settings that several stages share, for one of them."""

    def name(setting: str) -> str:
        return f"{stage}.{setting}"

    return [
        dataclasses.replace(row, setting=name(row.setting), given={name(key): value for key, value in row.given.items()})
        for row in rows.values()
    ]


OF_NO_WORD = ("tuned", "prior_loss_weight", "lr_scheduler", "lr_warmup_steps")
"""Settings of trainings that are others where a word is taught."""


def _of_a_lora(row: Row) -> Row:
    """A row of a training that has a LoRA beside the word, as most settings are of that."""
    return dataclasses.replace(row, given={"tuned": "lora", **row.given})


MERGE_OF_THREE = {"merge.method": "ties"}
ROWS = [
    Row("download.source", {"kind": "folder", "path": "other-pictures", "masks": None}),
    Row("download.on_bad", "fail", "refused"),
    Row("download.min_size", 40),
    Row("download.max_pixels", 48 * 48),
    Row("download.min_images", 50, "refused"),
    Row("download.max_images", 2),
    Row("download.held_out_images", 2),
    Row("download.alpha_mask", False),
    Row("caption.own", "use"),
    Row("caption.model", local("other-captioner")),
    Row("caption.prompt", "a"),
    Row("caption.num_beams", 3),
    Row("caption.max_new_tokens", 2),
    Row("caption.batch_size", 1, "rounding"),
    Row("caption.prefix", "asuka"),
    Row("caption.prefixes", {"zebras": "zebra"}, "refused"),
    Row("caption.drop_phrases", ["*"]),
    Row("caption.drop_common_phrases", 0.1),
    Row("caption.suffix", "in the park"),
    Row("base.theta0.source", local("model1")),
    Row(
        "base.theta0.config",
        local("configs-v"),
        given={"base.theta0.source": local("ema.safetensors")},
    ),
    Row(
        "base.theta0.fill",
        True,
        given={"base.theta0.source": local("unet.safetensors"), "base.theta0.config": local("model1")},
    ),
    Row(
        "base.theta0.ema",
        True,
        given={"base.theta0.source": local("ema.safetensors")},
    ),
    Row("base.theta0.prediction_type", "v_prediction"),
    Row("base.dtype", "float16"),
    Row("vae.source", "theta1"),
    Row("vae.alpha", 0.9, given={"vae.source": "merged", "vae.alpha": 0.5}),
    Row(
        "vae.other",
        local("model1"),
        given={
            "vae.source": "other",
            "vae.other": local("model2"),
        },
    ),
    Row("vae.dtype", "float16"),
    Row("merge.method", "slerp"),
    Row("merge.component_alpha.unet", 0.1),
    Row("merge.component_alpha.text_encoder", 0.1),
    Row("merge.blocks", {"M00": 0.1}),
    Row("merge.density", 0.2, given=MERGE_OF_THREE),
    Row("merge.seed", 1, given={"merge.method": "dare"}),
    Row("merge.text_encoder", "theta0"),
    Row("merge.rescale_betas_zero_snr", True, "refused"),
    Row("merge.dtype", "float32"),
    Row("encode_images.resolution", 40),
    Row("encode_images.max_aspect_ratio", 4.0, given={"encode_images.resolution": 64}),
    Row("encode_images.interpolation", "bilinear"),
    Row("encode_images.batch_size", 1, "rounding"),
    Row("encode_captions.clip_skip", 1),
    *of("train_text2img", TRAINING),
    Row("train_text2img.caption_dropout", 1.0),
    Row("train_text2img.shuffle_caption", True, given={"train_text2img.keep_tokens": 0}),
    Row("train_text2img.keep_tokens", 0, given={"train_text2img.shuffle_caption": True}),
    Row("train_text2img.caption_tag_dropout", 0.9),
    Row("train_text2img.caption_dropout_every_n_epochs", 1),
    Row("class_images.num_class_images", 2),
    Row("class_images.class_prompts", ["a zebra"]),
    Row("class_images.seed", 7),
    *of("class_images", SAMPLING),
    *of("train_dreambooth", TRAINING),
    Row("train_dreambooth.instance_prompt", "zebra"),
    Row("train_dreambooth.instance_prompts", {"zebras": "zebra"}, "refused"),
    Row("train_dreambooth.class_prompt", "a zebra"),
    Row("train_dreambooth.clip_skip", 1),
    *of("train_textual_inversion", {name: _of_a_lora(row) for name, row in TRAINING.items() if name not in OF_NO_WORD}),
    Row("train_textual_inversion.tuned", "lora"),
    Row("train_textual_inversion.lr_scheduler", "cosine"),
    Row("train_textual_inversion.lr_warmup_steps", 2, given={"train_textual_inversion.lr_scheduler": "constant_with_warmup"}),
    Row("train_textual_inversion.prior_loss_weight", 1.0, "refused"),
    Row("train_textual_inversion.rank", 3, given={"train_textual_inversion.tuned": "lora"}),
    Row("train_textual_inversion.placeholder_token", "<zebra>"),
    Row("train_textual_inversion.replaces", "picture", given={"train_textual_inversion.templates": "captions"}),
    Row("train_textual_inversion.initializer", "zebra"),
    Row("train_textual_inversion.templates", "style"),
    Row("train_textual_inversion.embedding_learning_rate", 0.1, given={"train_textual_inversion.tuned": "lora"}),
    Row("train_textual_inversion.clip_skip", 1),
    Row("generate.subject_prompts", ["a zebra"]),
    Row("generate.other_prompts", ["a zebra"]),
    Row("generate.seeds", [5]),
    *of("generate", SAMPLING),
    Row("embed.clip", local("other-clip")),
    Row("embed.dino", local("other-dino")),
    Row("compare.title", "another title"),
    *(Row(f"compare.names.{kind}", "another name") for kind in vars(NAMES)),
    Row("compare.subjects", {"zebras": "zebra"}, "refused"),
    Row("compare.primary", "leak"),
    Row("compare.contrasts", [["text2img", "dreambooth"]]),
    Row("compare.images_per_cell", 2),
    Row("compare.grid_prompts", 2),
    Row("compare.image_size", 40),
    Row("compare.resampling", "nearest", given={"compare.image_size": 24}),
    Row("compare.training_images", 2),
    Row("compare.single_file", True),
    Row("compare.card.license", "mit"),
    Row("compare.card.base_models", ["a/b"]),
    Row("compare.font", "font.ttf"),
    Row("export.dtype", "float32"),
    Row("export.lora_dtype", "float16"),
]

SHARED = [
    ("train_text2img", Row("runtime.device", "cpu", "same", given={"runtime.device": "auto"})),
    ("train_text2img", Row("runtime.threads", 2, "rounding")),
    ("train_text2img", Row("runtime.dtype", "bfloat16")),
    ("train_text2img", Row("runtime.deterministic", False, "rounding")),
    ("train_text2img", Row("runtime.tf32", True, "rounding")),
    ("train_text2img", Row("runtime.cuda_graphs", False, "rounding")),
    ("train_text2img", Row("housekeeping.checkpointing_steps", 1, "same")),
    ("train_text2img", Row("housekeeping.logging_steps", 1, "same")),
    ("train_dreambooth", Row("housekeeping.checkpointing_steps", 1, "same")),
    ("train_dreambooth", Row("housekeeping.logging_steps", 1, "same")),
]
"""Settings of sections that several stages read, each in one that does."""

TESTED_ELSEWHERE = {
    "compile": "tests/lora/test_tuned_model.py",
    "num_processes": "tests/training/test_mixed_shapes.py",
}
"""Settings whose effect takes a compiler, or processes of their own, with the tests that look at them."""


def settings_of(schema: Any) -> Iterator[str]:
    """The settings of a config; those that say together where something comes from, and mappings, are one."""
    for each in dataclasses.fields(schema):
        if dataclasses.is_dataclass(each.type) and not issubclass(each.type, Source | ModelSource):  # pyright: ignore[reportArgumentType]
            yield from (f"{each.name}.{inner}" for inner in settings_of(each.type))
        else:
            yield each.name


ALIKE = ("base.theta1", "base.theta2")
"""Settings that are those of base.theta0 for another original."""
BY_THE_DAG = ("sweep.",)
"""Settings that decide which stages there are: test_dag runs the pipeline with other values."""


def test_every_setting_has_a_row():
    rows = [row.setting for row in ROWS] + [row.setting for _, row in SHARED]
    expected = set()
    for name, module in stage_modules().items():
        for parameter, schema in config_schemas(module.stage).items():
            section = name if parameter == "config" else parameter
            expected |= {f"{section}.{setting}" for setting in settings_of(schema)}
    assert set(rows) == {setting for setting in expected if not setting.startswith((*ALIKE, *BY_THE_DAG))}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("settings")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("DVC_ROOT", str(root))
        make_world(root)
    return root


RESULTS: dict[str, str] = {}


def outcome(root: Path, stage: str, changes: dict[str, Any]) -> str:
    """A digest of all that a stage writes with these settings, or what it says against them."""
    key = json.dumps([stage, changes], sort_keys=True)
    if key not in RESULTS:
        params = copy.deepcopy(PARAMS)
        for setting, value in changes.items():
            *parents, last = setting.split(".")
            section: Any = params
            for parent in parents:
                section = section[parent]
            section[last] = value
        (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        RESULTS[key] = "\n".join(digest_of(root, stage, way) for way in ways(stage, params))
    return RESULTS[key]


def digest_of(root: Path, stage: str, way: dict[str, Any]) -> str:
    out = root / way["out"]
    shutil.rmtree(root / ".checkpoints", ignore_errors=True)
    if out.exists():
        (shutil.rmtree if out.is_dir() else Path.unlink)(out)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            run(importlib.import_module(f"stages.{stage}").stage, arguments(**way))
    except SystemExit:
        return said.getvalue().splitlines()[-1]
    digest = hashlib.sha256()
    for file in sorted(out.rglob("*")) if out.is_dir() else [out]:
        if file.is_file():
            digest.update(f"{file.relative_to(root)}\n".encode() + content_of(file))
    return digest.hexdigest()


def content_of(file: Path) -> bytes:
    """What a file holds, without the settings that are noted in it: none of them may count by its note alone."""
    if file.name in (CELLS_FILE, DRAWN_FILE):
        return b""
    if file.suffix == ".png":
        with Image.open(file) as image:
            return f"{image.mode} {image.size}".encode() + image.tobytes()
    if file.suffix == ".safetensors":
        tensors = sorted(load_file(file).items())
        return b"".join(f"{name} {tensor.shape}".encode() + tensor.tobytes() for name, tensor in tensors)
    return file.read_bytes()


ALIKE_IN_TRAININGS = {
    field.name for part in (AdapterConfig, OptimizerConfig, LossConfig, NoiseConfig) for field in dataclasses.fields(part)
} - {"max_train_steps", "learning_rate"}
"""Settings that all trainings hand to the same code, which looks at nothing but these: seen in one of them."""


def is_seen(row: Row) -> bool:
    """Whether a row is looked at here."""
    stage, *_, last = row.setting.split(".")
    again = stage in ("train_dreambooth", "train_textual_inversion") and last in ALIKE_IN_TRAININGS
    own = row.setting in ("train_textual_inversion.lr_scheduler", "train_textual_inversion.lr_warmup_steps")
    return last not in TESTED_ELSEWHERE and (own or not again)


@pytest.mark.parametrize(
    ("stage", "row"),
    [(row.setting.split(".")[0], row) for row in ROWS if is_seen(row)] + SHARED,
    ids=lambda value: value.setting if isinstance(value, Row) else value,
)
def test_a_setting_does_what_its_row_says(small, monkeypatch, stage, row):
    monkeypatch.chdir(small)
    monkeypatch.setenv("DVC_ROOT", str(small))
    before, after = outcome(small, stage, row.given), outcome(small, stage, row.given | {row.setting: row.value})
    assert "error" not in before, before
    if row.effect == "refused":
        assert row.setting.split(".")[-1] in after or "broken.png" in after, after
    else:
        assert "error" not in after, after
    if row.effect == "same":
        assert before == after
    elif row.effect != "rounding":
        assert before != after
