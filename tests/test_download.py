import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stages.dataset.metadata import read_manifest
from stages.download import DownloadConfig, stage
from stages.pipeline.config import ParamsError, validate
from tests.dataset.loopback_hub import COMMIT, Handler, Hub, loopback_hub, serving
from tests.dataset.pictures import encoded, noise, save_noise

ROOT = Path(__file__).parents[1]
LEAVES = {"on_bad": "fail", "min_size": 8, "max_pixels": 10_000, "min_images": 1, "max_images": None}
LEAVES |= {"alpha_mask": False, "held_out_images": 0}


CARD = b"---\nlicense: cc-by-4.0\n---\nDrawings."
HUB_FILES = {"kind": "hub_files", "repo": "org/drawings", "revision": COMMIT, "patterns": ["train/*"]}
HUB_DATASET = {
    "kind": "hub_dataset",
    "repo": "org/drawings",
    "revision": COMMIT,
    "split": "train",
    "image_column": "image",
    "caption_column": None,
}


def config(source: dict, **leaves) -> DownloadConfig:
    return validate("download", DownloadConfig, {**LEAVES, "source": source, **leaves})


def folder_source(path: Path) -> dict:
    return {"kind": "folder", "path": str(path), "masks": None}


def test_a_folder_becomes_numbered_pngs_with_a_manifest(tmp_path):
    source = save_noise(tmp_path / "mine", "b.jpg", "a.webp")
    stage(config(folder_source(source)), tmp_path / "raw")
    assert [row.source for row in read_manifest(tmp_path / "raw")] == ["mine/a.webp", "mine/b.jpg"]
    assert sorted(path.name for path in (tmp_path / "raw").iterdir()) == ["0001.png", "0002.png", "manifest.csv", "skipped.csv"]


def test_a_failing_run_leaves_the_earlier_output_alone(tmp_path):
    source = save_noise(tmp_path / "mine", "a.png")
    stage(config(folder_source(source)), tmp_path / "raw")
    (source / "b.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"b\.png"):
        stage(config(folder_source(source)), tmp_path / "raw")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "raw"]
    assert len(read_manifest(tmp_path / "raw")) == 1


def test_too_few_usable_images_fail(tmp_path):
    source = save_noise(tmp_path / "mine", "a.png", "b.png")
    (source / "b.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"1 of 2 images can be used; download\.min_images is 2"):
        stage(config(folder_source(source), on_bad="skip", min_images=2), tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def shown(folder: Path, split: str) -> set[bytes]:
    """The bytes of the images of a split, which say what these show."""
    return {(folder / row.file_name).read_bytes() for row in read_manifest(folder) if row.split == split}


@pytest.mark.parametrize("suffix", ["png", "bmp"])
def test_other_names_and_other_files_of_the_same_pictures_hold_out_the_same(tmp_path, capsys, suffix):
    letters = "abcdefgh"
    mine = save_noise(tmp_path / "mine", *(f"{letter}.png" for letter in letters))
    stage(config(folder_source(mine), held_out_images=3), tmp_path / "raw")
    other = save_noise(tmp_path / "other", *(f"{letter}.{suffix}" for letter in reversed(letters)))
    stage(config(folder_source(other), held_out_images=3), tmp_path / "again")
    assert capsys.readouterr().out == "images: 8, 3 of them held out from training\n" * 2
    assert [len(shown(tmp_path / "raw", split)) for split in ("test", "train")] == [3, 5]
    for split in ("test", "train"):
        assert shown(tmp_path / "again", split) == shown(tmp_path / "raw", split)
    splits = [[row.split for row in read_manifest(tmp_path / name)] for name in ("raw", "again")]
    assert splits[0] == splits[1][::-1] != splits[1]


def test_what_download_wrote_given_back_as_a_folder_holds_out_the_same(tmp_path):
    source = save_noise(tmp_path / "mine", *(f"{letter}.png" for letter in "abcdef"))
    stage(config(folder_source(source), held_out_images=2), tmp_path / "raw")
    stage(config(folder_source(tmp_path / "raw"), held_out_images=2), tmp_path / "again")
    assert [row.split for row in read_manifest(tmp_path / "again")] == [row.split for row in read_manifest(tmp_path / "raw")]
    stage(config(folder_source(tmp_path / "raw")), tmp_path / "all")
    assert {row.split for row in read_manifest(tmp_path / "all")} == {"train"}


def test_without_held_out_images_none_is_told_of(tmp_path, capsys):
    stage(config(folder_source(save_noise(tmp_path / "mine", "a.png", "b.png"))), tmp_path / "raw")
    assert capsys.readouterr().out == "images: 2\n"
    assert {row.split for row in read_manifest(tmp_path / "raw")} == {"train"}


def test_holding_out_all_images_fails_and_leaves_nothing(tmp_path):
    source = save_noise(tmp_path / "mine", "a.png", "b.png")
    with pytest.raises(ValueError, match=r"^download\.held_out_images: given 2: of 2 images, some must be left to train on"):
        stage(config(folder_source(source), held_out_images=2), tmp_path / "raw")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("value", [-1, 1.5, None])
def test_a_wrong_number_of_held_out_images_is_refused_by_name(tmp_path, value):
    with pytest.raises(ParamsError, match=rf"^download\.held_out_images: given {value!r}"):
        config(folder_source(tmp_path), held_out_images=value)


@pytest.mark.parametrize(
    ("source", "leaf"),
    [
        ({"kind": "folder", "path": "nowhere", "masks": None}, "path"),
        ({"kind": "hub_files", "repo": "noslash", "revision": COMMIT, "patterns": ["*"]}, "repo"),
        ({"kind": "hub_files", "repo": "a/b", "revision": "main", "patterns": ["*"]}, "revision"),
        ({"kind": "hub_files", "repo": "a/b", "revision": COMMIT, "patterns": []}, "patterns"),
        ({**HUB_DATASET, "split": ""}, "split"),
        ({**HUB_DATASET, "caption_column": ""}, "caption_column"),
        ({"kind": "urls", "list": "nowhere.csv", "timeout": 30}, "list"),
        ({"kind": "bing", "query": "x", "limit": 0, "timeout": 30}, "limit"),
        ({"kind": "bing", "query": "x", "limit": 9, "timeout": 30, "adult": True}, "adult"),
    ],
)
def test_a_wrong_source_is_refused_by_its_leaf(source, leaf):
    with pytest.raises(ParamsError, match=rf"^download\.source\.([a-z_]+\.)?{leaf}: ") as refused:
        config(source)
    assert "\n" not in str(refused.value)


def test_names_that_dvc_cannot_watch_are_said_when_the_config_is_checked(tmp_path, capsys):
    save_noise(tmp_path, "é.png", "a.png")
    config(folder_source(tmp_path))
    assert capsys.readouterr().err == ""
    (tmp_path / "a.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/\x83A.png"))
    config(folder_source(tmp_path))
    assert "DVC cannot watch names that are not UTF-8 (1): \\x83A.png; rename them" in capsys.readouterr().err


def test_an_unknown_kind_is_refused_with_the_kinds_there_are():
    with pytest.raises(ParamsError, match=r"^download\.source.*'folder', 'hub_files', 'hub_dataset', 'urls', 'bing'"):
        config({"kind": "ftp"})


def test_contradicting_counts_are_refused(tmp_path):
    with pytest.raises(ParamsError, match=r"^download\.max_images: 3 is less than min_images, 4"):
        config(folder_source(tmp_path), min_images=4, max_images=3)


def run_download(folder: Path, source: dict, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the stage as DVC does, in a process of its own: the hub's client reads its environment at import."""
    folder.mkdir(exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump({"download": {**LEAVES, "source": source}}))
    return subprocess.run(
        [sys.executable, "-m", "stages.download", "--out", "raw"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **env},
        capture_output=True,
        text=True,
        check=False,
    )


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("download: error: ")]
    assert "Traceback" not in done.stderr
    return line


@pytest.mark.stage
def test_hub_files_come_with_address_and_licence_and_again_from_the_cache(tmp_path):
    files = {"README.md": CARD, "train/b.png": encoded(noise(1)), "train/a.png": encoded(noise(0)), "test/c.png": b"x"}
    with loopback_hub("org/drawings", files) as endpoint:
        done = run_download(tmp_path, HUB_FILES, HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="0")
    assert done.returncode == 0, done.stderr
    rows = read_manifest(tmp_path / "raw")
    address = f"hf://datasets/org/drawings@{COMMIT}/train"
    assert [(row.source, row.licence) for row in rows] == [(f"{address}/{name}.png", "cc-by-4.0") for name in "ab"]
    assert run_download(tmp_path, HUB_FILES, HF_HUB_OFFLINE="1").returncode == 0
    assert read_manifest(tmp_path / "raw") == rows


@pytest.mark.stage
@pytest.mark.parametrize("pattern", ["train/*", "train/*.png"])
def test_captions_beside_files_of_the_hub_come_along(tmp_path, pattern):
    files = {f"train/{name}.png": encoded(noise(seed)) for seed, name in enumerate("abc")}
    files |= {"train/a.txt": b"asuka, smile\n", "train/metadata.csv": b"file_name,text\nb.png,from the table\n"}
    files["other/c.txt"] = b"of another image"
    with loopback_hub("org/drawings", files) as endpoint:
        done = run_download(tmp_path, {**HUB_FILES, "patterns": [pattern]}, HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="0")
    assert done.returncode == 0, done.stderr
    assert [row.caption for row in read_manifest(tmp_path / "raw")] == ["asuka, smile", "from the table", ""]
    assert "1 in text files beside them, 1 in tables; without: 1" in done.stderr


@pytest.mark.stage
def test_a_body_that_is_not_what_the_hub_lists_is_refused(tmp_path):
    files = {"train/a.png": encoded(noise(0))}
    with loopback_hub("org/drawings", files) as endpoint:
        files["train/a.png"] = files["train/a.png"][:-1] + b"x"
        done = run_download(tmp_path, HUB_FILES, HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="0")
    assert "org/drawings: train/a.png: was damaged on its way: the hub's digest of it is" in error_line(done)


def parquet(images: list[bytes], **columns: list) -> bytes:
    import pyarrow
    from pyarrow import parquet

    file = io.BytesIO()
    cells = [{"bytes": image, "path": None} for image in images]
    parquet.write_table(pyarrow.table({"image": cells, **columns}), file)
    return file.getvalue()


@pytest.mark.stage
def test_an_endless_body_of_a_hub_dataset_ends_at_its_listed_size(tmp_path):
    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for _ in range(10_000):
            handler.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")

    name = "data/train-00000-of-00001.parquet"
    hub = Hub("org/drawings", {"README.md": CARD, name: parquet([encoded(noise(0))])})
    hub.faults["GET", name] = endless
    with serving(hub) as endpoint:
        done = run_download(tmp_path, HUB_DATASET, HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="0")
    assert error_line(done).endswith(f"the hub sends more than {len(hub.files[name])} bytes, which is all that is expected")


@pytest.mark.stage
def test_a_hub_dataset_gives_the_images_of_a_column(tmp_path):
    files = {
        "README.md": b"---\nlicense: cc0-1.0\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n"
        b"  - name: label\n    dtype: int64\n---\n",
        "data/train-00000-of-00001.parquet": parquet([encoded(noise(seed)) for seed in range(2)], label=[0, 1]),
    }
    with loopback_hub("org/drawings", files) as endpoint:
        done = run_download(tmp_path, HUB_DATASET, HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="0")
    assert done.returncode == 0, done.stderr
    rows = read_manifest(tmp_path / "raw")
    assert [(row.source, row.licence) for row in rows] == [
        (f"hf://datasets/org/drawings@{COMMIT}#train/{row}", "cc0-1.0") for row in range(2)
    ]


@pytest.mark.stage
@pytest.mark.parametrize("source", [HUB_FILES, HUB_DATASET])
def test_an_unreachable_hub_is_one_line_that_names_the_dataset_and_the_fix(tmp_path, monkeypatch, source):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(OSError, match=rf"^dataset org/drawings@{COMMIT}: it is not in the local cache.*HF_HUB_OFFLINE$"):
        stage(config(source), tmp_path / "raw")


@pytest.mark.stage
@pytest.mark.parametrize("source", [HUB_FILES, HUB_DATASET])
def test_an_unknown_dataset_is_one_line_that_names_it_and_the_fix(tmp_path, source):
    with loopback_hub("org/other", {}) as endpoint:
        done = run_download(tmp_path, source, HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="0")
    assert f"dataset org/drawings@{COMMIT}: the hub has nothing of that name" in error_line(done)
    assert "check the name, or set HF_TOKEN" in error_line(done)


@pytest.mark.stage
def test_a_column_without_images_is_refused_with_the_columns_there_are(tmp_path, monkeypatch):
    import datasets

    table = datasets.Dataset.from_dict({"picture": [1], "text": ["a"]}).cast_column("picture", datasets.Value("int8"))
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: table)
    with pytest.raises(ValueError, match=r"no column 'image' of images; it has: picture \(Value\), text \(Value\)"):
        stage(config(HUB_DATASET), tmp_path / "raw")


@pytest.mark.stage
def test_a_column_of_captions_is_used_or_named(tmp_path, monkeypatch, capsys):
    import datasets

    cells = {"image": [{"bytes": encoded(noise(seed)), "path": None} for seed in range(2)], "text": ["asuka,\nsmile", None]}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    table = datasets.Dataset.from_dict(cells, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: table)
    stage(config(HUB_DATASET), tmp_path / "raw")
    assert "has a column 'text' that may hold captions, and it is not used; to use it, set" in capsys.readouterr().err
    stage(config({**HUB_DATASET, "caption_column": "text"}), tmp_path / "raw")
    assert [row.caption for row in read_manifest(tmp_path / "raw")] == ["asuka, smile", ""]
    assert "not used" not in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"no column 'image' of text; it has: image \(Image\), text \(Value\)"):
        stage(config({**HUB_DATASET, "caption_column": "image"}), tmp_path / "raw")


@pytest.mark.stage
def test_a_row_without_image_is_refused_by_its_number(tmp_path, monkeypatch):
    import datasets

    cells = [{"bytes": encoded(noise(0)), "path": None}, None]
    table = datasets.Dataset.from_dict({"image": cells}, features=datasets.Features({"image": datasets.Image()}))
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: table)
    with pytest.raises(ValueError, match=r"^org/drawings: row 1: holds no image"):
        stage(config(HUB_DATASET), tmp_path / "raw")


@pytest.mark.stage
def test_the_manifest_of_one_download_is_the_address_list_of_another(tmp_path):
    files = {"a.png": encoded(noise(0)), "b.png": encoded(noise(1))}
    with loopback_hub("org/drawings", files) as endpoint:
        rows = [{"source": f"{endpoint}/datasets/org/drawings/resolve/{COMMIT}/{name}", "licence": "CC0"} for name in files]
        stage(config(folder_source(save_noise(tmp_path / "mine", "a.png", "b.png"))), tmp_path / "first")
        for row, first in zip(rows, read_manifest(tmp_path / "first"), strict=True):
            row["source_sha256"] = first.source_sha256
        with (tmp_path / "list.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        done = run_download(tmp_path / "again", {"kind": "urls", "list": str(tmp_path / "list.csv"), "timeout": 5})
    assert done.returncode == 0, done.stderr
    for name in ("0001.png", "0002.png"):
        assert (tmp_path / "again" / "raw" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()
