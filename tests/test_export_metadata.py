"""What A1111, ComfyUI and Civitai read in exported files."""

import base64
import hashlib
import io
import json

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from stages.export import ExportConfig, stage
from tests.checkpoints.tiny import random_weights, save_diffusers
from tests.training.running import TEXT2IMG, run_stage, write_params

pytestmark = pytest.mark.stage

CONFIG = ExportConfig(dtype="float16", lora_dtype="float16")


def metadata_of(path):
    with safe_open(path, "np") as file:
        return file.metadata()


def hash_of_tensors(path):
    """As A1111's `addnet_hash_safetensors` computes it: of all that follows the header."""
    content = path.read_bytes()
    return hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()


def thumbnail_of(metadata):
    head, _, content = metadata["modelspec.thumbnail"].partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


@pytest.fixture
def trained(encoded, in_the_world):
    settings = {"max_train_steps": 4, "learning_rate": 0.002, "preview_prompts": ["a cat"], "preview_steps": 2, "keep_every": 3}
    write_params(encoded, train_text2img=settings)
    run_stage("train_text2img", **TEXT2IMG, out="text2img-a0.7-r2-s0")
    return encoded


def test_a_lora_says_how_it_was_trained_under_kohyas_keys(trained):
    stage(CONFIG, trained / "text2img-a0.7-r2-s0", trained / "out.safetensors")
    metadata = metadata_of(trained / "out.safetensors")
    expected = {
        "ss_output_name": "text2img-a0.7-r2-s0",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_network_alpha": "4",
        "ss_learning_rate": "0.002",
        "ss_unet_lr": "0.002",
        "ss_steps": "4",
        "ss_seed": "0",
        "ss_resolution": "(32, 32)",
        "ss_clip_skip": "1",
        "ss_sd_model_name": "model",
        "modelspec.title": "text2img-a0.7-r2-s0",
        "modelspec.resolution": "32x32",
        "modelspec.prediction_type": "epsilon",
        "modelspec.sai_model_spec": "1.0.0",
    }
    assert {key: metadata.get(key) for key in expected} == expected
    told = json.loads(metadata["recipe"])["training"]
    assert metadata["ss_num_train_images"] == str(told["images"]) == "6"
    (frequency,) = json.loads(metadata["ss_tag_frequency"]).values()
    assert frequency == told["tag_frequency"]
    assert sum(frequency.values()) >= 6
    assert metadata["sshs_model_hash"] == hash_of_tensors(trained / "out.safetensors")
    assert metadata["modelspec.hash_sha256"] == "0x" + metadata["sshs_model_hash"]
    assert thumbnail_of(metadata).size == (32, 32)
    assert not any("date" in key or "time" in key or "session" in key for key in metadata)
    assert "modelspec.architecture" not in metadata, "a UNet of this width is no Stable Diffusion"
    assert "ss_base_model_version" not in metadata


def test_what_was_kept_on_the_way_says_its_own_steps(trained):
    stage(CONFIG, trained / "text2img-a0.7-r2-s0" / "step-3", trained / "out.safetensors")
    assert metadata_of(trained / "out.safetensors")["ss_steps"] == "3"


def test_the_same_bytes_twice(trained):
    for name in ("one", "two"):
        stage(CONFIG, trained / "text2img-a0.7-r2-s0", trained / name)
    assert (trained / "one").read_bytes() == (trained / "two").read_bytes()


def test_a_lora_of_another_program_says_what_its_tensors_show(tmp_path):
    from stages.checkpoints.adapters.kohya_metadata import kohya_metadata
    from stages.checkpoints.adapters.lora_files import read_lora

    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    shapes = {"lora_down.weight": (4, 768), "lora_up.weight": (320, 4)}
    tensors = {f"{name}.{part}": np.ones(shape, np.float32) for part, shape in shapes.items()}
    save_file(tensors | {f"{name}.alpha": np.ones((), np.float32)}, tmp_path / "theirs.safetensors")
    metadata = kohya_metadata(read_lora(tmp_path / "theirs.safetensors"), "theirs")
    assert metadata == {
        "ss_output_name": "theirs",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "1",
        "ss_base_model_version": "sd_v1",
    }


def test_a_checkpoint_has_a_modelspec_with_what_it_drew(tmp_path):
    from stages.drawing.cells import Cell, write_cells
    from stages.drawing.image_files import write_image

    model = save_diffusers(tmp_path / "a0.7", random_weights())
    (tmp_path / "images").mkdir()
    cell = Cell(0, "a cat", 3)
    write_image(Image.new("RGB", (512, 512), (200, 0, 0)), tmp_path / "images" / cell.file_name, {})
    write_cells(tmp_path / "images", [cell])
    stage(CONFIG, model, tmp_path / "out.safetensors", images=tmp_path / "images")
    metadata = metadata_of(tmp_path / "out.safetensors")
    assert metadata["modelspec.title"] == "a0.7"
    assert metadata["modelspec.hash_sha256"] == "0x" + hash_of_tensors(tmp_path / "out.safetensors")
    assert thumbnail_of(metadata).size == (256, 256)
    stage(CONFIG, model, tmp_path / "bare.safetensors")
    assert "modelspec.thumbnail" not in metadata_of(tmp_path / "bare.safetensors")


@pytest.mark.parametrize(
    ("width", "kind", "name"), [(768, "", "stable-diffusion-v1"), (768, "lora", "stable-diffusion-v1/lora")]
)
def test_the_architecture_is_known_by_the_width_of_the_text(width, kind, name):
    from stages.checkpoints.modelspec import modelspec

    assert modelspec("x", width, kind)["modelspec.architecture"] == name
