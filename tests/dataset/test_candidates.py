import hashlib
import os

import pytest

from stages.dataset.candidates import Candidate, folder_candidates
from stages.dataset.collection import collect
from stages.dataset.images import RefusedImageError
from stages.dataset.metadata import read_manifest
from tests.dataset.pictures import encoded, noise, save_noise
from tests.dataset.settings import collection, folder_source


def test_a_folder_without_manifest_names_its_paths_as_sources(tmp_path):
    folder = save_noise(tmp_path / "mine", "b.png", "sub/a.jpg")
    found = folder_candidates(folder_source(folder))
    assert [(item.source, item.licence) for item in found] == [("mine/b.png", ""), ("mine/sub/a.jpg", "")]
    assert found[0].read() == (folder / "b.png").read_bytes()


def test_a_manifest_gives_source_and_licence_and_pins_the_bytes(tmp_path):
    folder = save_noise(tmp_path, "a.png", "b.png")
    digest = hashlib.sha256((folder / "a.png").read_bytes()).hexdigest()
    (folder / "manifest.csv").write_text(
        f"file_name,source,licence,sha256\nb.png,drawn,CC0,{digest}\na.png,https://example.org,CC BY 4.0,{digest}\n"
    )
    good, changed = folder_candidates(folder_source(folder))
    assert (good.source, good.licence) == ("https://example.org", "CC BY 4.0")
    assert good.read()
    with pytest.raises(RefusedImageError, match=digest):
        changed.read()


@pytest.mark.parametrize(("listed", "message"), [("a.png", r"no row for b\.png"), ("a.png b.png c.png", r"not there: c\.png")])
def test_a_manifest_that_differs_from_the_folder_is_refused(tmp_path, listed, message):
    save_noise(tmp_path, "a.png", "b.png")
    rows = "".join(f"{name},x,CC0\n" for name in listed.split())
    (tmp_path / "manifest.csv").write_text(f"file_name,source,licence\n{rows}")
    with pytest.raises(ValueError, match=message):
        folder_candidates(folder_source(tmp_path))


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="holds no image"):
        folder_candidates(folder_source(tmp_path))


def test_an_unreadable_candidate_is_refused():
    def load() -> bytes:
        raise OSError("disk on fire")

    with pytest.raises(RefusedImageError, match="disk on fire"):
        Candidate("a", "a", "", None, load).read()


def test_a_name_of_any_bytes_is_carried_into_the_manifest_and_out_again(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for seed, name in enumerate([b"\x83A.png", b"a\rb.png"]):
        with open(os.fsencode(folder) + b"/" + name, "wb") as file:  # noqa: PTH123 (bytes)
            file.write(encoded(noise(seed)))
    (tmp_path / "raw").mkdir()
    rows = collect(folder_candidates(folder_source(folder)), tmp_path / "raw", collection())
    assert [row.source for row in rows] == ["mine/a\rb.png", "mine/\\x83A.png"]
    assert read_manifest(tmp_path / "raw") == rows
