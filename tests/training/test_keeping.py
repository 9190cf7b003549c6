"""LoRAs, and whole models, that are kept on the way."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages.checkpoints.file_names import LORA_FILE, UNET_FILE
from tests.training.running import (
    TEXT2IMG,
    TRAININGS,
    digests,
    folder_of,
    history_of,
    kill_at_a_checkpoint,
    run_stage,
    write_params,
)

pytestmark = [pytest.mark.stage, pytest.mark.usefixtures("in_the_world")]

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("train_text2img", {"lora_dropout": 0.2}),
    "pissa": ("train_text2img", {"init_lora_weights": "pissa"}),
    "lokr": ("train_text2img", {"peft_type": "lokr"}),
    "all weights": ("train_text2img", {"tuned": "full", "learning_rate": 1e-4}),
    "dreambooth": ("train_dreambooth", {}),
    "text encoder": ("train_dreambooth", {"train_text_encoder": True}),
    "captions, text encoder": ("train_text2img", {"train_text_encoder": True, "caption_dropout": 0.5}),
}
KEPT = {"keep_every": 4, "max_train_steps": 12}
STEPS = (4, 8)


def train(root: Path, kind: str, out: str, **settings: Any) -> dict[str, str]:
    """Train; the digests of what was written."""
    stage, of_kind = KINDS[kind]
    write_params(root, **{stage: of_kind | settings})
    run_stage(stage, **TRAININGS[stage], out=f"{kind}-{out}")
    return digests(root / f"{kind}-{out}")


def of_step(written: dict[str, str], step: int) -> dict[str, str]:
    """What was kept after a step, by the names that it would have as the result."""
    folder = f"step-{step}/"
    return {name.removeprefix(folder): digest for name, digest in written.items() if name.startswith(folder)}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_is_what_a_training_of_so_many_steps_hands_over(encoded, kind):
    """With a learning rate that does not look ahead to the end."""
    written = train(encoded, kind, "kept", lr_scheduler="constant", **KEPT)
    for step in STEPS:
        ended = train(encoded, kind, f"ended-{step}", lr_scheduler="constant", max_train_steps=step)
        assert of_step(written, step) == {name: digest for name, digest in ended.items() if name != "history.csv"}


@pytest.mark.parametrize("kind", KINDS)
def test_keeping_changes_no_byte_of_the_result(encoded, kind):
    written = train(encoded, kind, "with", **KEPT)
    plain = train(encoded, kind, "without", max_train_steps=12)
    assert {name: digest for name, digest in written.items() if not name.startswith("step-")} == plain
    file = f"unet/{UNET_FILE}" if kind == "all weights" else LORA_FILE
    assert {name for name in written if name.endswith(file)} == {file, *(f"step-{step}/{file}" for step in STEPS)}
    assert len({written[name] for name in written if name.endswith(file)}) == 3


def test_a_kept_model_draws(encoded):
    from stages.drawing.loaded_models import load_models

    train(encoded, "all weights", "drawn", **KEPT)
    moved, last, before = (
        load_models(encoded / name, torch.device("cpu")).unet.state_dict()
        for name in ("all weights-drawn/step-4", "all weights-drawn", "model")
    )
    for others in (last, before):
        assert any(not torch.equal(tensor, others[name]) for name, tensor in moved.items())


def test_killed_after_a_kept_step_it_hands_over_the_same_bytes(encoded, capsys):
    """The checkpoint is younger than what was kept, which is not made again."""
    settings = {"max_train_steps": 60, "keep_every": 25, "checkpointing_steps": 30, "lora_dropout": 0.2}
    write_params(encoded, train_text2img=settings)
    run_stage("train_text2img", **TEXT2IMG, out="whole")
    kill_at_a_checkpoint(encoded, "train_text2img", **TEXT2IMG, out="cut")
    (kept,) = folder_of(encoded, "cut").rglob(f"step-25/{LORA_FILE}")
    assert kept.read_bytes() == (encoded / "whole/step-25" / LORA_FILE).read_bytes()
    capsys.readouterr()
    run_stage("train_text2img", **TEXT2IMG, out="cut")
    assert "going on after step 30" in capsys.readouterr().out
    assert digests(encoded / "cut") == digests(encoded / "whole")
    assert {path.name for path in (encoded / "cut").iterdir()} == {"history.csv", LORA_FILE, "step-25", "step-50"}


def test_what_is_kept_is_what_the_checkpoint_of_that_step_holds(encoded):
    """Of a run whose learning rate falls towards its end."""
    write_params(encoded, train_text2img={"max_train_steps": 60, "keep_every": 30, "checkpointing_steps": 30})
    kill_at_a_checkpoint(encoded, "train_text2img", **TEXT2IMG, out="halfway")
    folder = folder_of(encoded, "halfway")
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert checkpoint["step"] == 30
    (kept,) = folder.rglob(f"step-30/{LORA_FILE}")
    weights = {f"unet.{name.replace('.default.', '.')}": weight for name, weight in checkpoint["weights"].items()}
    found = load_file(kept)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())
    run_stage("train_text2img", **TEXT2IMG, out="halfway")
    assert load_file(encoded / "halfway/step-30" / LORA_FILE).keys() == weights.keys()
    assert (encoded / "halfway" / LORA_FILE).read_bytes() != (encoded / "halfway/step-30" / LORA_FILE).read_bytes()


def test_killed_before_the_next_checkpoint_it_keeps_the_step_again(encoded, capsys):
    settings = {"max_train_steps": 60, "keep_every": 5, "checkpointing_steps": 2}
    write_params(encoded, train_text2img=settings)
    run_stage("train_text2img", **TEXT2IMG, out="unharmed")
    for patience in (0.0, 0.03, 0.06):
        kill_at_a_checkpoint(encoded, "train_text2img", patience=patience, **TEXT2IMG, out="harmed")
    run_stage("train_text2img", **TEXT2IMG, out="harmed")
    assert "going on after step" in capsys.readouterr().out
    assert digests(encoded / "harmed") == digests(encoded / "unharmed")


def test_what_was_kept_and_was_damaged_is_set_aside_with_its_run(encoded, capsys):
    settings = {"max_train_steps": 60, "keep_every": 5, "checkpointing_steps": 6}
    write_params(encoded, train_text2img=settings)
    run_stage("train_text2img", **TEXT2IMG, out="sound")
    kill_at_a_checkpoint(encoded, "train_text2img", **TEXT2IMG, out="damaged")
    (kept,) = folder_of(encoded, "damaged").rglob(f"step-5/{LORA_FILE}")
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)
    capsys.readouterr()
    run_stage("train_text2img", **TEXT2IMG, out="damaged")
    said = capsys.readouterr().out
    assert f"step-5/{LORA_FILE}: not what was written: set aside in" in said
    assert "going on after step" not in said
    assert digests(encoded / "damaged") == digests(encoded / "sound")


def test_previews_and_kept_loras_may_fall_on_one_step(encoded):
    """Both are what they are without the other."""
    previews = {"preview_prompts": ["a portrait"], "preview_steps": 4}
    both = train(encoded, "lora", "both", **KEPT, **previews)
    drawn = train(encoded, "lora", "drawn", max_train_steps=12, **previews)
    kept = train(encoded, "lora", "kept-alone", **KEPT)
    assert {f"previews/p0-step{step:06d}.png" for step in (*STEPS, 12)} <= drawn.keys()
    assert both == drawn | kept


def test_the_end_is_not_kept_besides(encoded):
    """Nor is anything where the training ends before."""
    assert not any("step-" in name for name in train(encoded, "lora", "short", keep_every=12, max_train_steps=12))
    assert len(history_of(encoded / "lora-short")) == 12
