"""Any mix of dialects, dtypes and damage: a merge is right, or refused with a message that names the key."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from stages.checkpoints.keys.key_maps import component_specs
from stages.checkpoints.merging.config import WEIGHTED_SUM
from stages.checkpoints.merging.models import merge_models
from stages.checkpoints.model import read_model, write_model
from tests.checkpoints.tiny import CONFIGS, WEIGHTS, Weights, ldm_weights, random_weights, save_configs

Tensors = dict[str, np.ndarray]
MERGED = ("unet", "text_encoder")
PREFIX = "cond_stage_model.transformer."
DIFFUSERS_NAMES = {spec.ldm_name: spec.name for part in MERGED for spec in component_specs(part, CONFIGS[part])}


def set_value(value: float) -> Callable[[Tensors, str], None]:
    def damage(tensors: Tensors, key: str) -> None:
        tensors[key].reshape(-1)[-1] = value

    return damage


def drop(tensors: Tensors, key: str) -> None:
    del tensors[key]


def add(tensors: Tensors, key: str) -> None:
    tensors[f"{key}.more"] = tensors[key]


def widen(tensors: Tensors, key: str) -> None:
    tensors[key] = np.concatenate([tensors[key], tensors[key]])


def make_integer(tensors: Tensors, key: str) -> None:
    tensors[key] = tensors[key].astype(np.int64)


DAMAGES = [None, None, drop, add, widen, make_integer, set_value(np.nan), set_value(np.inf), set_value(-np.inf)]


class Form(NamedTuple):
    """How a checkpoint is written, and what is wrong with it."""

    seed: int
    dtype: str
    novelai: bool
    leftovers: bool
    nested: bool
    damage: Callable[[Tensors, str], None] | None
    key: str


forms = st.builds(
    Form,
    st.integers(0, 3),
    st.sampled_from(["float16", "float32", "float64"]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from(DAMAGES),
    st.sampled_from(sorted(DIFFUSERS_NAMES)),
)


def save(form: Form, path: Path) -> Weights:
    """Write a checkpoint in that form; its weights before the damage."""
    weights = random_weights(form.seed, dtype=np.dtype(form.dtype).type)
    tensors = {key: value.copy() for key, value in ldm_weights(weights).items()}
    if form.damage:
        form.damage(tensors, form.key)
    if form.leftovers:
        tensors[f"{PREFIX}text_model.embeddings.position_ids"] = np.arange(77)[None]
        tensors["model_ema.decay"] = np.ones(1, np.float32)
    if form.novelai:
        tensors = {key.replace(f"{PREFIX}text_model.", PREFIX): value for key, value in tensors.items()}
    if form.nested:
        tensors = {f"state_dict.{key}": value for key, value in tensors.items()}
    save_file(tensors, path)
    return weights


@settings(max_examples=25, deadline=None, derandomize=True)
@given(forms, forms, st.sampled_from([0.0, 0.1, 0.7, 1.0]), st.sampled_from(["float16", "float32"]))
def test_a_merge_is_right_or_refused(form0, form1, alpha, dtype):
    with TemporaryDirectory() as folder:
        configs = save_configs(Path(folder) / "configs")
        paths = [Path(folder) / f"theta{index}.safetensors" for index in (0, 1)]
        weights = [save(form, path) for form, path in zip((form0, form1), paths, strict=True)]
        out = Path(folder) / "out"
        out.mkdir()
        try:
            models = [read_model(path, configs) for path in paths]
            write_model(out, merge_models(models[0], models[1], WEIGHTED_SUM, alpha), dtype)
        except ValueError as error:
            named = [name for form in (form0, form1) if form.damage for name in (form.key, DIFFUSERS_NAMES[form.key])]
            assert any(name in str(error) for name in named), error
            return
        assert not form0.damage
        assert not form1.damage
        for part in MERGED:
            for key, value in load_file(out / part / WEIGHTS[part]).items():
                theta0, theta1 = (model[part][key].astype(np.float32) for model in weights)
                expected = np.float32(1 - alpha) * theta0 + np.float32(alpha) * theta1
                assert value.tobytes() == expected.astype(dtype).tobytes(), key
