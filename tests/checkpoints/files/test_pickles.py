"""Pickles: the weights are read, leftovers of trainers are ignored, and nothing is ever executed."""

import collections
import pathlib
import pickle
import sys
import types

import numpy as np
import pytest
import torch

from stages.checkpoints.files.pickles import open_ckpt
from stages.checkpoints.model import read_model
from tests.checkpoints.tiny import ldm_weights, random_weights, save_configs

WEIGHTS = {"a.weight": torch.arange(6, dtype=torch.float16).reshape(2, 3), "b": torch.tensor([1.5, -2.0])}


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return exec, (f"open({str(self.marker)!r}, 'w').close()",)


@pytest.fixture
def trainer(monkeypatch):
    """A class of a trainer that is installed while the file is written, and gone when it is read."""
    names = ("pytorch_lightning", "pytorch_lightning.callbacks")
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    callback = type("ModelCheckpoint", (), {"__module__": names[1]})
    sys.modules[names[1]].ModelCheckpoint = callback  # pyright: ignore[reportAttributeAccessIssue]
    return callback


def assert_weights(path):
    tensors = open_ckpt(path)
    assert tensors.keys() == WEIGHTS.keys()
    assert tensors["a.weight"].dtype == "F16"
    assert np.array_equal(tensors["a.weight"].read(), WEIGHTS["a.weight"].numpy())


@pytest.mark.parametrize("nest", [dict, lambda weights: {"state_dict": weights, "epoch": 3}])
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_at_the_top_or_nested(tmp_path, nest, zipped):
    torch.save(nest(WEIGHTS), tmp_path / "model.ckpt", _use_new_zipfile_serialization=zipped)
    assert_weights(tmp_path / "model.ckpt")


def test_entries_that_are_no_tensors_are_left_out(tmp_path):
    torch.save({"state_dict": {**WEIGHTS, "note": "text", "step": 3}}, tmp_path / "model.ckpt")
    assert_weights(tmp_path / "model.ckpt")


def test_callbacks_of_a_trainer_are_ignored(tmp_path, trainer, monkeypatch):
    callback = trainer()
    callback.best = 3
    torch.save({"callbacks": {trainer: {"best": 1}, "other": callback}, "state_dict": WEIGHTS}, tmp_path / "model.ckpt")
    monkeypatch.delitem(sys.modules, "pytorch_lightning.callbacks")
    assert_weights(tmp_path / "model.ckpt")


@pytest.mark.parametrize("zipped", [True, False])
def test_leftovers_of_other_kinds_are_ignored(tmp_path, trainer, monkeypatch, zipped):
    module = sys.modules["pytorch_lightning"]
    settings = type("AttributeDict", (dict,), {"__module__": "pytorch_lightning"})
    monkeypatch.setattr(module, "AttributeDict", settings, raising=False)
    content = {
        "state_dict": collections.OrderedDict(WEIGHTS),
        "hyper_parameters": settings(rate=0.1, nested=settings(a=[1, (2, {3})])),
        "loss": np.float64(0.25),
        "history": np.arange(3),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "counts": collections.defaultdict(list, a=[1]),
        "optimizer_states": [{"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"betas": (0.9, 0.999)}]}],
        "folder": pathlib.PurePosixPath("a/b"),
    }
    torch.save(content, tmp_path / "model.ckpt", _use_new_zipfile_serialization=zipped)
    monkeypatch.delattr(module, "AttributeDict")
    assert_weights(tmp_path / "model.ckpt")


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_every_layout(tmp_path, zipped):
    whole = torch.arange(24, dtype=torch.float32)
    tensors = {
        "transposed": whole.reshape(4, 6).T,
        "view": whole[5:9],
        "every_other": whole.reshape(2, 12)[:, ::2],
        "parameter": torch.nn.Parameter(whole.reshape(2, 3, 4).clone()),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "nothing": torch.zeros(0, 3),
        "ids": torch.arange(7),
        "flags": torch.tensor([True, False]),
        "transposed_bfloat16": whole.to(torch.bfloat16).reshape(4, 6).T,
    }
    torch.save(tensors, tmp_path / "model.ckpt", _use_new_zipfile_serialization=zipped)
    read = open_ckpt(tmp_path / "model.ckpt")
    assert read.keys() == tensors.keys()
    for key, tensor in tensors.items():
        expected = tensor.detach().float().numpy() if tensor.dtype == torch.bfloat16 else tensor.detach().numpy()
        assert read[key].shape == tuple(tensor.shape)
        assert np.array_equal(read[key].read(), expected), key
    assert read["view"].stored is not None
    assert read["transposed"].stored is None, "its values do not lie in order"
    assert all(tensor.files == (tmp_path / "model.ckpt",) for tensor in read.values())


def test_state_dicts_within_state_dicts(tmp_path):
    torch.save({"state_dict": {"state_dict": WEIGHTS}, "epoch": 1}, tmp_path / "model.ckpt")
    assert_weights(tmp_path / "model.ckpt")


def test_an_unknown_class_is_refused_by_its_name(tmp_path):
    torch.save({"state_dict": WEIGHTS, "model": torch.nn.Linear(1, 1)}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=r"it names torch\.nn\.modules\.linear\.Linear"):
        open_ckpt(tmp_path / "model.ckpt")


def test_bfloat16_is_read_exactly(tmp_path):
    values = torch.tensor([1.0, 3.140625, -1e30], dtype=torch.bfloat16)
    torch.save({"a": values}, tmp_path / "model.ckpt")
    assert np.array_equal(open_ckpt(tmp_path / "model.ckpt")["a"].read(), values.float().numpy())


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, zipped):
    marker = tmp_path / "ran"
    content = {"state_dict": {**WEIGHTS, "bad": Malicious(marker)}}
    torch.save(content, tmp_path / "model.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"model.ckpt: refused: it names builtins.exec, which could run code"):
        open_ckpt(tmp_path / "model.ckpt")
    assert not marker.exists()
    torch.load(tmp_path / "model.ckpt", weights_only=False)
    assert marker.exists(), "the file of this test does nothing, so the test shows nothing"


def test_a_bare_pickle_is_refused_and_not_run(tmp_path):
    marker = tmp_path / "ran"
    (tmp_path / "model.ckpt").write_bytes(pickle.dumps(Malicious(marker), protocol=2))
    with pytest.raises(ValueError, match=r"model.ckpt: "):
        open_ckpt(tmp_path / "model.ckpt")
    assert not marker.exists()


def test_a_stub_does_not_let_a_harmful_global_through(tmp_path, trainer):
    torch.save({"callbacks": trainer(), "state_dict": {"bad": Malicious(tmp_path / "ran")}}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=r"it names builtins\.exec"):
        open_ckpt(tmp_path / "model.ckpt")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", [1, 2]])
def test_other_files_are_refused(tmp_path, content):
    if isinstance(content, bytes):
        (tmp_path / "model.ckpt").write_bytes(content)
    else:
        torch.save(content, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=r"model.ckpt: .*not a checkpoint"):
        open_ckpt(tmp_path / "model.ckpt")


def test_a_truncated_file_is_refused(tmp_path):
    torch.save(WEIGHTS, tmp_path / "model.ckpt")
    whole = (tmp_path / "model.ckpt").read_bytes()
    (tmp_path / "model.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model.ckpt: truncated"):
        open_ckpt(tmp_path / "model.ckpt")


def test_a_whole_model(tmp_path):
    weights = random_weights()
    tensors = {key: torch.from_numpy(value) for key, value in ldm_weights(weights).items()}
    torch.save({"state_dict": tensors, "global_step": 875000}, tmp_path / "model.ckpt")
    model = read_model(tmp_path / "model.ckpt", save_configs(tmp_path / "configs"))
    for name, component in weights.items():
        assert all(np.array_equal(model.components[name].tensors[key].read(), value) for key, value in component.items())
