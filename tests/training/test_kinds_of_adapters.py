"""The settings of adapters, from the stage that trains to those that draw, fuse and export."""

import pytest
import torch

from stages.checkpoints.components import read_component
from stages.checkpoints.file_names import LORA_FILE
from stages.checkpoints.merging.fusing import fuse
from stages.checkpoints.model import Model
from stages.checkpoints.prediction import Prediction
from stages.drawing.loaded_models import load_lora, load_models
from stages.export import ExportConfig
from stages.export import stage as export
from tests.training.running import TEXT2IMG, run_stage, write_params

pytestmark = [pytest.mark.stage, pytest.mark.usefixtures("in_the_world")]

LAYERS = ["to_q", "proj_in", "conv1"]
KINDS = {
    "dora": ({"use_dora": True}, "DoRA of rank 2"),
    "lokr": ({"peft_type": "lokr"}, "diffusers' load_lora_weights refuses LoKr"),
    "loha": ({"peft_type": "loha"}, "diffusers' load_lora_weights refuses LoHa"),
    "patterns": (
        {"rank_pattern": {"to_q": 6, "attn1.to_q": 2}, "alpha_pattern": {"attn1.to_q": 9.0, "to_q": 0.5}},
        "LoRA of rank 2",
    ),
}


def stored_model(folder):
    components = {name: read_component(folder / name, name) for name in ("unet", "text_encoder")}
    return Model(components, folder, Prediction("epsilon", ""))


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_trained_and_drawn_and_exported(encoded, capsys, kind):
    settings, said = KINDS[kind]
    write_params(encoded, train_text2img={"target_modules": LAYERS, "max_train_steps": 4, **settings})
    run_stage("train_text2img", **TEXT2IMG, out=f"kind-{kind}")
    printed = capsys.readouterr()
    assert said in printed.out
    idle = "warning: rank_pattern: 'attn1.to_q' changes nothing: 'to_q' stands before it and names its layers too\n"
    assert (idle in printed.err) == (kind == "patterns")
    trained, exported, plain = (load_models(encoded / "model", torch.device("cpu")) for _ in range(3))
    load_lora(trained, encoded / f"kind-{kind}")
    export(ExportConfig(dtype="float32", lora_dtype="float32"), encoded / f"kind-{kind}", encoded / f"{kind}.safetensors")
    assert ("copied as it is" in capsys.readouterr().out) == (kind == "dora")
    load_lora(exported, encoded / f"{kind}.safetensors")
    fused = fuse(stored_model(encoded / "model"), encoded / f"kind-{kind}" / LORA_FILE, 1.0).components["unet"].tensors
    weights = [models.unet.state_dict() for models in (trained, exported, plain)]
    assert any(not torch.equal(weights[0][key], weights[2][key]) for key in weights[0])
    for key, weight in weights[0].items():
        torch.testing.assert_close(weights[1][key], weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(torch.from_numpy(fused[key].read()), weight, rtol=1e-5, atol=1e-6)
