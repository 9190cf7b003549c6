"""Judge, captioner and scorer, made at a very small size and loaded as the pipeline loads them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stages.dataset.captioner import generate_captions, load_blip
from stages.dataset.config import CaptioningConfig
from stages.drawing.cells import cells_of, write_cells
from stages.drawing.embeddings import embed_image, embed_texts, load_clip
from stages.mini.drawings import draw_sets
from stages.mini.drawings.labelled import drawn_set
from stages.mini.drawings.pixels import to_tensor
from stages.mini.evaluation import evaluate
from stages.mini.evaluation.judge import load_judge
from stages.mini.training import train_captioner, train_judge, train_scorer
from stages.mini.training.train_scorer import begin_from, build
from stages.mini.training.word_tokenizers import bert_tokenizer, clip_tokenizer

CPU = torch.device("cpu")


@pytest.mark.stage
def test_they_are_trained_loaded_and_measured(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--work", str(work), "--tiny", "--steps", "2", "--threads", "1"]
    train_judge.main([*options, "--out", str(work / "judge")])
    train_captioner.main([*options, "--out", str(work / "captioner")])
    train_scorer.main([*options, "--captioner", str(work / "captioner"), "--out", str(work / "scorer")])
    draw_sets.write_image_set("adventurer", draw_sets.SUBJECT, range(3), work / "asuka")

    blip, processor = load_blip(work / "captioner", CPU, torch.float32)
    files = sorted((work / "asuka").glob("*.png"))
    settings = CaptioningConfig(prompt=None, num_beams=1, max_new_tokens=4, batch_size=2)
    captions = generate_captions(blip, processor, files, settings)
    assert len(list(captions)) == 3
    scorer = load_clip(work / "scorer", CPU, torch.float32)
    assert torch.stack([embed_image(scorer, file) for file in files]).shape == embed_texts(scorer, ["asuka"] * 3).shape
    assert not list(work.glob("*.pt")), "a finished training leaves no checkpoint that a later one would go on with"
    assert set(load_judge(work / "judge").judge(np.zeros((1, 64, 64, 3), np.uint8))) >= {"style", "hair", "background"}

    metrics = work / "metrics.json"
    metrics.write_text('{"vae": {"kept": 1.0}}')
    capsys.readouterr()
    options = ["--mini", str(work), "--metrics", str(metrics), "--samples", "2", "--threads", "1"]
    evaluate.main([*options, "--only", "judge,captioner,scorer", "--sheets", str(work / "sheets")])
    printed = capsys.readouterr().out
    assert "captioner: attributes named right, asuka" in printed
    assert ">= 0.9" in printed
    assert set(json.loads(metrics.read_text())) == {"vae", "judge", "captioner", "scorer"}


@pytest.mark.stage
def test_images_of_a_pipeline_run_are_judged_by_variant(work: Path) -> None:
    if not (work / "judge").exists():
        train_judge.main(["--work", str(work), "--tiny", "--steps", "1", "--threads", "1", "--out", str(work / "judge")])
    variant = work / "images" / "text2img-a0.7-r4-s0"
    variant.mkdir(parents=True)
    cells = cells_of(["asuka, glasses"], ["a portrait, blond hair"], [0])
    for cell in cells:
        Image.new("RGB", (64, 64)).save(variant / cell.file_name)
    write_cells(variant, cells)
    metrics = work / "loras.json"
    options = ["--mini", str(work), "--images", str(work / "images"), "--metrics", str(metrics), "--threads", "1"]
    evaluate.main([*options, "--only", "loras"])
    figure = json.loads(metrics.read_text())["loras"]["mini"]["text2img-a0.7-r4-s0"]
    assert (figure["images"], figure["named"], figure["not_named"], figure["hair_asked"]) == (2, 1, 1, 1)
    assert {"subject", "twin_tails", "red", "pixel_art", "leak", "pixel_art_leak", "hair_as_asked"} <= set(figure)


@torch.no_grad()
def test_the_scorers_image_tower_begins_as_the_captioners(work: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    blip = train_captioner.build(bert_tokenizer(tmp_path), 32, 2, 1).eval()
    clip = build(clip_tokenizer(), blip, 1).eval()
    images = to_tensor(drawn_set(work, "train").images[:4])
    before = blip.vision_model(images).last_hidden_state[:, 1:]
    begin_from(clip, blip, images)
    after = clip.vision_model.post_layernorm(clip.vision_model(images).last_hidden_state)[:, 1:]
    alike = torch.nn.functional.cosine_similarity(before.flatten(), after.flatten(), dim=0)
    assert alike > 0.98
    assert torch.equal(blip.vision_model(images).last_hidden_state[:, 1:], before)


def test_missing_drawings_say_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="draw_sets"):
        drawn_set(tmp_path, "train")
