import shutil

import pytest

from tests.dataset.pictures import encoded, noise
from tests.dataset.settings import captioning

pytestmark = pytest.mark.stage


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    from tests.dataset.tiny_blip import save_tiny_blip

    return save_tiny_blip(tmp_path_factory.mktemp("models") / "blip")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(3):
        (folder / f"{seed}.png").write_bytes(encoded(noise(seed)))
    return sorted(folder.iterdir())


def captions(folder, files, **changed):
    import torch

    from stages.dataset.captioner import generate_captions, load_blip

    model, processor = load_blip(folder, torch.device("cpu"), torch.float32)
    return list(generate_captions(model, processor, files, captioning(**changed)))


def test_captions_depend_on_the_picture_and_not_on_the_batch(captioner, pictures):
    alone = captions(captioner, pictures, batch_size=1)
    assert len(set(alone)) == 3
    assert captions(captioner, pictures, batch_size=3) == alone
    assert captions(captioner, pictures[::-1], batch_size=2) == alone[::-1]


def test_captions_hold_words_alone(captioner, pictures):
    written = captions(captioner, pictures, num_beams=3)
    assert any(written)
    for caption in written:
        assert "[" not in caption
        assert len(caption.replace(",", " ,").split()) <= 6


def test_a_prompt_begins_every_caption(captioner, pictures):
    assert all(caption.startswith("a drawing of") for caption in captions(captioner, pictures, prompt="a drawing of"))


@pytest.mark.parametrize(
    ("absent", "message"),
    [
        ("config.json", "config.json is missing"),
        ("tokenizer.json", "no vocabulary"),
        ("preprocessor_config.json", "preprocessor_config.json"),
        ("model.safetensors", "model.safetensors"),
    ],
)
def test_an_incomplete_captioner_is_refused_by_what_is_missing(captioner, tmp_path, absent, message):
    broken = tmp_path / "broken"
    shutil.copytree(captioner, broken)
    (broken / absent).unlink()
    with pytest.raises(OSError, match=f"captioner .*broken.*{message}"):
        captions(broken, [])


def test_weights_that_lack_a_tensor_are_refused_by_its_name(captioner, tmp_path):
    from safetensors.numpy import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(captioner, broken)
    weights = load_file(broken / "model.safetensors")
    del weights["vision_model.post_layernorm.bias"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OSError, match=r"lacks weights \(1\), first vision_model\.post_layernorm\.bias"):
        captions(broken, [])
