"""The table of a text encoder with rows behind it that are trained, against one that was made longer."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from stages.encoding.prompts import load_text_encoder
from stages.lora.token_vectors import TokenVectors, train_vectors
from tests.drawing.tiny_models import save_tiny_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model") / "model")


def test_it_reads_as_a_longer_table_does_and_its_gradients_are_those_of_the_new_rows():
    torch.manual_seed(0)
    table, vectors = nn.Embedding(7, 5).requires_grad_(False), torch.randn(2, 5)
    longer = nn.Embedding.from_pretrained(torch.cat([table.weight, vectors]), freeze=False)
    trained = TokenVectors(table, vectors.clone(), first=7)
    ids, weights = torch.tensor([[0, 7, 3, 8], [8, 7, 7, 6]]), torch.randn(2, 4, 5)
    assert torch.equal(trained(ids), longer(ids))
    for each in (trained, longer):
        (each(ids) * weights).sum().backward()
    assert trained.vectors.grad is not None and longer.weight.grad is not None
    torch.testing.assert_close(trained.vectors.grad, longer.weight.grad[7:])
    assert table.weight.grad is None


def test_rows_that_the_table_has_beyond_the_tokenizer_are_not_read_for_new_tokens():
    table = nn.Embedding(10, 5)  # padded to a round number, as some models have it
    trained = TokenVectors(table, torch.ones(1, 5), first=7)
    assert torch.equal(trained(torch.tensor([[7]])), torch.ones(1, 1, 5))


def test_training_leaves_the_rest_of_the_text_encoder_as_it_was_to_the_bit(model):
    _, text_encoder = load_text_encoder(model, torch.device("cpu"))
    before = copy.deepcopy(text_encoder.state_dict())
    embedding: Any = text_encoder.get_input_embeddings()
    first = embedding.weight.shape[0]
    vectors = train_vectors(text_encoder, [0, 1], first)
    trained = [name for name, each in text_encoder.named_parameters() if each.requires_grad]
    assert len(trained) == 1 and trained[0].endswith("vectors")
    optimizer = torch.optim.AdamW([vectors], lr=0.1)
    text_encoder(torch.tensor([[1, first, first + 1, 2]])).last_hidden_state.square().sum().backward()
    optimizer.step()
    after = {name.replace("token_embedding.table", "token_embedding"): each for name, each in text_encoder.state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not torch.equal(vectors, embedding.weight[:2])


def test_in_half_precision_a_trained_vector_is_rounded_as_the_table_is():
    table, vectors = nn.Embedding(3, 4, dtype=torch.float16), torch.full((1, 4), 1 / 3)
    trained = TokenVectors(table, vectors, first=3)
    assert torch.equal(trained(torch.tensor([[3]]))[0, 0], vectors[0].half())
    assert trained.vectors.dtype == torch.float32
