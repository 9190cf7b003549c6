import pytest
import torch
from PIL import Image

from stages.drawing.cells import cells_of
from stages.drawing.embeddings import (
    embed_images,
    embed_texts,
    load_scorer,
    prompt_similarity,
    reference_similarity,
    score_cells,
)
from tests.drawing.tiny_models import save_tiny_checkpoint, save_tiny_scorer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    return load_scorer(save_tiny_scorer(tmp_path_factory.mktemp("scorer")), CPU, torch.float32)


def test_reference_similarity_is_the_mean_cosine():
    images = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    references = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, -0.8]])
    cosines = images @ references.T
    assert torch.allclose(reference_similarity(images, references), cosines.mean(dim=1))
    assert torch.allclose(reference_similarity(images, images[:1]), torch.tensor([1.0, 0.6]))


def test_prompt_similarity_is_each_images_own():
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    prompts = torch.tensor([[1.0, 0.0], [-0.8, 0.6]])
    assert torch.allclose(prompt_similarity(images, prompts), torch.tensor([1.0, 0.6]))


def test_embeddings_are_clips(scorer, tmp_path):
    """Their cosine, times CLIP's own scale, is what the whole model says of image and text."""
    Image.effect_noise((40, 32), 90).convert("RGB").save(tmp_path / "a.png")
    images, texts = embed_images(scorer, [tmp_path / "a.png"], 1), embed_texts(scorer, ["a cat", "hat"])
    assert torch.allclose(images.norm(dim=1), torch.ones(1))
    pixel_values = scorer.image_processor(Image.open(tmp_path / "a.png"), return_tensors="pt").pixel_values
    for index, text in enumerate(["a cat", "hat"]):
        inputs = scorer.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            logits = scorer.model(**inputs, pixel_values=pixel_values).logits_per_image
        expected = scorer.model.logit_scale.exp() * prompt_similarity(images, texts[index : index + 1])
        assert torch.allclose(logits[0], expected, atol=1e-5)


def test_cells_are_scored_against_their_own_prompt(scorer, tmp_path):
    cells = cells_of(["a cat", "hat"], [0, 1])
    for index, cell in enumerate(cells):
        Image.effect_noise((32, 32), 30 * index + 5).convert("RGB").save(tmp_path / cell.file_name)
    files = [tmp_path / cell.file_name for cell in cells]
    scores = score_cells(scorer, tmp_path, cells, files[:1], batch_size=3)
    assert scores[cells[0]]["reference_similarity"] == pytest.approx(1, abs=1e-5)
    texts = embed_texts(scorer, ["a cat", "hat"])
    expected = (embed_images(scorer, files[3:], 1) @ texts[1]).item()
    assert scores[cells[3]]["prompt_similarity"] == pytest.approx(expected, abs=1e-5)


def test_other_models_are_refused(tmp_path):
    with pytest.raises(OSError, match="cannot load the scorer"):
        load_scorer(tmp_path, CPU, torch.float32)
    text_encoder = save_tiny_checkpoint(tmp_path / "checkpoint") / "text_encoder"
    with pytest.raises(OSError, match="scorer"):
        load_scorer(text_encoder, CPU, torch.float32)
