import pytest
import torch
from PIL import Image

from stages.drawing.embeddings import embed_image, embed_texts, encoder_digest, load_clip, load_dino
from tests.drawing.tiny_models import save_tiny_checkpoint, save_tiny_dino, save_tiny_scorer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return load_clip(save_tiny_scorer(tmp_path_factory.mktemp("clip")), CPU, torch.float32)


@pytest.fixture
def picture(tmp_path):
    Image.effect_noise((40, 32), 90).convert("RGB").save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_embeddings_are_clips(clip, picture):
    """Their cosine, times CLIP's own scale, is what the whole model says of image and text."""
    image, texts = embed_image(clip, picture), embed_texts(clip, ["a cat", "hat"])
    assert image.norm() == pytest.approx(1)
    pixel_values = torch.from_numpy(clip.preprocessing(Image.open(picture)))[None]
    for index, text in enumerate(["a cat", "hat"]):
        inputs = clip.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            logits = clip.model(**inputs, pixel_values=pixel_values).logits_per_image
        assert torch.allclose(logits[0, 0] / clip.model.logit_scale.detach().exp(), image @ texts[index], atol=1e-6)


def test_dino_is_read_at_its_class_token(tmp_path, picture):
    dino = load_dino(save_tiny_dino(tmp_path / "dino"), CPU, torch.float32)
    pixel_values = torch.from_numpy(dino.preprocessing(Image.open(picture)))[None]
    with torch.no_grad():
        token = dino.model(pixel_values).last_hidden_state[0, 0]
    assert torch.allclose(embed_image(dino, picture), token / token.norm(), atol=1e-6)


def test_a_text_beyond_the_limit_is_read_up_to_it_and_said(clip, capsys):
    """The first 75 tokens, and the one that ends a text: not the first 77, of which the last would be a word's."""
    long = " ".join("a" * 100)
    (cut,) = embed_texts(clip, [long])
    assert "prompt has more than 77 tokens" in capsys.readouterr().err
    (short,) = embed_texts(clip, [" ".join("a" * 75)])
    assert torch.allclose(cut, short, atol=1e-6)
    assert capsys.readouterr().err == ""


def test_other_models_are_refused(tmp_path):
    with pytest.raises(OSError, match="cannot load CLIP from"):
        load_clip(tmp_path, CPU, torch.float32)
    text_encoder = save_tiny_checkpoint(tmp_path / "checkpoint") / "text_encoder"
    with pytest.raises(OSError, match="CLIP"):
        load_clip(text_encoder, CPU, torch.float32)
    with pytest.raises(OSError, match="DINOv2"):
        load_dino(save_tiny_scorer(tmp_path / "scorer"), CPU, torch.float32)


def test_an_encoder_is_its_weights_and_settings(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = encoder_digest(tmp_path)
    (tmp_path / "README.md").write_text("about it")
    assert encoder_digest(tmp_path) == before
    (tmp_path / "config.json").write_text("{ }")
    assert encoder_digest(tmp_path) != before
