"""The tokenizers of captioner and scorer: a word of the drawings' captions is one token, any other is spelt in letters."""

import json
import string
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer, CLIPTokenizer

from stages.mini.drawings.portraits import ATTRIBUTES, STYLES, SUBJECT_HAIR, caption

BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")
CLIP_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
BLIP_LENGTH = 48
CLIP_LENGTH = 77


def caption_words() -> list[str]:
    """Every word that a caption can hold, sorted."""
    texts = [caption(None, {}), SUBJECT_HAIR, *(style.caption for style in STYLES.values())]
    texts += [caption(None, {name: word}) for name, words in ATTRIBUTES.items() for word in words]
    return sorted({word for text in texts for word in text.replace(",", " ").replace("-", " ").split()})


def bert_tokenizer(folder: Path) -> BertTokenizer:
    """A word-piece tokenizer for BLIP; its vocabulary is written into `folder`."""
    characters = string.ascii_lowercase + string.digits
    pieces = [*characters, *(f"##{character}" for character in characters), *string.punctuation]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(dict.fromkeys([*BERT_SPECIAL, *pieces, *caption_words()])) + "\n", encoding="utf-8")
    return BertTokenizer(vocab=str(vocabulary), bos_token="[DEC]", model_max_length=BLIP_LENGTH)


def clip_tokenizer() -> CLIPTokenizer:
    """A byte-pair tokenizer for CLIP, whose merges make each of the captions' words one token."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    endings = [f"{character}</w>" for character in alphabet]
    # Of pairs that are equally frequent the one of lower ids is merged first; endings named here have the same ids each time.
    trainer = trainers.BpeTrainer(
        vocab_size=2000, show_progress=False, initial_alphabet=alphabet, special_tokens=endings, end_of_word_suffix="</w>"
    )
    tokenizer.train_from_iterator(caption_words(), trainer)
    merges = [tuple(pair) for pair in _merges(tokenizer)]
    tokens = [*alphabet, *endings, *("".join(pair) for pair in merges), *CLIP_SPECIAL]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CLIP_LENGTH)  # pyright: ignore[reportArgumentType]


def _merges(tokenizer: Tokenizer) -> list[list[str]]:
    return [pair if isinstance(pair, list) else pair.split(" ") for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
