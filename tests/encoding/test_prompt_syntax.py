import re

import pytest
import torch

from stages.encoding.prompt_syntax import Fragment, check_prompt, parse, unread_markup, words_of
from stages.encoding.prompts import embed_prompts, load_text_encoder
from stages.encoding.weighted_prompts import embed_weighted, of_one_length
from tests.drawing.tiny_models import save_tiny_checkpoint

CPU = torch.device("cpu")


def weights(prompt: str) -> list[tuple[str, float]]:
    (part,) = parse(prompt)
    return [(fragment.text, round(fragment.weight, 6)) for fragment in part]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("a (cat)", [("a", 1.0), ("cat", 1.1)]),
        ("a ((cat))", [("a", 1.0), ("cat", 1.21)]),
        ("a (cat:1.5), hat", [("a", 1.0), ("cat", 1.5), (", hat", 1.0)]),
        ("a [cat]", [("a", 1.0), ("cat", 0.909091)]),
        ("(a (cat:2) hat:0.5)", [("a", 0.5), ("cat", 1.0), ("hat", 0.5)]),
        ("([cat])", [("cat", 1.0)]),
        (r"a cat \(animal\)", [("a cat (animal)", 1.0)]),
        ("(cat : .5)", [("cat", 0.5)]),
        ("time 12:30, ratio 1:2", [("time 12:30, ratio 1:2", 1.0)]),
        ("(ratio 1:2)", [("ratio 1", 2.0)]),
        ("blue-eyed c++ --no", [("blue-eyed c++ --no", 1.0)]),
        ("", []),
        ("()", []),
    ],
)
def test_weights_are_those_of_a1111(prompt, expected):
    assert weights(prompt) == expected


def test_break_begins_another_part_and_breakfast_does_not():
    assert parse("a cat BREAK (a hat:1.2)") == [[Fragment("a cat", 1.0)], [Fragment("a hat", 1.2)]]
    assert len(parse("BREAKFAST at dawn")) == 1


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a cat AND a dog", "prompts that are composed (AND) are not supported"),
        ("a [cat:dog:0.5]", "prompts that change on the way"),
        ("a [cat:0.5]", "prompts that change on the way"),
        ("a [cat|dog]", "prompts that change on the way"),
        ("a (cat", "has ( without its other half: write \\( for the sign itself"),
        ("a cat)", "has ) without its other half"),
        ("a (cat]", "has ] without its other half"),
        ("(cat:-1)", ":-1: a weight is 0 or more"),
        ("a <lora:mychar:0.8>", "<lora:… names a file: what is drawn with is said by the variants"),
        ("a <hypernet:x:1>", "names a file"),
        ("embedding:mychar, smiling", "embedding:m… names a file: a word is read where a prompt has its token"),
    ],
)
def test_what_is_not_read_is_refused_by_name(prompt, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_prompt(prompt, "a1111")


def test_names_of_files_are_refused_in_plain_prompts_too_and_all_else_is_words():
    for prompt in ("a <lora:mychar:0.8>", "embedding:mychar"):
        with pytest.raises(ValueError, match="names a file"):
            check_prompt(prompt, "plain")
    for prompt in ("a (cat", "salt AND pepper", "[cat|dog]", "<asuka>, smiling", "an embedding: a drawing"):
        assert check_prompt(prompt, "plain") == prompt


@pytest.mark.parametrize(
    ("prompt", "markup"),
    [
        ("a (cat:1.2)", "(cat:1.2)"),
        ("((cat))", "(("),
        ("a [cat]", "[cat]"),
        ("a BREAK b", "BREAK"),
        ("a AND b", "AND"),
        ("asuka (evangelion)", ""),
        ("BREAKFAST, sandy", ""),
    ],
)
def test_what_would_be_read_otherwise_is_seen(prompt, markup):
    assert unread_markup(prompt) == markup


def test_the_words_of_a_prompt_have_no_weights():
    assert words_of("a (cat:1.5), [hat] BREAK  red") == "a cat , hat red"


def plain(models, prompt: str, clip_skip: int = 0) -> torch.Tensor:
    tokenizer, text_encoder = models
    return embed_prompts(tokenizer, text_encoder, [prompt], clip_skip, 1)


def weighted(models, prompt: str, clip_skip: int = 0) -> torch.Tensor:
    tokenizer, text_encoder = models
    return embed_weighted(tokenizer, text_encoder, prompt, clip_skip)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return load_text_encoder(save_tiny_checkpoint(tmp_path_factory.mktemp("model")), CPU)


@pytest.mark.parametrize("clip_skip", [0, 1])
@pytest.mark.parametrize("prompt", ["a cat, a hat", "", "abc " * 15])
def test_without_weights_it_is_the_plain_prompt(models, prompt, clip_skip):
    expected = plain(models, prompt, clip_skip)
    torch.testing.assert_close(weighted(models, prompt, clip_skip), expected)
    torch.testing.assert_close(weighted(models, f"({prompt}:1)" if prompt else "", clip_skip), expected)


@pytest.mark.parametrize("weight", [1.5, 0.5, 0.0])
def test_weights_multiply_tokens_and_the_mean_stays(models, weight):
    unweighted = plain(models, "a, abc")
    factors = torch.tensor([1.0, 1, 1, weight, weight, weight] + [1] * 71).view(1, 77, 1)
    found = weighted(models, f"a, (abc:{weight})")
    changed = unweighted * factors
    torch.testing.assert_close(found, changed * unweighted.mean() / changed.mean())
    torch.testing.assert_close(found.mean(), unweighted.mean())


def test_a_long_prompt_is_cut_behind_a_comma_among_the_last_twenty_tokens(models):
    long = weighted(models, ", ".join(["a" * 9] * 8))  # pieces of 10 tokens
    first, second = ("aaaaaaaaa, " * 7, "aaaaaaaaa")
    torch.testing.assert_close(long, torch.cat([plain(models, part) for part in (first, second)], dim=1))
    without = weighted(models, "a" * 80)
    assert without.shape[1] == 2 * 77


def test_a_long_prompt_and_one_with_breaks_are_several_times_as_long(models):
    long = weighted(models, "abc, " * 40)
    assert long.shape[1] == 3 * 77
    parts = [plain(models, text) for text in ("a cat", "a hat")]
    torch.testing.assert_close(weighted(models, "a cat BREAK a hat"), torch.cat(parts, dim=1))
    empty = plain(models, "")
    first, second = of_one_length(long, parts[0], empty)
    assert torch.equal(first, long)
    assert torch.equal(second, torch.cat([parts[0], empty, empty], dim=1))
