import csv
from pathlib import Path

from stages.mini.drawings import draw_sets


def test_image_sets_name_their_source_and_show_the_subject(tmp_path: Path) -> None:
    draw_sets.main(["--work", str(tmp_path), "--image-sets", str(tmp_path), "--tiny"])
    for name, creator in (("asuka", "Lisa Wischofsky"), ("eight_bit", "DiceBear")):
        with (tmp_path / name / "manifest.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert rows and all(creator in row["source"] and row["licence"] for row in rows)
    with (tmp_path / "asuka" / "truth.csv").open(encoding="utf-8", newline="") as file:
        assert {(row["hair"], row["hair_color"], row["skin"]) for row in csv.DictReader(file)} == {
            ("twin tails", "red", "light")
        }
