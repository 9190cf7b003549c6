"""Any two small checkpoints, in any dialect, dtype and form, whole or broken: merged rightly, or refused by the key's name."""

import zipfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from stages.checkpoints.keys.key_maps import component_specs
from stages.checkpoints.merging.config import WEIGHTED_SUM
from stages.checkpoints.merging.models import merge_models
from stages.checkpoints.model import Model, read_model, write_component
from tests.checkpoints.hostile import safetensors
from tests.checkpoints.tiny import CONFIGS, TEXT_ENCODER, UNET, VAE, WEIGHTS, WIDTH, save_configs

MICRO = {
    "unet": UNET
    | {
        "block_out_channels": [4, 8],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    },
    "vae": VAE
    | {"block_out_channels": [4], "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"]},
    "text_encoder": TEXT_ENCODER | {"num_hidden_layers": 1},
}
SPECS = [(name, spec) for name in CONFIGS for spec in component_specs(name, MICRO[name])]
CLIP = "cond_stage_model.transformer."
STORAGES = {"float16": "Half", "bfloat16": "BFloat16", "float32": "Float", "float64": "Double", "int64": "Long"}
CODES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64", "int64": "I64"}
FAULTS = ("missing", "unexpected", "wrong shape", "not a float", "NaN", "Inf")


@dataclass(frozen=True)
class Case:
    """One random checkpoint."""

    seed: int
    form: str
    dtypes: tuple[str, ...]
    novelai: bool
    linear_vae: bool
    position_ids: str | None
    average: bool
    nested: bool
    fault: str | None
    victim: int


@st.composite
def cases(draw, faults=(None,)):
    return Case(
        seed=draw(st.integers(0, 2**16)),
        form=draw(st.sampled_from(["safetensors", "ckpt"])),
        dtypes=tuple(draw(st.lists(st.sampled_from(["float16", "bfloat16", "float32", "float64"]), min_size=1, max_size=3))),
        novelai=draw(st.booleans()),
        linear_vae=draw(st.booleans()),
        position_ids=draw(st.sampled_from([None, "int64", "float16"])),
        average=draw(st.booleans()),
        nested=draw(st.booleans()),
        fault=draw(st.sampled_from(faults)),
        victim=draw(st.integers(0, len(SPECS) - 1)),
    )


def rounded(values, dtype):
    """The values as a file of that dtype holds them; bfloat16 as float32 without its lower half."""
    if dtype == "bfloat16":
        return (values.astype(np.float32).view(np.uint32) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return values.astype(dtype)


def truth(case):
    """What the checkpoint holds, by component and diffusers key, with each tensor's dtype."""
    generator = np.random.default_rng(case.seed)
    values = {}
    for index, (name, spec) in enumerate(SPECS):
        dtype = case.dtypes[index % len(case.dtypes)]
        values[name, spec.name] = rounded(generator.normal(0, 0.2, spec.shape), dtype), dtype
    return values


def spelled(case, key):
    return key.replace(f"{CLIP}text_model.", CLIP) if case.novelai else key


def tensors_of(case):
    """The file's tensors: key → (values, dtype), with the case's dialect and fault."""
    values = truth(case)
    tensors = {}
    for name, spec in SPECS:
        array, dtype = values[name, spec.name]
        shape = spec.shape if name == "vae" and case.linear_vae else spec.ldm_shape
        tensors[spelled(case, spec.ldm_name)] = array.reshape(shape), dtype
    if case.position_ids:
        positions = np.arange(77)[None].astype(case.position_ids)
        tensors[spelled(case, f"{CLIP}text_model.embeddings.position_ids")] = positions, case.position_ids
    if case.average:
        tensors["model_ema.decay"] = np.array([0.9999], np.float32), "float32"
        tensors["model_ema.diffusion_modelout2bias"] = np.zeros(4, np.float32), "float32"
    spoil(case, tensors)
    return tensors


def spoil(case, tensors):
    key = spelled(case, SPECS[case.victim][1].ldm_name)
    array, dtype = tensors[key]
    if case.fault == "missing":
        del tensors[key]
    elif case.fault == "unexpected":
        tensors[f"{key}.extra"] = array, dtype
    elif case.fault == "wrong shape":
        tensors[key] = np.concatenate([array, array]), dtype
    elif case.fault == "not a float":
        tensors[key] = array.astype(np.int64), "int64"
    elif case.fault in ("NaN", "Inf"):
        array = array.copy()
        array.flat[0] = np.nan if case.fault == "NaN" else np.inf
        tensors[key] = array, dtype


def content(array, dtype):
    return (array.view(np.uint32) >> 16).astype(np.uint16).tobytes() if dtype == "bfloat16" else array.tobytes()


def safetensors_file(case):
    header, data, prefix = {}, b"", "state_dict." if case.nested else ""
    for key, (array, dtype) in tensors_of(case).items():
        start, data = len(data), data + content(np.ascontiguousarray(array), dtype)
        header[prefix + key] = {"dtype": CODES[dtype], "shape": array.shape, "data_offsets": [start, len(data)]}
    return safetensors(header, data)


def ckpt_file(case):
    """As torch.save writes it, with the pickle in the text of protocol 0."""
    file, items = BytesIO(), []
    with zipfile.ZipFile(file, "w") as archive:
        for index, (key, (array, dtype)) in enumerate(tensors_of(case).items()):
            shape = "".join(f"I{size}\n" for size in array.shape)
            strides = "".join(f"I{stride // array.itemsize}\n" for stride in np.ascontiguousarray(array).strides)
            storage = f"(Vstorage\nctorch\n{STORAGES[dtype]}Storage\nV{index}\nVcpu\nI{array.size}\ntQ"
            items.append(f"V{key}\nctorch._utils\n_rebuild_tensor_v2\n({storage}I0\n({shape}t({strides}tI00\nNtRs")
            archive.writestr(f"archive/data/{index}", content(np.ascontiguousarray(array), dtype))
        weights = "(d" + "".join(items)
        archive.writestr("archive/data.pkl", f"(dVstate_dict\n{weights}s." if case.nested else f"{weights}.")
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("properties")
    save_configs(folder / "configs", MICRO)
    return folder


def read(folder: Path, name: str, case: Case) -> Model:
    file = folder / f"{name}.{case.form}"
    file.write_bytes(ckpt_file(case) if case.form == "ckpt" else safetensors_file(case))
    return read_model(file, folder / "configs")


def merged(folder: Path, thetas: list[Case], alpha: float, dtype: str) -> dict[tuple[str, str], np.ndarray]:
    theta0, theta1 = (read(folder, f"theta{index}", case) for index, case in enumerate(thetas))
    merge = merge_models(theta0, theta1, WEIGHTED_SUM, alpha)
    assert merge.components.keys() == {"unet", "text_encoder"}
    for name, component in merge.components.items():
        write_component(folder / "merged" / name, name, component, dtype)
    return {
        (name, key): value
        for name in ("unet", "text_encoder")
        for key, value in load_file(folder / "merged" / name / WEIGHTS[name]).items()
    }


# Shrinking is left out: a case is small, and each attempt writes two checkpoints.
slow = settings(
    deadline=None,
    max_examples=12,
    derandomize=True,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@slow
@given(theta0=cases(), theta1=cases(), alpha=st.floats(0, 1), dtype=st.sampled_from(["float16", "float32"]))
def test_a_merge_is_the_float32_result_rounded_once(folder, theta0, theta1, alpha, dtype):
    results = merged(folder, [theta0, theta1], alpha, dtype)
    truths = truth(theta0), truth(theta1)
    assert results.keys() == {key for key in truths[0] if key[0] != "vae"}
    for key, result in results.items():
        first, second = (values[key][0].astype(np.float32) for values in truths)
        expected = ((1 - alpha) * first + alpha * second).astype(dtype)
        assert result.dtype == dtype
        assert np.array_equal(result, expected), key


@slow
@given(theta0=cases(FAULTS), theta1=cases(), swap=st.booleans())
def test_what_is_broken_is_refused_by_its_key(folder, theta0, theta1, swap):
    name, spec = SPECS[theta0.victim]
    if name == "vae" and theta0.fault in ("NaN", "Inf"):
        return  # a merge takes no VAE; the one it gets is checked where it is written
    thetas = [theta1, theta0] if swap else [theta0, theta1]
    with pytest.raises(ValueError, match=r"theta[01]") as error:
        merged(folder, thetas, 0.5, "float32")
    assert spec.name in str(error.value) or spec.ldm_name in str(error.value), str(error.value)
    assert len(str(error.value).splitlines()) == 1


@slow
@given(case=cases())
def test_every_dialect_gives_the_same_tensors(folder, case):
    model = read(folder, "theta0", case)
    for (name, key), (values, _) in truth(case).items():
        tensor = model.components[name].tensors[key]
        assert np.array_equal(tensor.read(), values), key


def test_the_cases_have_a_text_encoder_of_the_right_width():
    assert MICRO["text_encoder"]["hidden_size"] == WIDTH
