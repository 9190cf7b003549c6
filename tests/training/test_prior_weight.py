"""Class images that weigh nothing: a training is what it is without any."""

from typing import Any

import pytest

from tests.training.running import TRAININGS, digests, run_stage, write_params

pytestmark = [pytest.mark.stage, pytest.mark.usefixtures("in_the_world")]

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "text2img": ("train_text2img", {}),
    "dreambooth": ("train_dreambooth", {}),
    "text encoder": ("train_dreambooth", {"train_text_encoder": True}),
    "captions, text encoder": ("train_text2img", {"train_text_encoder": True}),
    "text encoder, dropout": ("train_dreambooth", {"train_text_encoder": True, "lora_dropout": 0.2}),
    "all weights": ("train_text2img", {"tuned": "full", "learning_rate": 1e-4}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_of_nothing_gives_the_bytes_of_no_class_images(encoded, capsys, kind):
    stage, settings = KINDS[kind]
    results = {}
    for name, count, weight in (("none", 0, 1.0), ("weightless", 3, 0), ("weighty", 3, 1.0)):
        own = {"max_train_steps": 4, "prior_loss_weight": weight, **settings}
        write_params(encoded, class_images={"num_class_images": count, "class_prompts": ["a cat", "a hat"]}, **{stage: own})
        if not (encoded / f"class-{name}").exists():
            run_stage("class_images", model="model", out=f"class-{name}")
        capsys.readouterr()
        run_stage(stage, **TRAININGS[stage] | {"class_images": f"class-{name}"}, out=f"{kind}-{name}")
        assert ("and 3 class images" in capsys.readouterr().out) == (name == "weighty")
        results[name] = digests(encoded / f"{kind}-{name}")
    assert results["weightless"] == results["none"]
    assert results["weighty"] != results["none"]
