import hashlib
import re
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from stages.caption import CaptionConfig, stage
from stages.dataset.metadata import read_captions, read_dataset, read_manifest
from stages.download import DownloadConfig
from stages.download import stage as download
from stages.pipeline.config import ParamsError, RuntimeConfig, validate
from tests.dataset.loopback_hub import COMMIT, model_repository, reached
from tests.dataset.pictures import save_noise
from tests.runtime import CPU

RUNTIME = RuntimeConfig(**CPU)
LEAVES = {
    "own": "use",
    "prompt": None,
    "num_beams": 1,
    "max_new_tokens": 6,
    "batch_size": 2,
    "prefix": "asuka",
    "prefixes": {},
    "drop_phrases": [],
    "drop_common_phrases": None,
    "suffix": None,
}


def config(captioner: Path, **leaves) -> CaptionConfig:
    source = {"path": str(captioner), "repo": None, "revision": None, "file": None, "sha256": None}
    return validate("caption", CaptionConfig, {"model": source, **LEAVES, **leaves})


@pytest.mark.parametrize(
    ("leaf", "value"),
    [
        ("own", "maybe"),
        ("prompt", ""),
        ("num_beams", 0),
        ("max_new_tokens", 0),
        ("batch_size", 0),
        ("prefix", ""),
        ("drop_phrases", "*hair*"),
        ("drop_common_phrases", 0),
        ("drop_common_phrases", 1.5),
        ("suffix", 3),
    ],
)
def test_a_wrong_leaf_is_refused_by_name(tmp_path, leaf, value):
    with pytest.raises(ParamsError, match=rf"^caption\.{leaf}: given {value!r}".replace("*", r"\*")):
        config(tmp_path, **{leaf: value})


def test_a_missing_captioner_is_refused_by_its_leaf(tmp_path):
    with pytest.raises(ParamsError, match=r"^caption\.model\.path: no such file or directory"):
        config(tmp_path / "absent")


def test_a_single_file_is_no_captioner(tmp_path):
    source = {"path": None, "repo": "a/b", "revision": "0" * 40, "file": "x.safetensors", "sha256": None}
    with pytest.raises(ParamsError, match=r"^caption\.model\.file: given 'x\.safetensors': this model is a whole directory"):
        config(tmp_path, model=source)


def test_a_folder_without_manifest_is_refused_before_the_model_is_loaded(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*manifest\.csv"):
        stage(config(tmp_path), RUNTIME, tmp_path, tmp_path / "out")


def downloaded(source: Path, out: Path, **settings) -> Path:
    """What download makes of a folder."""
    values = {"on_bad": "fail", "min_size": 8, "max_pixels": 10_000, "min_images": 1, "max_images": None}
    values |= {"alpha_mask": False, "held_out_images": 0}
    values |= {"source": {"kind": "folder", "path": str(source), "masks": None}, **settings}
    download(validate("download", DownloadConfig, values), out)
    return out


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    from tests.dataset.tiny_blip import save_tiny_blip

    return save_tiny_blip(tmp_path_factory.mktemp("models") / "blip")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return downloaded(save_noise(folder / "mine", "a.png", "b.png", "c.png"), folder / "raw")


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Six images, two of them held out."""
    folder = tmp_path_factory.mktemp("data")
    source = save_noise(folder / "mine", *(f"{letter}.png" for letter in "abcdef"))
    return downloaded(source, folder / "raw", held_out_images=2)


def captions_of(dataset: Path) -> dict[str, str]:
    """The captions of a dataset none of whose images is held out."""
    splits = read_dataset(dataset)
    assert not splits["test"]
    return splits["train"]


def written(folder: Path, **texts: str) -> Path:
    """What download makes of three images, some of them with a caption of their own; the names are a, b, c."""
    source = save_noise(folder / "mine", "a.png", "b.png", "c.png")
    for name, text in texts.items():
        (source / f"{name}.txt").write_text(text)
    return downloaded(source, folder / "raw")


def test_captions_of_the_images_own_need_no_captioner_and_lose_nothing(tmp_path, capsys):
    raw = written(tmp_path, a="asuka, red hair, smile.", b="a photo of Asuka, red hair", c="red hair, red hair")
    leaves = {"model": None, "drop_phrases": ["*hair*"], "drop_common_phrases": 0.5, "suffix": "8-bit"}
    stage(config(tmp_path, **leaves), RUNTIME, raw, tmp_path / "dataset")
    assert captions_of(tmp_path / "dataset") == {
        "0001.png": "asuka, red hair, smile., 8-bit",
        "0002.png": "a photo of Asuka, red hair, 8-bit",
        "0003.png": "asuka, red hair, red hair, 8-bit",
    }
    assert "captions: 3 of the images' own, 0 by the captioner" in capsys.readouterr().err


def test_the_captions_of_an_image_set_begin_with_the_name_of_its_subject(tmp_path):
    source = save_noise(tmp_path / "mine", "3_boys/a.png", "1_girls/b.png", "c.png")
    for name, text in (("3_boys/a", "smiling"), ("1_girls/b", "a photo of asuka"), ("c", "serious")):
        (source / f"{name}.txt").write_text(text)
    raw = downloaded(source, tmp_path / "raw")
    leaves = {"model": None, "prefix": "someone", "prefixes": {"boys": "kaji", "girls": "asuka"}}
    stage(config(tmp_path, **leaves), RUNTIME, raw, tmp_path / "dataset")
    assert sorted(captions_of(tmp_path / "dataset").values()) == ["a photo of asuka", "kaji, smiling", "someone, serious"]
    with pytest.raises(ValueError, match=r"caption\.prefixes: names 'cats', which is no set of these images; there are: b"):
        stage(config(tmp_path, model=None, prefixes={"cats": "tama"}), RUNTIME, raw, tmp_path / "other")


def test_a_captioner_that_is_not_asked_is_not_loaded(tmp_path):
    raw = written(tmp_path, a="one", b="two", c="three")
    stage(config(tmp_path), RUNTIME, raw, tmp_path / "dataset")  # the folder holds no captioner
    assert captions_of(tmp_path / "dataset")["0003.png"] == "asuka, three"


def test_the_dataset_given_back_as_a_folder_keeps_its_captions(tmp_path):
    raw = written(tmp_path, a="one", b="two", c="three")
    stage(config(tmp_path), RUNTIME, raw, tmp_path / "dataset")
    for name in ("raw", "dataset"):
        again = downloaded(tmp_path / name, tmp_path / f"again_{name}")
        stage(config(tmp_path), RUNTIME, again, tmp_path / f"captioned_{name}")
        assert captions_of(tmp_path / f"captioned_{name}") == captions_of(tmp_path / "dataset")


def test_a_dataset_with_held_out_images_given_back_as_a_folder_is_split_alike(tmp_path):
    source = save_noise(tmp_path / "mine", *(f"{letter}.png" for letter in "abcdef"))
    for letter in "abcdef":
        (source / f"{letter}.txt").write_text(f"asuka, {letter}")
    raw = downloaded(source, tmp_path / "raw", held_out_images=2)
    stage(config(tmp_path, model=None), RUNTIME, raw, tmp_path / "dataset")
    again = downloaded(tmp_path / "dataset", tmp_path / "again_raw", held_out_images=2)
    stage(config(tmp_path, model=None), RUNTIME, again, tmp_path / "again")
    for split, count in (("train", 4), ("test", 2)):
        first, second = (described(tmp_path / name / split) for name in ("dataset", "again"))
        assert first == second
        assert len(first) == count


def described(folder: Path) -> dict[bytes, str]:
    """The caption of each picture of a folder, whatever its name."""
    return {(folder / name).read_bytes(): caption for name, caption in read_captions(folder).items()}


@pytest.mark.parametrize("leaves", [{}, {"own": "ignore"}])
def test_without_a_captioner_images_without_a_caption_are_refused_by_name(tmp_path, leaves):
    raw = written(tmp_path, a="one", c="three")
    count, first = (3, "0001") if leaves else (1, "0002")
    message = rf"^caption\.model is null, and images have no caption to use \({count}\), the first {first}\.png"
    with pytest.raises(ValueError, match=message):
        stage(config(tmp_path, model=None, **leaves), RUNTIME, raw, tmp_path / "dataset")


@pytest.mark.stage
def test_the_captioner_is_asked_about_images_without_a_caption_alone(captioner, raw, tmp_path, capsys):
    stage(config(captioner), RUNTIME, raw, tmp_path / "asked")
    mixed = written(tmp_path, b="mine, red hair")
    stage(config(captioner), RUNTIME, mixed, tmp_path / "mixed")
    assert "captions: 1 of the images' own, 2 by the captioner" in capsys.readouterr().err
    expected = captions_of(tmp_path / "asked") | {"0002.png": "asuka, mine, red hair"}
    assert list(captions_of(tmp_path / "mixed").items()) == list(expected.items())
    stage(config(captioner, own="ignore"), RUNTIME, mixed, tmp_path / "ignored")
    assert captions_of(tmp_path / "ignored") == captions_of(tmp_path / "asked")
    assert "caption.own is ignore: captions that images came with are not used (1)" in capsys.readouterr().err


@pytest.mark.stage
def test_a_captioner_of_the_hub_says_what_a_copy_of_it_says_and_is_checked(captioner, raw, tmp_path):
    stage(config(captioner), RUNTIME, raw, tmp_path / "copy")
    pinned = {"path": None, "repo": "owner/blip", "revision": COMMIT, "file": None, "sha256": None}
    with reached(model_repository("owner/blip", captioner), tmp_path / "cache") as patch:
        stage(config(captioner, model=pinned), RUNTIME, raw, tmp_path / "online")
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        stage(config(captioner, model=pinned), RUNTIME, raw, tmp_path / "offline")
    for name in ("online", "offline"):
        assert captions_of(tmp_path / name) == captions_of(tmp_path / "copy")
    hub = model_repository("owner/blip", captioner)
    with reached(hub, tmp_path / "another_cache"):
        weights = hub.files["model.safetensors"]
        hub.files["model.safetensors"] = weights[:-1] + bytes([weights[-1] ^ 1])
        with pytest.raises(ValueError, match=r"^caption\.model: owner/blip: model\.safetensors: damaged on its way"):
            stage(config(captioner, model=pinned), RUNTIME, raw, tmp_path / "damaged")
    assert not (tmp_path / "damaged").exists()


def file_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.stage
def test_held_out_images_lie_in_a_folder_of_their_own_alone(captioner, split, tmp_path):
    stage(config(captioner), RUNTIME, split, tmp_path / "dataset")
    rows = read_manifest(split)
    assert Counter(row.split for row in rows) == {"train": 4, "test": 2}
    assert file_names(tmp_path / "dataset") == {"train", "test"}
    for name in ("train", "test"):
        of_split = [row for row in rows if row.split == name]
        assert file_names(tmp_path / "dataset" / name) == {"metadata.csv", *(row.file_name for row in of_split)}
        assert list(read_captions(tmp_path / "dataset" / name)) == [row.file_name for row in of_split]
        for row in of_split:
            assert hashlib.sha256((tmp_path / "dataset" / name / row.file_name).read_bytes()).hexdigest() == row.sha256
    held_out = {row.sha256 for row in rows if row.split == "test"}
    trained_on = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "dataset/train").iterdir()}
    assert not held_out & trained_on


@pytest.mark.stage
def test_an_image_is_captioned_alike_in_either_split(captioner, split, tmp_path):
    stage(config(captioner), RUNTIME, split, tmp_path / "dataset")
    whole = downloaded(split, tmp_path / "raw")
    stage(config(captioner), RUNTIME, whole, tmp_path / "whole")
    splits = read_dataset(tmp_path / "dataset")
    assert splits["train"] | splits["test"] == captions_of(tmp_path / "whole")


def test_without_held_out_images_there_is_no_folder_of_them(tmp_path):
    raw = written(tmp_path, a="one", b="two", c="three")
    stage(config(tmp_path, model=None), RUNTIME, raw, tmp_path / "dataset")
    assert file_names(tmp_path / "dataset") == {"train"}
    assert file_names(tmp_path / "dataset/train") == {"metadata.csv", "0001.png", "0002.png", "0003.png"}


@pytest.fixture
def load_imagefolder(tmp_path, monkeypatch):
    """`datasets.load_dataset` of an imagefolder, with its cache apart."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    from datasets import load_dataset

    return partial(load_dataset, "imagefolder", cache_dir=str(tmp_path / "cache"))


def assert_shows(table, folder: Path) -> None:
    """That a loaded split has the captions and the pictures of a folder, and nothing else."""
    assert table.column_names == ["image", "caption"]
    captions = read_captions(folder)
    assert list(table["caption"]) == list(captions.values())
    for image, name in zip(table["image"], captions, strict=True):
        with Image.open(folder / name) as expected:
            assert image.tobytes() == expected.tobytes()


@pytest.mark.stage
def test_the_dataset_loads_as_an_imagefolder_of_two_splits(captioner, split, tmp_path, load_imagefolder):
    stage(config(captioner), RUNTIME, split, tmp_path / "dataset")
    splits = load_imagefolder(data_dir=str(tmp_path / "dataset"))
    assert {name: len(table) for name, table in splits.items()} == {"train": 4, "test": 2}
    for name, table in splits.items():
        assert_shows(table, tmp_path / "dataset" / name)
        assert all(caption.startswith("asuka") for caption in table["caption"])


@pytest.mark.stage
def test_without_held_out_images_the_dataset_loads_as_one_split(captioner, raw, tmp_path, load_imagefolder):
    stage(config(captioner), RUNTIME, raw, tmp_path / "dataset")
    splits = load_imagefolder(data_dir=str(tmp_path / "dataset"))
    assert {name: len(table) for name, table in splits.items()} == {"train": 3}
    assert_shows(splits["train"], tmp_path / "dataset/train")


@pytest.mark.stage
def test_the_folder_to_train_on_loads_alone_as_scripts_of_diffusers_load_it(captioner, split, tmp_path, load_imagefolder):
    """They take every file below `--train_data_dir`."""
    stage(config(captioner), RUNTIME, split, tmp_path / "dataset")
    (tmp_path / "dataset/test").rename(tmp_path / "elsewhere")
    splits = load_imagefolder(data_files={"train": str(tmp_path / "dataset/train/**")})
    assert {name: len(table) for name, table in splits.items()} == {"train": 4}
    assert_shows(splits["train"], tmp_path / "dataset/train")


@pytest.mark.stage
def test_two_runs_write_the_same_table(captioner, raw, tmp_path):
    for name in ("first", "second"):
        stage(config(captioner), RUNTIME, raw, tmp_path / name)
    assert (tmp_path / "first/train/metadata.csv").read_bytes() == (tmp_path / "second/train/metadata.csv").read_bytes()


@pytest.mark.stage
def test_editing_reaches_the_table(captioner, raw, tmp_path):
    stage(config(captioner, drop_phrases=["*"], suffix="8-bit illustration"), RUNTIME, raw, tmp_path / "dataset")
    assert set(captions_of(tmp_path / "dataset").values()) == {"asuka, 8-bit illustration"}


@pytest.mark.stage
def test_captions_without_a_word_left_fail_by_file_name_and_leave_nothing(captioner, raw, tmp_path):
    with pytest.raises(ValueError, match=r"^0001\.png: its caption is empty.*caption\.prefix"):
        stage(config(captioner, prefix=None, drop_phrases=["*"]), RUNTIME, raw, tmp_path / "dataset")
    assert not (tmp_path / "dataset").exists()


@pytest.mark.stage
def test_a_caption_that_will_be_cut_is_named(captioner, raw, tmp_path, capsys):
    stage(config(captioner, prefix=" ".join(["word"] * 80)), RUNTIME, raw, tmp_path / "dataset")
    said = re.search("warning: 3 captions have more than 77 tokens; the rest is cut off: (.+)", capsys.readouterr().err)
    assert said
    assert re.findall(r"000\d\.png", said[1]) == ["0001.png", "0002.png", "0003.png"]
