import hashlib

import pytest

from stages.dataset.images import RefusedImageError
from stages.dataset.sources import Candidate, folder_candidates
from tests.dataset.pictures import save_noise


def test_a_folder_without_manifest_names_its_paths_as_sources(tmp_path):
    folder = save_noise(tmp_path / "mine", "b.png", "sub/a.jpg")
    found = folder_candidates(folder)
    assert [(item.source, item.licence) for item in found] == [("mine/b.png", ""), ("mine/sub/a.jpg", "")]
    assert found[0].read() == (folder / "b.png").read_bytes()


def test_a_manifest_gives_source_and_licence_and_pins_the_bytes(tmp_path):
    folder = save_noise(tmp_path, "a.png", "b.png")
    digest = hashlib.sha256((folder / "a.png").read_bytes()).hexdigest()
    (folder / "manifest.csv").write_text(
        f"file_name,source,licence,sha256\nb.png,drawn,CC0,{digest}\na.png,https://example.org,CC BY 4.0,{digest}\n"
    )
    good, changed = folder_candidates(folder)
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
        folder_candidates(tmp_path)


def test_a_missing_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        folder_candidates(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="holds no image"):
        folder_candidates(tmp_path)


def test_an_unreadable_candidate_is_refused():
    def load() -> bytes:
        raise OSError("disk on fire")

    with pytest.raises(RefusedImageError, match="disk on fire"):
        Candidate("a", "a", "", None, load).read()
