"""Words that a text encoder was taught: their files, those of other programs too, and how prompts are read."""

import pytest
import torch
from safetensors.torch import save_file

from stages.encoding.prompts import load_text_encoder, token_counts, tokenize
from stages.encoding.words import TEMPLATES, Learned, NewWord, add_word, learned_file, read_learned, write_learned
from stages.pipeline.wording import in_place
from tests.drawing.tiny_models import save_tiny_checkpoint

WORD = NewWord("<asuka>", "asuka", "a portrait", 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def parts(model):
    return load_text_encoder(model, torch.device("cpu"))


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("asuka, green background", "<asuka>, green background"),
        ("Asuka and asukas; pre-asuka", "<asuka> and asukas; pre-<asuka>"),
        ("<asuka>", "<<asuka>>"),  # it stands there as a word of its own: give either the word or the token
        ("a portrait", "a portrait"),
    ],
)
def test_the_token_stands_in_the_place_of_whole_words(prompt, read):
    assert in_place(prompt, "asuka", "<asuka>") == read
    assert in_place(prompt, "", "<asuka>") == prompt


def test_words_with_signs_and_backslashes_are_taken_as_they_are():
    assert in_place("a plugsuit (02), red", "plugsuit (02)", r"<\1>") == r"a <\1>, red"


def test_a_word_of_several_vectors_is_read_as_several_tokens_and_begins_as_the_initializer(parts):
    tokenizer, text_encoder = parts
    before = tokenize(tokenizer, ["a portrait"]).clone()
    table = text_encoder.get_input_embeddings().weight.clone()
    first = len(tokenizer)
    begin_as = add_word(tokenizer, WORD)
    vectors = table[begin_as]
    ids = tokenizer(["a portrait"], add_special_tokens=False).input_ids[0]
    assert torch.equal(vectors, table[[ids[number % len(ids)] for number in range(3)]])
    assert torch.equal(text_encoder.get_input_embeddings().weight, table)
    assert torch.equal(tokenize(tokenizer, ["a portrait"]), before)
    read = tokenize(tokenizer, ["<asuka>, a portrait"])[0].tolist()
    assert read[1:4] == [first, first + 1, first + 2]
    assert token_counts(tokenizer, ["<asuka>"]) == [5]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (NewWord("</w>", "", "a", 1), "placeholder_token"),
        (NewWord("<b>", "", "  ", 1), "initializer: given '  ': the tokenizer reads nothing of it"),
    ],
)
def test_a_word_that_cannot_be_taught_is_refused(parts, word, message):
    tokenizer, _ = parts
    known = next(iter(tokenizer.get_vocab())) if word.token == "</w>" else word.token
    with pytest.raises(ValueError, match=message):
        add_word(tokenizer, NewWord(known, "", word.initializer, 1))


def test_a_word_cannot_be_taught_twice(parts):
    tokenizer, _ = parts
    add_word(tokenizer, WORD)
    with pytest.raises(ValueError, match="the tokenizer has '<asuka>' already"):
        add_word(tokenizer, WORD)


def test_the_file_is_the_same_each_time_and_says_what_it_was_told(tmp_path):
    learned = Learned("<asuka>", torch.randn(2, 4), "asuka", {"training": {"steps": 3}})
    for name in ("one", "two"):
        write_learned(learned, tmp_path / f"{name}.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    read = read_learned(tmp_path / "one.safetensors")
    assert torch.equal(read.vectors, learned.vectors)
    assert (read.token, read.replaces, read.settings) == ("<asuka>", "asuka", {"training": {"steps": 3}})


def test_files_of_other_programs_are_read(tmp_path):
    vectors = torch.randn(2, 4)
    save_file({"<cat-toy>": vectors[0]}, tmp_path / "diffusers.safetensors")
    torch.save({"<cat-toy>": vectors[0]}, tmp_path / "diffusers.bin")
    a1111 = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": torch.nn.Parameter(vectors)},
        "name": "cat",
        "step": 500,
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
    }
    torch.save(a1111, tmp_path / "a1111.pt")
    for name in ("diffusers.safetensors", "diffusers.bin"):
        read = read_learned(tmp_path / name)
        assert read.token == "<cat-toy>" and torch.equal(read.vectors, vectors[:1]) and read.replaces == ""
    read = read_learned(tmp_path / "a1111.pt")
    assert read.token == "cat" and torch.equal(read.vectors, vectors) and not read.vectors.requires_grad


def test_what_is_no_word_is_refused_by_name(tmp_path):
    save_file({"a": torch.zeros(2), "b": torch.zeros(2)}, tmp_path / "two.safetensors")
    save_file({"a": torch.tensor([float("nan")])}, tmp_path / "nan.safetensors")
    (tmp_path / "text.bin").write_text("hello")
    for name in ("two.safetensors", "nan.safetensors", "text.bin"):
        with pytest.raises(ValueError, match=f"{name}: no textual inversion of one word"):
            read_learned(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"learned_embeds\.safetensors: no such file"):
        learned_file(tmp_path)


def test_the_papers_templates_have_one_place_for_the_word_and_none_twice():
    assert {name: len(texts) for name, texts in TEMPLATES.items()} == {"subject": 27, "style": 17}
    for texts in TEMPLATES.values():
        assert len(set(texts)) == len(texts) and all(text.count("{}") == 1 for text in texts)
