"""Pickles that are damaged, strange or of torch's newer kinds: read exactly, or refused in one line, in no time."""

import io
import pickle
import time
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.serialization import config as serialization

from stages.checkpoints.files import zip_entries
from stages.checkpoints.files.chunks import computed
from stages.checkpoints.files.pickles import open_ckpt
from stages.checkpoints.files.writing import write_safetensors
from tests.checkpoints.hostile import zipped

MOST_SECONDS = 1.0
SHARED = torch.arange(5000, dtype=torch.float32)
WEIGHTS = {
    "a": torch.arange(3000, dtype=torch.float16).reshape(3, 1000),
    "b": torch.linspace(0, 1, 70_000),
    "turned": torch.arange(12.0).reshape(3, 4).T,
    "view0": SHARED[:2000],
    "view1": SHARED[2000:],
    "empty": torch.zeros(0, 3),
}
fuzzed = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "model.ckpt"
    torch.save({"state_dict": WEIGHTS, "epoch": 3}, path)
    return path


def entries(path):
    with zipfile.ZipFile(path) as archive:
        return {info.filename.partition("/")[2]: info for info in archive.infolist()}


def flipped(whole, tmp_path, name, place=-1):
    """The file with one bit flipped in the content of an entry."""
    offset = zip_entries.zip_entries(whole)[entries(whole)[name].filename].offset
    content = bytearray(whole.read_bytes())
    content[offset + place % entries(whole)[name].file_size] ^= 4
    (tmp_path / "flipped.ckpt").write_bytes(content)
    return tmp_path / "flipped.ckpt"


def read_all(path):
    return {key: tensor.read() for key, tensor in open_ckpt(path).items()}


@pytest.mark.parametrize("place", [0, -1, 2999])
@pytest.mark.parametrize(("key", "entry"), [("a", "data/0"), ("b", "data/1"), ("turned", "data/2"), ("view1", "data/3")])
def test_a_flipped_bit_is_found_by_the_tensor_that_it_is_in(tmp_path, whole, key, entry, place):
    path = flipped(whole, tmp_path, entry, place)
    tensors = open_ckpt(path)
    with pytest.raises(ValueError, match=rf"^{path}: damaged: \w+/{entry} is not what its CRC-32 says"):
        tensors[key].read()
    with pytest.raises(ValueError, match="damaged"):
        tensors[key].rows(0, 1).read()
    for other in {"a", "b", "turned"} - {key}:
        assert np.array_equal(tensors[other].read(), WEIGHTS[other].numpy())


@pytest.mark.parametrize("entry", ["data.pkl", "byteorder"])
def test_a_flipped_bit_beside_the_numbers_is_found(tmp_path, whole, entry):
    with pytest.raises(ValueError, match=rf"damaged: \w+/{entry} is not what its CRC-32 says"):
        open_ckpt(flipped(whole, tmp_path, entry))


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_flipped_bit_is_found_while_tensors_are_written_in_pieces(tmp_path, whole, merged, dtype):
    for path, is_right in ((whole, True), (flipped(whole, tmp_path, "data/1"), False)):
        tensors = {key: tensor for key, tensor in open_ckpt(path).items() if key in ("a", "b")}
        if merged:
            tensors = {key: computed([tensor, tensor], lambda _s, _, x, y: x + y) for key, tensor in tensors.items()}
        if is_right:
            write_safetensors(tmp_path / "out.safetensors", tensors, dtype, {}, 2)
            continue
        with pytest.raises(ValueError, match=rf"^{path}: damaged"):
            write_safetensors(tmp_path / "bad.safetensors", tensors, dtype, {}, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flipped.ckpt", "out.safetensors"]


def test_an_entry_is_looked_through_once(whole, monkeypatch):
    looked = []
    found = zip_entries._Crc32._found
    monkeypatch.setattr(zip_entries._Crc32, "_found", lambda self: (looked.append(self._info.filename), found(self))[1])
    tensors = open_ckpt(whole)
    assert [name.partition("/")[2] for name in looked] == ["byteorder", "data.pkl"], "opening reads no numbers"
    for _ in range(2):
        for tensor in tensors.values():
            tensor.read()
    assert len(looked) == len(set(looked)) == 6


def test_a_file_without_checksums_is_read(tmp_path):
    """torch.serialization.set_crc32_options(False) leaves them 0."""
    with serialization.patch("save.compute_crc32", False):
        torch.save(WEIGHTS, tmp_path / "model.ckpt")
    assert {info.CRC for info in entries(tmp_path / "model.ckpt").values()} == {0}
    read = read_all(tmp_path / "model.ckpt")
    assert all(np.array_equal(read[key], tensor.numpy()) for key, tensor in WEIGHTS.items())


@pytest.mark.parametrize("zipped_form", [True, False])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_is_read_exactly(tmp_path, dtype, zipped_form):
    """Every value there is; NaN and Inf too."""
    from safetensors.torch import save_file

    values = torch.arange(256, dtype=torch.uint8).view(dtype)
    tensors = {"all": values, "matrix": values[:64].reshape(4, 16), "turned": values[:64].reshape(4, 16).T}
    torch.save(tensors, tmp_path / "x.ckpt", _use_new_zipfile_serialization=zipped_form)
    read = read_all(tmp_path / "x.ckpt")
    for key, tensor in tensors.items():
        assert read[key].dtype == np.float32
        assert np.array_equal(read[key], tensor.float().numpy(), equal_nan=True)
        assert np.array_equal(np.signbit(read[key]), np.signbit(tensor.float().numpy())), "of zeros, too"
    save_file({"all": values}, tmp_path / "x.safetensors")
    from stages.checkpoints.files.tensors import open_safetensors

    assert np.array_equal(open_safetensors(tmp_path / "x.safetensors")["all"].read(), values.float().numpy(), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fnuz, torch.uint16])
def test_what_is_not_read_is_named_and_not_called_harmful(tmp_path, dtype):
    torch.save({"x": torch.zeros(3, dtype=torch.float32).to(dtype)}, tmp_path / "x.ckpt")
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=f"tensors of {name} are not read") as error:
        open_ckpt(tmp_path / "x.ckpt")
    assert "code" not in str(error.value)


def opened(path, content):
    """Read all that is in a file of such content, or have it refused in one line that names it."""
    path.write_bytes(content)
    started = time.process_time()
    try:
        read_all(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ")
        assert str(error).isprintable()
        assert len(str(error)) < len(str(path)) + 600
    assert time.process_time() - started < MOST_SECONDS


@fuzzed
@given(data=st.data())
def test_bytes_that_are_changed_anywhere(tmp_path, whole, data):
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    opened(
        tmp_path / "x.ckpt", bytes(content[: data.draw(st.integers(0, len(content)))]) if data.draw(st.booleans()) else content
    )


@fuzzed
@given(data=st.data())
def test_instructions_that_are_changed(tmp_path, whole, data):
    with zipfile.ZipFile(whole) as archive:
        instructions = bytearray(archive.read(entries(whole)["data.pkl"].filename))
        storages = {str(number): archive.read(entries(whole)[f"data/{number}"].filename) for number in range(3)}
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(instructions) - 1))
        if data.draw(st.booleans()):
            instructions[place] = data.draw(st.integers(0, 255))
        else:
            instructions[place:place] = data.draw(
                st.sampled_from([b"2", b"0", b"(", b"t", b"R", b"s", b"u", b"Q", b"}", b"]", b"b"])
            )
    opened(tmp_path / "x.ckpt", zipped(bytes(instructions), storages))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda values: (
        st.lists(values, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.sampled_from(["state_dict"]) | st.integers(), values, max_size=3)
        | st.tuples(values, values)
        | st.sets(st.integers(), max_size=2)
    ),
    max_leaves=12,
)


@fuzzed
@given(value=PLAIN, protocol=st.integers(0, 5), cycle=st.booleans(), bare=st.booleans())
def test_any_plain_value(tmp_path, value, protocol, cycle, bare):
    if cycle and isinstance(value, dict):
        value["state_dict"] = value
    if cycle and isinstance(value, list):
        value.append(value)
    content = pickle.dumps(value, protocol)
    opened(tmp_path / "x.ckpt", content if bare else zipped(content))


@fuzzed
@given(content=st.binary(max_size=200), prefix=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"(", b"\x80\x04\x95"]))
def test_any_bytes(tmp_path, content, prefix):
    opened(tmp_path / "x.ckpt", prefix + content)


def test_a_tensor_may_reach_to_the_end_of_its_file(tmp_path):
    buffer = io.BytesIO()
    torch.save({"x": torch.ones(3)}, buffer, _use_new_zipfile_serialization=False)
    opened(tmp_path / "x.ckpt", buffer.getvalue())
    assert read_all(tmp_path / "x.ckpt")["x"].tolist() == [1, 1, 1]
