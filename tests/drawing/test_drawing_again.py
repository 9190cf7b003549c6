import json
from dataclasses import replace

import pytest

from stages.drawing.__main__ import main
from tests.drawing.small_drawing import CONFIG, RUNTIME

pytestmark = pytest.mark.stage


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A model, a LoRA of it, and a folder of images by both, in batches of two."""
    import torch

    from stages.checkpoints.file_names import LORA_FILE
    from stages.generate import stage
    from stages.lora.adapters import write_lora
    from tests.drawing.tiny_models import save_tiny_checkpoint
    from tests.lora.tiny_adapters import trained_unet

    root = tmp_path_factory.mktemp("again")
    torch.manual_seed(0)
    model = save_tiny_checkpoint(root / "model")
    (root / "text2img-a0.7-r8-s0").mkdir()
    write_lora({"unet": trained_unet(model)}, root / "text2img-a0.7-r8-s0" / LORA_FILE)
    config = replace(CONFIG, seeds=(3, 1, 2), noise_scheduler="euler_a")
    stage(config, RUNTIME, model, root / "plain")
    stage(config, RUNTIME, model, root / "tuned", root / "text2img-a0.7-r8-s0", 0.5)
    return root


def test_an_image_is_drawn_again_to_the_same_bytes(drawn, tmp_path, capsys):
    model, lora = str(drawn / "model"), str(drawn / "text2img-a0.7-r8-s0")
    for image, options in (("plain/p0-s1.png", []), ("plain/p1-s2.png", []), ("tuned/p1-s3.png", ["--lora", lora])):
        main([str(drawn / image), "--again", str(tmp_path / "again.png"), "--model", model, *options])
        assert (tmp_path / "again.png").read_bytes() == (drawn / image).read_bytes()
        assert "the same bytes" in capsys.readouterr().out


def test_the_recipe_is_printed(drawn, capsys):
    main([str(drawn / "tuned/p1-s3.png")])
    recipe = json.loads(capsys.readouterr().out)
    assert (recipe["lora"], recipe["lora_scale"], recipe["prompt"]) == ("text2img-a0.7-r8-s0", 0.5, "hat, green")


def test_other_weights_are_refused(drawn, tmp_path, capsys):
    from tests.drawing.tiny_models import save_tiny_checkpoint

    other, lora = save_tiny_checkpoint(tmp_path / "other", seed=1), str(drawn / "text2img-a0.7-r8-s0")
    for image, model, options, said in (
        ("plain/p0-s1.png", other, [], "--model: given"),
        ("tuned/p0-s1.png", drawn / "model", [], "--lora: given none"),
        ("plain/p0-s1.png", drawn / "model", ["--lora", lora], "was drawn without one"),
    ):
        with pytest.raises(SystemExit):
            main([str(drawn / image), "--again", str(tmp_path / "again.png"), "--model", str(model), *options])
        assert said in capsys.readouterr().err
        assert not (tmp_path / "again.png").exists()


def test_a_picture_of_another_program_is_refused(tmp_path, capsys):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "x.png")])
    assert "the stage generate did not draw it" in capsys.readouterr().err
