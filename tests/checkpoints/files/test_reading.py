"""What lies where a file should be, and is none, or another one."""

import json
import os
import re
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from stages.checkpoints.components import read_component
from stages.checkpoints.files.chunks import computed
from stages.checkpoints.files.reading import MAX_JSON, read_json
from stages.checkpoints.files.tensors import open_safetensors, read_metadata
from stages.checkpoints.files.weight_files import open_weights
from stages.checkpoints.files.writing import write_safetensors
from stages.checkpoints.model import read_model
from tests.checkpoints.hostile import LFS, PAGE, entry, safetensors, tensor
from tests.checkpoints.tiny import WEIGHTS, ldm_weights, random_weights, save_configs, save_diffusers

DEEP = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON: Expecting value"),
        (b"{", "is not JSON"),
        (DEEP, "is not JSON: .*recursion"),
        (b'{"a":' + b"[" * 500 + b"]" * 500 + b"}", "lists and objects of more than 32 levels"),
        (b"[]", "holds no JSON object"),
        (b"\xff\xfe{}", "no text in UTF-8"),
        (b" " * (MAX_JSON + 1), "16,777,217 bytes; 16,777,216 are read"),
        (LFS, "a pointer of Git LFS in place of the file"),
        (PAGE, "a web page in place of the file"),
        (b'{"a": "line\nbreak"}', "is not JSON"),
    ],
)
def test_a_file_that_is_no_json_is_said_to_be_what_it_is(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}:? {message}") as error:
        read_json(path)
    assert str(error.value).isprintable()


def test_a_mark_at_the_beginning_of_a_text_is_no_fault(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"ö": 1}, ensure_ascii=False).encode())
    assert read_json(tmp_path / "config.json") == {"ö": 1}


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt", "model.bin", "model.safetensors.index.json"])
def test_pipes_and_directories_are_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name}: a pipe or a device, not a file"):
        open_weights(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=rf"{name}: a directory, not a file"):
        open_weights(tmp_path / name)


def test_a_pipe_in_the_place_of_a_config_or_a_neighbour_is_not_waited_for(tmp_path):
    folder = save_configs(tmp_path / "configs")
    save_file(ldm_weights(random_weights()), tmp_path / "model.safetensors")
    os.mkfifo(tmp_path / "model.yaml")
    read_model(tmp_path / "model.safetensors", folder)
    (folder / "unet" / "config.json").unlink()
    os.mkfifo(folder / "unet" / "config.json")
    with pytest.raises(ValueError, match=r"unet/config\.json: a pipe"):
        read_model(tmp_path / "model.safetensors", folder)


def test_a_directory_that_is_called_as_a_file_is_read_as_a_model(tmp_path):
    with pytest.raises(ValueError, match=r"model_index\.json is missing: not a model in the diffusers layout"):
        (tmp_path / "model.safetensors").mkdir()
        read_model(tmp_path / "model.safetensors", None)
    save_diffusers(tmp_path / "model.ckpt", random_weights())
    assert read_model(tmp_path / "model.ckpt", None).prediction_type == "epsilon"


def test_weights_may_be_links(tmp_path):
    folder = save_diffusers(tmp_path / "model", random_weights())
    file = folder / "unet" / WEIGHTS["unet"]
    file.rename(tmp_path / "blob")
    file.symlink_to(tmp_path / "blob")
    assert read_component(folder / "unet", "unet").tensors
    (tmp_path / "blob").unlink()
    with pytest.raises(ValueError, match=r"unet: no weights"):
        read_component(folder / "unet", "unet")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path):
    save_file(ldm_weights(random_weights()), tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").chmod(0)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        open_weights(tmp_path / "model.safetensors")


def test_megabytes_of_metadata_change_nothing(tmp_path):
    """Trainers write the tags of a whole data set."""
    tags = json.dumps({f'a "quoted" tag, number {number}': number for number in range(300_000)}, ensure_ascii=False)
    tensors = ldm_weights(random_weights())
    save_file(tensors, tmp_path / "plain.safetensors")
    save_file(tensors, tmp_path / "tagged.safetensors", metadata={"ss_tag_frequency": tags})
    assert len(tags) > 12 * 2**20
    plain, tagged = (open_safetensors(tmp_path / f"{name}.safetensors") for name in ("plain", "tagged"))
    assert plain.keys() == tagged.keys()
    assert all(np.array_equal(plain[key].read(), tagged[key].read()) for key in plain)
    assert read_metadata(tmp_path / "tagged.safetensors") == {"ss_tag_frequency": tags}


def test_ranks_of_zero_and_dimensions_of_zero_are_read(tmp_path):
    tensors = {"scalar": np.array(2.5, np.float32), "empty": np.zeros((0, 3), np.float16), "one": np.ones((1, 1, 1))}
    save_file(tensors, tmp_path / "x.safetensors")
    for key, read in open_safetensors(tmp_path / "x.safetensors").items():
        assert read.shape == tensors[key].shape
        assert np.array_equal(read.read(), tensors[key])


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"a": "x.safetensors", "b": "missing.safetensors"}, r"missing\.safetensors is missing, a shard"),
        ({"a": ""}, "named without a folder"),
        ({"a": "sub/x.safetensors"}, "named without a folder"),
        ({"a": ".."}, "is missing, a shard|without a folder"),
        ({"a": 3}, "weight_map is not a map"),
        ({}, "weight_map is not a map"),
        ({"c": "x.safetensors"}, "holds no c, which"),
        ({"line\nbreak": "x.safetensors"}, "holds no line break, which"),
        ({"a": "x\n.safetensors"}, "named without a folder"),
        ({"a": "x.safetensors.index.json"}, "a shard that is an index itself|unknown kind"),
    ],
)
def test_a_bad_index_is_named(tmp_path, places, message):
    save_file({"a": np.zeros(2)}, tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(ValueError, match=message) as error:
        open_weights(tmp_path / "x.safetensors.index.json")
    assert str(tmp_path) in str(error.value)
    assert str(error.value).isprintable()


FAR = 5 * 2**30
"""Bytes: beyond what 32 bits count."""


def test_a_tensor_behind_four_gigabytes_is_read(tmp_path):
    """The file is sparse: it takes no room."""
    places = {"far": entry(FAR, FAR + 8, [2]), "near": entry(0, FAR, [FAR], "I8")}
    (tmp_path / "x.safetensors").write_bytes(safetensors(places))
    with (tmp_path / "x.safetensors").open("r+b") as file:
        file.seek(FAR, os.SEEK_END)
        file.write(np.array([1.5, -2], np.float32).tobytes())
    tensors = {"far": open_safetensors(tmp_path / "x.safetensors")["far"]}
    assert tensors["far"].read().tolist() == [1.5, -2]
    tensors["double"] = computed([tensors["far"], tensors["far"]], lambda _start, _, x, y: x + y)
    write_safetensors(tmp_path / "out.safetensors", tensors, "float32", {})
    assert load_file(tmp_path / "out.safetensors")["double"].tolist() == [3, -4]


def test_a_pickle_s_tensor_behind_four_gigabytes_is_read(tmp_path):
    path = tmp_path / "x.ckpt"
    with path.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.seek(FAR)
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", tensor("(I4\nt", "(I1\nt"))
            archive.writestr("archive/data/0", np.arange(4, dtype=np.float32).tobytes())
    assert open_weights(path).tensors["a"].read().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("shape", [(), (0,), (2, 2, 2, 2, 2)])
@pytest.mark.parametrize(
    "key", ["out.2.weight", "input_blocks.0.0.weight", "input_blocks.3.1.transformer_blocks.0.attn2.to_k.weight"]
)
def test_a_tensor_of_any_rank_is_refused_by_its_key(tmp_path, key, shape):
    key = f"model.diffusion_model.{key}"
    save_file(ldm_weights(random_weights()) | {key: np.zeros(shape, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=rf"x\.safetensors: .*(1 wrong shape: {key} |context width)"):
        read_model(tmp_path / "x.safetensors", save_configs(tmp_path / "configs"))
