import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from stages.checkpoints.files import chunks as computed_tensors
from stages.checkpoints.files import writing
from stages.checkpoints.files.chunks import computed
from stages.checkpoints.files.tensors import LazyTensor, open_safetensors, read_recipe
from stages.checkpoints.files.writing import check_space, write_safetensors, written_size

RNG = np.random.default_rng(0)


def lazy(array, dtype="F32"):
    return LazyTensor(array.shape, dtype, lambda: array)


TENSORS = {
    "b": lazy(np.arange(6, dtype=np.float32).reshape(2, 3).T),
    "a": lazy(np.array(2.5, np.float64), "F64"),
    "ids": lazy(np.arange(300), "I64"),
}


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(writing, "PIECE", 64)
    monkeypatch.setattr(writing, "STRIDE", 16)
    monkeypatch.setattr(computed_tensors, "STRIDE", 24)


def stored(tmp_path, name, dtype, shape=(11, 37)):
    """The tensors of a file that is read in pieces, and their values."""
    values = {key: RNG.normal(size=shape).astype(dtype) for key in ("x", "y")}
    save_file(values, tmp_path / name)
    return open_safetensors(tmp_path / name), values


def test_written_and_read_again(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", TENSORS, "float16", {"alpha": 0.7})
    read = open_safetensors(tmp_path / "x.safetensors")
    assert {key: (tensor.dtype, tensor.shape) for key, tensor in read.items()} == {
        "a": ("F16", ()),
        "b": ("F16", (3, 2)),
        "ids": ("I64", (300,)),
    }
    assert np.array_equal(read["b"].read(), [[0, 3], [1, 4], [2, 5]])
    assert np.array_equal(read["ids"].read(), np.arange(300)), "integers are copied, not rounded"
    assert read_recipe(tmp_path / "x.safetensors") == {"alpha": 0.7}


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", TENSORS, "float32", {"x": 1, "y": 2})
    write_safetensors(tmp_path / "b.safetensors", dict(reversed(TENSORS.items())), "float32", {"y": 2, "x": 1})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_bytes_are_those_of_the_safetensors_library(tmp_path, dtype):
    write_safetensors(tmp_path / "ours.safetensors", TENSORS, dtype, {"naïve": "soup", "x": 1})
    arrays = {key: np.asarray(tensor.read(), order="C") for key, tensor in TENSORS.items()}
    rounded = {key: array if key == "ids" else array.astype(dtype) for key, array in arrays.items()}
    save_file(rounded, tmp_path / "theirs.safetensors", metadata={"recipe": '{"na\\u00efve": "soup", "x": 1}'})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


@pytest.mark.parametrize("source", ["float16", "float32"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_pieces_are_rounded_once_for_any_number_of_threads(tmp_path, small_pieces, source, dtype):
    tensors, values = stored(tmp_path, "in.safetensors", source)
    mean = computed([tensors["x"], tensors["y"]], lambda _start, _, x, y: 0.3 * x + 0.7 * y)
    written = {"copy": tensors["x"], "mean": mean, "reshaped": mean.reshape((37, 11)), **TENSORS}
    for threads in (1, 2, 5):
        write_safetensors(tmp_path / f"{threads}.safetensors", written, dtype, {}, threads)
    x, y = (values[key].astype(np.float32) for key in ("x", "y"))
    read = load_file(tmp_path / "1.safetensors")
    assert read["copy"].tobytes() == x.astype(dtype).tobytes()
    assert read["mean"].tobytes() == (np.float32(0.3) * x + np.float32(0.7) * y).astype(dtype).tobytes()
    assert read["reshaped"].tobytes() == read["mean"].tobytes()
    assert len({(tmp_path / f"{threads}.safetensors").read_bytes() for threads in (1, 2, 5)}) == 1


def test_a_computed_tensor_is_read_as_it_is_written(tmp_path, small_pieces):
    tensors, values = stored(tmp_path, "in.safetensors", "float16")
    total = computed(
        [tensors["x"]],
        lambda start, totals, x: x * totals[0] + np.arange(start, start + len(x), dtype=np.float32),
        lambda pieces: (float(sum(x.sum(dtype=np.float64) for (x,) in pieces())),),
    )
    write_safetensors(tmp_path / "out.safetensors", {"x": total}, "float32", {})
    expected = values["x"].astype(np.float32) * values["x"].sum(dtype=np.float64) + np.arange(11 * 37).reshape(11, 37)
    assert load_file(tmp_path / "out.safetensors")["x"].tobytes() == total.read().tobytes()
    np.testing.assert_allclose(total.read(), expected, rtol=1e-5)


def test_bfloat16_is_widened_exactly(tmp_path, small_pieces):
    import torch
    from safetensors.torch import save_file as save_torch_file

    values = torch.randn(7, 31).bfloat16()
    save_torch_file({"x": values}, tmp_path / "in.safetensors")
    write_safetensors(tmp_path / "out.safetensors", open_safetensors(tmp_path / "in.safetensors"), "float32", {})
    assert np.array_equal(load_file(tmp_path / "out.safetensors")["x"], values.float().numpy())


@pytest.mark.parametrize("value", [np.nan, -np.inf, 7e4])
def test_what_is_not_finite_is_named_and_leaves_nothing(tmp_path, value):
    message = "^larger than float16 holds: bad$" if np.isfinite(value) else r"^not a finite number \(NaN or Inf\): bad$"
    with pytest.raises(ValueError, match=message):
        write_safetensors(tmp_path / "x.safetensors", {**TENSORS, "bad": lazy(np.array([value], np.float32))}, "float16", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", ["float16", "float32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_not_finite_in_a_source_is_named(tmp_path, small_pieces, source, value, dtype):
    values = {key: np.ones(1000, source) for key in ("fine", "bad")}
    values["bad"][777] = value
    save_file(values, tmp_path / "in.safetensors")
    tensors = open_safetensors(tmp_path / "in.safetensors")
    doubled = {key: computed([tensor], lambda _start, _, x: 2 * x) for key, tensor in tensors.items()}
    for written in (tensors, doubled):
        with pytest.raises(ValueError, match=rf"^{tmp_path}/in.safetensors: not a finite number \(NaN or Inf\): bad$"):
            write_safetensors(tmp_path / "out.safetensors", written, dtype, {})
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]


def test_of_several_sources_the_file_at_fault_is_named(tmp_path):
    for name, values in {"theta0": [1, 2, 3], "theta1": [1, np.nan, 3]}.items():
        save_file({"x": np.array(values, np.float32)}, tmp_path / f"{name}.safetensors")
    thetas = [open_safetensors(tmp_path / f"{name}.safetensors")["x"] for name in ("theta0", "theta1")]
    big = computed(thetas[:1], lambda _start, _, x: 1e5 * x)
    written = {"sum": computed(thetas, lambda _start, _, x, y: x + y), "big": big}
    larger = rf"{tmp_path}/theta0.safetensors: larger than float16 holds: big"
    expected = rf"^{larger}; {tmp_path}/theta1.safetensors: not a finite number \(NaN or Inf\): sum$"
    with pytest.raises(ValueError, match=expected):
        write_safetensors(tmp_path / "out.safetensors", written, "float16", {})


def test_a_result_that_overflows_is_named(tmp_path, small_pieces):
    save_file({"big": np.full(100, 6e4, np.float16)}, tmp_path / "in.safetensors")
    double = {"big": computed([open_safetensors(tmp_path / "in.safetensors")["big"]], lambda _start, _, x: 2 * x)}
    with pytest.raises(ValueError, match="larger than float16 holds: big"):
        write_safetensors(tmp_path / "out.safetensors", double, "float16", {})
    write_safetensors(tmp_path / "out.safetensors", double, "float32", {})


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(OSError, match=r"are to be written and 0\.00 GB are free"):
        write_safetensors(tmp_path / "x.safetensors", TENSORS, "float16", {})
    assert list(tmp_path.iterdir()) == []
    check_space(tmp_path, 10)


def test_a_disk_that_becomes_full_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="the disk became full"):
        write_safetensors(tmp_path / "x.safetensors", TENSORS, "float16", {})
    assert list(tmp_path.iterdir()) == []


def test_the_size_is_known_beforehand(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", TENSORS, "float16", {})
    content = (tmp_path / "x.safetensors").read_bytes()
    assert len(content) == 8 + int.from_bytes(content[:8], "little") + written_size(TENSORS, "float16")


def test_everybody_may_read_the_file_and_there_is_one_metadata_key(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", TENSORS, "float32", {"x": 1, "y": 2})
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o644
    with safe_open(tmp_path / "x.safetensors", "np") as file:
        assert list(file.metadata()) == ["recipe"]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_values_that_lie_at_odd_places_are_read(tmp_path, small_pieces, dtype):
    tensors, values = stored(tmp_path, "in.safetensors", dtype)
    file = tmp_path / "in.safetensors"
    size = int.from_bytes(file.read_bytes()[:8], "little")
    moved = (size + 3).to_bytes(8, "little") + file.read_bytes()[8 : 8 + size] + b"   " + file.read_bytes()[8 + size :]
    file.write_bytes(moved)
    tensors = open_safetensors(file)
    out = {"sum": computed([tensors["x"], tensors["y"]], lambda start, known, x, y: x + y)}
    write_safetensors(tmp_path / "out.safetensors", out, "float32", {})
    expected = values["x"].astype(np.float32) + values["y"].astype(np.float32)
    assert np.array_equal(load_file(tmp_path / "out.safetensors")["sum"], expected)


def test_a_file_that_shrinks_in_the_meantime_is_named(tmp_path):
    tensors, _ = stored(tmp_path, "in.safetensors", "float16")
    os.truncate(tmp_path / "in.safetensors", 100)
    out = {"sum": computed([tensors["x"], tensors["y"]], lambda start, known, x, y: x + y)}
    with pytest.raises(ValueError, match=r"in\.safetensors: truncated"):
        write_safetensors(tmp_path / "out.safetensors", out, "float32", {})
    assert not (tmp_path / "out.safetensors").exists()
