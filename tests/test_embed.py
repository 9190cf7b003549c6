import json
from pathlib import Path

import pytest

from stages.embed import EmbedConfig, stage
from stages.pipeline.config import ParamsError, RuntimeConfig, validate
from tests.dataset.loopback_hub import COMMIT, model_repository, reached
from tests.runtime import CPU

RUNTIME = RuntimeConfig(**CPU)
SOURCE = {"path": ".", "repo": None, "revision": None, "file": None, "sha256": None}
PROMPTS = ["a cat", "hat"]


@pytest.fixture
def encoders(tmp_path):
    """The section of a tiny CLIP and a tiny DINOv2."""
    from tests.drawing.tiny_models import save_tiny_dino, save_tiny_scorer

    folders = {"clip": save_tiny_scorer(tmp_path / "clip"), "dino": save_tiny_dino(tmp_path / "dino")}
    return {name: SOURCE | {"path": str(folder)} for name, folder in folders.items()}


def config_of(encoders):
    return validate("embed", EmbedConfig, encoders)


def draw(folder: Path, prompts: list[str]) -> None:
    """Cells whose pictures depend on prompt and seed alone."""
    from PIL import Image

    from stages.drawing.cells import cells_of, write_cells

    folder.mkdir(exist_ok=True)
    cells = cells_of(prompts[:1], prompts[1:], [0, 5])
    for cell in cells:
        shade = 40 * len(cell.prompt) % 256
        Image.new("RGB", (32, 32), (shade, 9 + cell.seed, 99)).save(folder / cell.file_name)
    write_cells(folder, cells)


@pytest.mark.stage
def test_every_image_and_every_prompt_is_embedded(tmp_path, encoders):
    import numpy as np

    from stages.checkpoints.files.tensors import sha256
    from stages.drawing.embeddings import encoder_digest
    from stages.measures.embedded_files import read_embedded

    draw(tmp_path / "images", PROMPTS)
    for name in ("one", "two"):
        stage(config_of(encoders), RUNTIME, tmp_path / "images", tmp_path / f"{name}.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    found = read_embedded(tmp_path / "one.safetensors")
    assert found.file_names == ["p0-s0.png", "p0-s5.png", "p1-s0.png", "p1-s5.png"]
    assert found.sha256 == [sha256(tmp_path / "images" / name) for name in found.file_names]
    assert found.prompts == PROMPTS
    assert found.encoders == {name: encoder_digest(tmp_path / name) for name in ("clip", "dino")}
    for rows in (*found.images.values(), found.texts):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
        assert len(np.unique(rows.round(6), axis=0)) == len(rows)


@pytest.mark.stage
def test_an_image_is_embedded_alike_whatever_stands_beside_it(tmp_path, encoders):
    import numpy as np

    from stages.measures.embedded_files import read_embedded

    draw(tmp_path / "images", PROMPTS)
    stage(config_of(encoders), RUNTIME, tmp_path / "images", tmp_path / "few.safetensors")
    draw(tmp_path / "images", [*PROMPTS, "a hat", "zebras"])
    stage(config_of(encoders), RUNTIME, tmp_path / "images", tmp_path / "many.safetensors")
    few, many = read_embedded(tmp_path / "few.safetensors"), read_embedded(tmp_path / "many.safetensors")
    assert all(np.array_equal(many.images[name][:4], few.images[name]) for name in few.images)


@pytest.mark.stage
def test_only_new_images_are_embedded(tmp_path, encoders, monkeypatch):
    from stages.drawing import embeddings

    embedded: list[str] = []
    embed_image = embeddings.embed_image

    def noting(encoder, file):
        embedded.append(file.name)
        return embed_image(encoder, file)

    monkeypatch.setattr(embeddings, "embed_image", noting)
    draw(tmp_path / "images", PROMPTS)
    config, out = config_of(encoders), tmp_path / "out.safetensors"
    stage(config, RUNTIME, tmp_path / "images", out)
    assert len(embedded) == 2 * 4
    embedded.clear()
    draw(tmp_path / "images", ["zebras", *PROMPTS])
    stage(config, RUNTIME, tmp_path / "images", out)
    assert sorted(set(embedded)) == ["p0-s0.png", "p0-s5.png"]
    embedded.clear()
    stage(config, RUNTIME, tmp_path / "images", tmp_path / "anew.safetensors")
    assert out.read_bytes() == (tmp_path / "anew.safetensors").read_bytes()
    embedded.clear()
    changed = tmp_path / "dino" / "preprocessor_config.json"
    changed.write_text(json.dumps(json.loads(changed.read_text()) | {"image_mean": [0.4] * 3}))
    stage(config, RUNTIME, tmp_path / "images", out)
    assert len(embedded) == 2 * 6, "another encoder embeds all anew"
    out.write_bytes(b"spoilt")
    embedded.clear()
    stage(config, RUNTIME, tmp_path / "images", out)
    assert len(embedded) == 2 * 6
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    stage(config, RUNTIME, tmp_path / "images", out)
    embedded.clear()
    out.unlink()  # as DVC does
    stage(config, RUNTIME, tmp_path / "images", out)
    assert embedded == []


@pytest.mark.stage
def test_a_dataset_is_embedded_without_prompts(tmp_path, encoders):
    from stages.measures.embedded_files import read_embedded
    from tests.report.small_comparison import write_training_images

    write_training_images(tmp_path)
    stage(config_of(encoders), RUNTIME, tmp_path / "raw", tmp_path / "dataset.safetensors")
    found = read_embedded(tmp_path / "dataset.safetensors")
    assert found.file_names == [f"{number:04}.png" for number in range(8)]
    assert (found.prompts, len(found.texts)) == ([], 0)


@pytest.mark.stage
def test_an_encoder_of_the_hub_embeds_as_a_copy_of_it_and_is_checked(tmp_path, encoders):
    draw(tmp_path / "images", PROMPTS)
    folder = tmp_path / "clip"
    pinned = SOURCE | {"path": None, "repo": "owner/clip", "revision": COMMIT}

    def embed(clip, name):
        stage(config_of(encoders | {"clip": clip}), RUNTIME, tmp_path / "images", tmp_path / name)
        return (tmp_path / name).read_bytes()

    copy = embed(encoders["clip"], "copy.safetensors")
    with reached(model_repository("owner/clip", folder), tmp_path / "cache") as patch:
        assert embed(pinned, "online.safetensors") == copy
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert embed(pinned, "offline.safetensors") == copy
    hub = model_repository("owner/clip", folder)
    with reached(hub, tmp_path / "another_cache"):
        hub.files["tokenizer.json"] = hub.files["tokenizer.json"][:-1] + b" "
        with pytest.raises(ValueError, match=r"^embed\.clip: owner/clip: tokenizer\.json: damaged on its way"):
            embed(pinned, "damaged.safetensors")


@pytest.mark.stage
def test_an_encoder_that_cannot_be_had_is_one_line_that_names_its_setting(tmp_path, encoders, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    draw(tmp_path / "images", PROMPTS)
    pinned = SOURCE | {"path": None, "repo": "owner/dino", "revision": "a" * 40}
    message = r"^embed\.dino: owner/dino at a+: not fetched from the hub: it is not in the local cache.*HF_HUB_OFFLINE$"
    with pytest.raises(ValueError, match=message):
        stage(config_of(encoders | {"dino": pinned}), RUNTIME, tmp_path / "images", tmp_path / "out.safetensors")


def test_a_folder_that_holds_neither_cells_nor_a_dataset_is_an_error(tmp_path):
    config = config_of({"clip": SOURCE, "dino": SOURCE})
    with pytest.raises(FileNotFoundError, match=r"cells\.csv: missing.*stage generate"):
        stage(config, RUNTIME, tmp_path, tmp_path / "out.safetensors")


@pytest.mark.parametrize("encoder", ["clip", "dino"])
@pytest.mark.parametrize(
    ("leaf", "changes"),
    [
        ("", {"path": "no/such/folder"}),
        ("", {"path": None, "repo": "owner/name", "revision": "main"}),
        (r"\.file", {"file": "model.safetensors"}),
        (r"\.sha256", {"sha256": "0" * 64}),
    ],
)
def test_wrong_value_names_its_leaf(encoder, leaf, changes):
    with pytest.raises(ParamsError, match=rf"embed\.{encoder}{leaf}"):
        config_of({"clip": SOURCE, "dino": SOURCE} | {encoder: SOURCE | changes})
