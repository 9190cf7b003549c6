import pytest
from transformers import BertTokenizer, CLIPTokenizer

from stages.mini.training.word_tokenizers import bert_tokenizer, caption_words, clip_tokenizer

CAPTION = "8-bit illustration, red twin tails hair, glasses, blue shirt"


def test_captions_words_hold_what_captions_say():
    assert {"portrait", "anime", "8", "bit", "tails", "background", "earrings", "blond"} <= set(caption_words())


def test_blips_words_are_whole_and_survive_a_round_trip(tmp_path):
    tokenizer = bert_tokenizer(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = BertTokenizer.from_pretrained(tmp_path)
    assert loaded(CAPTION).input_ids == tokenizer(CAPTION).input_ids
    assert loaded.decode(loaded(CAPTION).input_ids, skip_special_tokens=True) == CAPTION.replace("-", " - ")
    assert loaded.bos_token == "[DEC]"


def test_an_unknown_word_is_spelt_out(tmp_path):
    pieces = bert_tokenizer(tmp_path).tokenize("asuka")
    assert "[UNK]" not in pieces
    assert "".join(piece.removeprefix("##") for piece in pieces) == "asuka"


@pytest.mark.parametrize("word", caption_words())
def test_each_caption_word_is_one_token_for_clip(word):
    assert len(clip_tokenizer().tokenize(word)) == 1


def test_clips_tokenizer_survives_a_round_trip_and_ends_captions_with_a_known_token(tmp_path):
    tokenizer = clip_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    tokens = loaded("asuka, é 1girl").input_ids
    assert tokens == tokenizer("asuka, é 1girl").input_ids
    assert tokens[-1] == loaded.eos_token_id != 2


def test_the_same_words_give_the_same_tokenizer():
    first = clip_tokenizer().backend_tokenizer.to_str()
    assert all(clip_tokenizer().backend_tokenizer.to_str() == first for _ in range(5))
