import shutil
from dataclasses import asdict, replace

import pytest
from PIL import Image

from stages.generate import GenerateConfig, stage
from stages.pipeline.config import ParamsError, validate
from tests.drawing.small_drawing import CONFIG, RUNTIME


@pytest.mark.stage
def test_cells_are_drawn_and_say_how(tmp_path):
    from stages.checkpoints.files.tensors import sha256
    from stages.drawing.cells import read_cells
    from stages.drawing.image_files import read_image_recipe
    from tests.drawing.tiny_models import save_tiny_checkpoint

    model = save_tiny_checkpoint(tmp_path / "model")
    for name in ("one", "two"):
        stage(CONFIG, RUNTIME, model, tmp_path / name)
    cells = read_cells(tmp_path / "one")
    assert [cell.file_name for cell in cells] == ["p0-s3.png", "p0-s1.png", "p1-s3.png", "p1-s1.png"]
    pictures = {cell.file_name: (tmp_path / "one" / cell.file_name).read_bytes() for cell in cells}
    assert len(set(pictures.values())) == 4
    assert pictures == {name: (tmp_path / "two" / name).read_bytes() for name in pictures}
    text = read_image_recipe(tmp_path / "one" / "p1-s3.png")
    assert (text["prompt"], text["seed"], text["batch_seeds"]) == ("hat, green", 3, [3, 1])
    assert (text["model"], text["device"], text["threads"]) == ("model", "cpu", 1)
    assert "lora" not in text
    assert text["unet_sha256"] == sha256(model / "unet" / "diffusion_pytorch_model.safetensors")
    assert str(tmp_path) not in str(text)


@pytest.mark.stage
def test_a_lora_draws_at_its_strength(tmp_path):
    """At 0 what the model draws without it; between, something else."""
    import torch

    from stages.checkpoints.file_names import LORA_FILE
    from stages.drawing.image_files import read_image_recipe
    from stages.lora.adapters import write_lora
    from tests.drawing.tiny_models import save_tiny_checkpoint
    from tests.lora.tiny_adapters import trained_unet

    torch.manual_seed(0)
    model, config = save_tiny_checkpoint(tmp_path / "model"), replace(CONFIG, other_prompts=(), seeds=(3,))
    write_lora({"unet": trained_unet(model)}, tmp_path / LORA_FILE)
    stage(config, RUNTIME, model, tmp_path / "plain")
    pictures = {}
    for lora_scale in (0.0, 0.5, 1.0):
        out = tmp_path / f"scale {lora_scale}"
        stage(config, RUNTIME, model, out, tmp_path / LORA_FILE, lora_scale)
        assert read_image_recipe(out / "p0-s3.png")["lora_scale"] == lora_scale
        with Image.open(out / "p0-s3.png") as image:
            pictures[lora_scale] = image.tobytes()
    with Image.open(tmp_path / "plain" / "p0-s3.png") as image:
        assert pictures[0.0] == image.tobytes()
    assert len(set(pictures.values())) == 3


@pytest.fixture
def drawn(monkeypatch):
    """The prompts that were drawn, in their order, over all runs."""
    from stages.drawing import sampling

    prompts: list[str] = []
    draw = sampling.draw

    def noting(models, of_run, seeds, config):
        prompts.extend(of_run)
        return draw(models, of_run, seeds, config)

    monkeypatch.setattr(sampling, "draw", noting)
    return prompts


def pictures_of(folder):
    """All files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.stage
def test_a_new_prompt_draws_its_own_pictures_only(tmp_path, drawn):
    """Wherever it stands in the lists, and to the same bytes as if all had been drawn anew."""
    from tests.drawing.tiny_models import save_tiny_checkpoint

    model = save_tiny_checkpoint(tmp_path / "model")
    stage(CONFIG, RUNTIME, model, tmp_path / "out")
    drawn.clear()
    more = replace(CONFIG, subject_prompts=("a hat", "a cat"))
    stage(more, RUNTIME, model, tmp_path / "out")
    assert drawn == ["a hat"]
    stage(more, RUNTIME, model, tmp_path / "anew")
    assert pictures_of(tmp_path / "out") == pictures_of(tmp_path / "anew")
    drawn.clear()
    stage(CONFIG, RUNTIME, model, tmp_path / "out")
    assert drawn == []
    assert len(pictures_of(tmp_path / "out")) == 4 + 2, "what is no longer asked for is gone"


@pytest.mark.stage
def test_pictures_are_taken_over_when_dvc_has_deleted_them(tmp_path, drawn, monkeypatch):
    """Not those that were changed, or that others may have written."""
    from tests.drawing.tiny_models import save_tiny_checkpoint

    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    model, out = save_tiny_checkpoint(tmp_path / "model"), tmp_path / "images"
    stage(CONFIG, RUNTIME, model, out)
    before, (kept,) = pictures_of(out), (tmp_path / ".checkpoints/generate/images").iterdir()
    for spoil, again in (
        (lambda: None, []),
        (lambda: (kept / "images/p1-s3.png").write_bytes(before["p1-s1.png"]), ["a cat", "hat, green"]),
        (lambda: kept.chmod(0o777), ["a cat", "hat, green"]),
    ):
        shutil.rmtree(out)
        drawn.clear()
        spoil()
        stage(CONFIG, RUNTIME, model, out)
        assert drawn == again
        assert pictures_of(out) == before
    for seed, again in ((4, ["a cat", "hat, green"]), (3, [])):  # another setting, and back
        shutil.rmtree(out)
        drawn.clear()
        stage(replace(CONFIG, seeds=(seed, 1), noise_scheduler="ddim" if seed == 3 else "euler_a"), RUNTIME, model, out)
        assert drawn == again


@pytest.mark.stage
def test_where_all_is_taken_over_no_model_is_loaded(tmp_path, monkeypatch):
    from stages.drawing import loaded_models
    from tests.drawing.tiny_models import save_tiny_checkpoint

    model = save_tiny_checkpoint(tmp_path / "model")
    stage(CONFIG, RUNTIME, model, tmp_path / "out")
    before = pictures_of(tmp_path / "out")
    monkeypatch.setattr(loaded_models, "load_models", None)
    stage(CONFIG, RUNTIME, model, tmp_path / "out")
    assert pictures_of(tmp_path / "out") == before


@pytest.mark.stage
@pytest.mark.parametrize(
    "change", [{"guidance_scale": 3.0}, {"seeds": (3, 1, 2)}, {"seeds": (1, 3)}, {"batch_size": 1}, {"negative_prompt": "hat"}]
)
def test_pictures_that_depend_on_something_else_are_drawn_anew(tmp_path, drawn, change):
    from tests.drawing.tiny_models import save_tiny_checkpoint

    model = save_tiny_checkpoint(tmp_path / "model")
    stage(CONFIG, RUNTIME, model, tmp_path / "out")
    drawn.clear()
    stage(replace(CONFIG, **change), RUNTIME, model, tmp_path / "out")
    assert drawn == ["a cat", "hat, green"]


@pytest.mark.stage
def test_other_weights_another_strength_and_changed_files_are_drawn_anew(tmp_path, drawn):
    import torch

    from stages.checkpoints.file_names import LORA_FILE
    from stages.lora.adapters import write_lora
    from tests.drawing.tiny_models import save_tiny_checkpoint
    from tests.lora.tiny_adapters import trained_unet

    model, other = save_tiny_checkpoint(tmp_path / "model"), save_tiny_checkpoint(tmp_path / "other", seed=1)
    torch.manual_seed(0)
    write_lora({"unet": trained_unet(model)}, tmp_path / LORA_FILE)
    lora = tmp_path / LORA_FILE
    for weights, of_lora, lora_scale in ((model, None, 1.0), (other, None, 1.0), (other, lora, 1.0), (other, lora, 0.5)):
        stage(CONFIG, RUNTIME, weights, tmp_path / "out", of_lora, lora_scale)
        assert drawn == ["a cat", "hat, green"]
        drawn.clear()
    before = pictures_of(tmp_path / "out")
    (tmp_path / "out" / "p0-s3.png").write_bytes(before["p0-s1.png"])
    stage(CONFIG, RUNTIME, other, tmp_path / "out", tmp_path / LORA_FILE, 0.5)
    assert drawn == ["a cat"]
    assert pictures_of(tmp_path / "out") == before


@pytest.mark.stage
@pytest.mark.parametrize("spoilt", ["cells.csv", "drawn.csv"])
def test_a_folder_that_cannot_be_read_is_drawn_anew(tmp_path, drawn, spoilt):
    from tests.drawing.tiny_models import save_tiny_checkpoint

    model = save_tiny_checkpoint(tmp_path / "model")
    stage(CONFIG, RUNTIME, model, tmp_path / "out")
    before = pictures_of(tmp_path / "out")
    (tmp_path / "out" / spoilt).write_bytes(b"\xff")
    drawn.clear()
    stage(CONFIG, RUNTIME, model, tmp_path / "out")
    assert drawn == ["a cat", "hat, green"]
    assert pictures_of(tmp_path / "out") == before


@pytest.mark.stage
def test_failed_drawing_leaves_nothing(tmp_path):
    from tests.drawing.tiny_models import save_tiny_checkpoint

    model = save_tiny_checkpoint(tmp_path / "model")
    with pytest.raises(ValueError, match="clip_skip: given 7"):
        stage(replace(CONFIG, clip_skip=7), RUNTIME, model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("subject_prompts", []),
        ("subject_prompts", ["a", ""]),
        ("subject_prompts", ["a", "a"]),
        ("other_prompts", ["a", "a"]),
        ("other_prompts", ["a cat"]),
        ("seeds", []),
        ("seeds", [1, 1]),
        ("seeds", [-1]),
        ("noise_scheduler", "heunn"),
        ("num_inference_steps", 0),
        ("guidance_scale", -1),
        ("guidance_scale", float("nan")),
        ("resolution", 63),
        ("batch_size", 0),
        ("clip_skip", -1),
    ],
)
def test_wrong_value_names_its_setting(setting, value):
    with pytest.raises(ParamsError, match=rf"generate\.{setting}"):
        validate("generate", GenerateConfig, asdict(CONFIG) | {setting: value})
