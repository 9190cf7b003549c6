"""The stage train_dreambooth on tiny random models."""

from typing import Any

import pytest

from tests.training.running import digests, kill_at_a_checkpoint, run_stage, write_params

pytestmark = [pytest.mark.stage, pytest.mark.usefixtures("in_the_world")]


def test_dreambooth_with_and_without_class_images(encoded, capsys):
    for count, name in ((0, "none"), (3, "some")):
        write_params(encoded, class_images={"num_class_images": count})
        run_stage("class_images", model="model", out=f"class-{name}")
        assert len(list((encoded / f"class-{name}").glob("*.png"))) == count
        assert any((encoded / f"class-{name}").iterdir()), "of an empty folder DVC warns at each look"
        options = {"images": "images.safetensors", "class_images": f"class-{name}", "model": "model", "rank": 2}
        capsys.readouterr()
        run_stage("train_dreambooth", **options, out=f"dreambooth-{name}")
        assert ("and 3 class images" in capsys.readouterr().out) == (count == 3)
    assert digests(encoded / "dreambooth-none") != digests(encoded / "dreambooth-some")


def test_dreambooth_with_its_text_encoder(encoded):
    import torch

    from stages.drawing.sampling import encode_prompt, load_lora, load_models

    write_params(
        encoded, class_images={"num_class_images": 3}, train_dreambooth={"train_text_encoder": True, "max_train_steps": 40}
    )
    run_stage("class_images", model="model", out="class-prior")
    options: dict[str, Any] = {"images": "images.safetensors", "class_images": "class-prior", "model": "model", "rank": 2}
    run_stage("train_dreambooth", **options, out="prompts-one")
    kill_at_a_checkpoint(encoded, "train_dreambooth", **options, out="prompts-two")
    run_stage("train_dreambooth", **options, out="prompts-two")
    assert digests(encoded / "prompts-one") == digests(encoded / "prompts-two")
    models = load_models(encoded / "model", torch.device("cpu"))
    before = encode_prompt(models, "asuka")
    load_lora(models, encoded / "prompts-one")
    assert not torch.allclose(encode_prompt(models, "asuka"), before, atol=1e-4)
