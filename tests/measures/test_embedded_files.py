import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from stages.measures.embedded_files import Embedded, read_embedded, read_reusable, write_embedded

ROWS = np.eye(3, dtype=np.float32)
EMBEDDED = Embedded(
    images={"clip": ROWS[:2], "dino": ROWS[1:]},
    texts=ROWS[:1],
    file_names=["p0-s0.png", "p0-s1.png"],
    sha256=["aa", "bb"],
    prompts=["a \u732b"],
    encoders={"clip": "cc", "dino": "dd"},
    made_by="this",
)


def test_embeddings_come_back(tmp_path):
    write_embedded(EMBEDDED, tmp_path / "a.safetensors")
    found = read_embedded(tmp_path / "a.safetensors")
    assert {name: rows.tolist() for name, rows in found.images.items()} == {
        name: rows.tolist() for name, rows in EMBEDDED.images.items()
    }
    assert found.texts.tolist() == EMBEDDED.texts.tolist()
    assert (found.file_names, found.prompts, found.encoders) == (EMBEDDED.file_names, EMBEDDED.prompts, EMBEDDED.encoders)


def test_equal_embeddings_are_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_embedded(EMBEDDED, tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_what_was_made_by_the_same_is_known_by_the_image(tmp_path):
    write_embedded(EMBEDDED, tmp_path / "a.safetensors")
    known = read_reusable(tmp_path / "a.safetensors", "this")
    assert {key: row.tolist() for key, row in known.items()} == {
        ("clip", "aa"): [1, 0, 0],
        ("clip", "bb"): [0, 1, 0],
        ("dino", "aa"): [0, 1, 0],
        ("dino", "bb"): [0, 0, 1],
    }
    assert read_reusable(tmp_path / "a.safetensors", "that") == {}
    assert read_reusable(tmp_path / "missing.safetensors", "this") == {}


@pytest.mark.parametrize("content", [b"", b"no safetensors"])
def test_other_files_are_refused_and_never_taken_over(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.safetensors: not a file of embeddings.*run the stage embed again"):
        read_embedded(tmp_path / "a.safetensors")
    assert read_reusable(tmp_path / "a.safetensors", "this") == {}


def test_embeddings_that_are_no_numbers_are_refused(tmp_path):
    rows = ROWS[1:].copy()
    rows[1, 0] = np.nan
    with pytest.raises(ValueError, match=r"the embedding of p0-s1\.png by dino is not finite; take float32"):
        write_embedded(replace(EMBEDDED, images={"clip": ROWS[:2], "dino": rows}), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="the embedding of the prompt 'a \u732b' is not finite"):
        write_embedded(replace(EMBEDDED, texts=rows[1:]), tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())
    tensors = {"clip": ROWS[:2], "dino": rows, "prompts": ROWS[:1]}
    rest = {name: value for name, value in vars(EMBEDDED).items() if name not in ("images", "texts")}
    save_file(tensors, tmp_path / "a.safetensors", {"embedded": json.dumps(rest)})
    with pytest.raises(ValueError, match=r"a\.safetensors: the embedding of p0-s1\.png by dino is not finite; run the stage"):
        read_embedded(tmp_path / "a.safetensors")
    assert read_reusable(tmp_path / "a.safetensors", "this") == {}


def test_missing_file_says_which_stage_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="stage embed"):
        read_embedded(tmp_path / "a.safetensors")
