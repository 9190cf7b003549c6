from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from stages.encoding.prompts import embed_prompts, load_text_encoder, token_counts
from tests.drawing.tiny_models import save_tiny_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = save_tiny_checkpoint(tmp_path_factory.mktemp("model"))
    return folder, *load_text_encoder(folder, torch.device("cpu"))


def test_loading_says_nothing(model, capfd):
    load_text_encoder(model[0], torch.device("cpu"))
    assert capfd.readouterr() == ("", "")


def test_embeddings_are_the_pipelines(model):
    """Those of `StableDiffusionPipeline.encode_prompt`, to the bit."""
    _, tokenizer, text_encoder = model
    parts: Any = (None, text_encoder, tokenizer, None, None, None, None)
    pipeline: Any = StableDiffusionPipeline(*parts, requires_safety_checker=False)
    for prompt in ("a cat", "", "a " * 100):
        expected = pipeline.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)[0]
        assert torch.equal(embed_prompts(tokenizer, text_encoder, [prompt], 0, 4), expected)


def test_clip_skip_ends_a_layer_earlier(model):
    """Skipping the last of two layers gives what a text encoder of one layer gives."""
    folder, tokenizer, text_encoder = model
    _, shorter = load_text_encoder(folder, torch.device("cpu"))
    layers = getattr(shorter, "text_model", shorter).encoder
    layers.layers = layers.layers[:-1]
    expected = shorter(tokenizer("a cat", padding="max_length", return_tensors="pt").input_ids).last_hidden_state
    torch.testing.assert_close(embed_prompts(tokenizer, text_encoder, ["a cat"], 1, 1), expected)
    with pytest.raises(ValueError, match="clip_skip: given 2: this text encoder has 2 layers"):
        embed_prompts(tokenizer, text_encoder, ["a cat"], 2, 1)


def test_batches_give_what_single_prompts_give(model):
    _, tokenizer, text_encoder = model
    prompts = ["a", "ab c", "d", "e", "f g h"]
    single = torch.cat([embed_prompts(tokenizer, text_encoder, [prompt], 0, 1) for prompt in prompts])
    torch.testing.assert_close(embed_prompts(tokenizer, text_encoder, prompts, 0, 2), single)


def test_token_counts_hold_begin_and_end(model):
    _, tokenizer, _ = model
    assert token_counts(tokenizer, ["", "a b c", "a " * 100]) == [2, 5, 102]
