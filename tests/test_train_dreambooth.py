"""The stage train_dreambooth on tiny random models."""

from typing import Any

import pytest

from tests.training.running import DREAMBOOTH, TRAININGS, digests, kill_at_a_checkpoint, run_stage, write_params

pytestmark = [pytest.mark.stage, pytest.mark.usefixtures("in_the_world")]


def test_dreambooth_with_and_without_class_images(encoded, capsys):
    for count, name in ((0, "none"), (3, "some")):
        write_params(encoded, class_images={"num_class_images": count})
        run_stage("class_images", model="model", out=f"class-{name}")
        assert len(list((encoded / f"class-{name}").glob("*.png"))) == count
        assert any((encoded / f"class-{name}").iterdir()), "of an empty folder DVC warns at each look"
        options = DREAMBOOTH | {"class_images": f"class-{name}"}
        capsys.readouterr()
        run_stage("train_dreambooth", **options, out=f"dreambooth-{name}")
        assert ("and 3 class images" in capsys.readouterr().out) == (count == 3)
    assert digests(encoded / "dreambooth-none") != digests(encoded / "dreambooth-some")


@pytest.mark.parametrize("stage", TRAININGS)
def test_either_training_with_its_text_encoder(encoded, stage):
    import torch

    from stages.drawing.loaded_models import load_lora, load_models
    from stages.drawing.sampling import encode_prompt

    settings: dict[str, Any] = {stage: {"train_text_encoder": True, "max_train_steps": 40}}
    write_params(encoded, class_images={"num_class_images": 3}, **settings)
    run_stage("class_images", model="model", out="class-prior")
    options: dict[str, Any] = TRAININGS[stage] | {"class_images": "class-prior"}
    one, two = f"prompts-{stage}-one", f"prompts-{stage}-two"
    run_stage(stage, **options, out=one)
    kill_at_a_checkpoint(encoded, stage, **options, out=two)
    run_stage(stage, **options, out=two)
    assert digests(encoded / one) == digests(encoded / two)
    models = load_models(encoded / "model", torch.device("cpu"))
    before = encode_prompt(models, "asuka")
    load_lora(models, encoded / one)
    assert not torch.allclose(encode_prompt(models, "asuka"), before, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "train_dreambooth: error: --rank: given 0"),
        ({"seed": -1}, "train_dreambooth: error: --seed: given -1"),
        ({"images": "captions.safetensors"}, "train_dreambooth: error: captions.safetensors: not a file of encoded images"),
    ],
)
def test_wrong_inputs_are_one_line(encoded, capsys, options, message):
    with pytest.raises(SystemExit) as exit:
        run_stage("train_dreambooth", **DREAMBOOTH | options, out="wrong")
    assert exit.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)
    assert not (encoded / "wrong").exists()
