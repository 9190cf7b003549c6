import csv
import json
from dataclasses import replace

import pytest

from stages.pipeline.variants import Variant
from stages.report.score_tables import as_text, write_metrics, write_scores_table, write_variants_table
from tests.report.small_comparison import NARROW, SWEEP, WIDE, leak, read_world, write_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"))


def rows(write, comparison, path):
    write(comparison, path)
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_scores_are_of_either_group_and_of_each_prompt(world, tmp_path):
    table = rows(write_scores_table, read_world(world), tmp_path / "scores.csv")
    of_lora = [row for row in table if row["variant"] == "dreambooth-a0.7-r4"]
    assert [(row["prompts"], row["prompt"], row["images"]) for row in of_lora] == [
        ("subject", "", "3"),
        ("other", "", "3"),
        ("subject", "asuka, <green> background", "3"),
        ("other", "a portrait", "3"),
    ]
    assert float(of_lora[2]["reference_similarity"]) == pytest.approx(0.7 + 16 / 300, abs=1e-4)
    assert float(of_lora[2]["reference_similarity_gain"]) == pytest.approx(0.3, abs=1e-4)
    assert of_lora[2]["reference_similarity_verdict"] == "good"
    assert of_lora[1]["reference_similarity_verdict"] == "not told apart"
    unchanged = [row for row in table if row["kind"] in ("theta0", "theta1", "merge")]
    assert len(unchanged) == 3 * 4
    assert all(row[f"reference_similarity_{end}"] == "" for row in unchanged for end in ("gain", "verdict"))


def test_harm_is_called_harm_in_the_tables(tmp_path):
    leak(write_world(tmp_path), Variant("text2img", 0.7, 4))
    table = rows(write_scores_table, read_world(tmp_path), tmp_path / "scores.csv")
    (other,) = [row for row in table if (row["variant"], row["prompts"], row["prompt"]) == ("text2img-a0.7-r4", "other", "")]
    assert (other["reference_similarity_verdict"], other["prompt_similarity_verdict"]) == ("harm", "harm")
    write_metrics(read_world(tmp_path), tmp_path / "metrics.json")
    metrics = json.loads((tmp_path / "metrics.json").read_text())["text2img-a0_7-r4"]
    assert metrics["reference_similarity_leak"] == pytest.approx(0.4)
    assert metrics["prompt_similarity_drift"] == pytest.approx(-0.2)
    assert metrics["reference_similarity_gain"] == pytest.approx(0.1)


def metrics_of(root, sweep, path):
    write_metrics(read_world(root, sweep), path)
    return json.loads(path.read_text())


def test_a_model_has_the_same_key_and_value_in_any_sweep(tmp_path):
    write_world(tmp_path, WIDE)
    wide = metrics_of(tmp_path, WIDE, tmp_path / "wide.json")
    assert len(wide) == 8
    for ranks in ((4,), (2,), (2, 4)):
        narrow = metrics_of(tmp_path, replace(NARROW, rank=ranks), tmp_path / "narrow.json")
        assert set(narrow) == {"theta0", "a0_7", *(f"text2img-a0_7-r{rank}" for rank in ranks)}
        assert all(wide[key] == values for key, values in narrow.items())


def test_keys_have_no_dots_and_differ():
    variants = [*WIDE.variants, *SWEEP.variants, Variant("merge", 1), Variant("merge", 0.07), Variant("merge", 1e-05)]
    keys = {variant.name: variant.key for variant in variants}
    assert not any("." in key for key in keys.values())
    assert len(set(keys.values())) == len(keys)


def test_no_leak_is_claimed_where_every_prompt_asks_for_the_subject(world, tmp_path):
    comparison = read_world(world)
    all_ask = replace(comparison, config=replace(comparison.config, subject_prompts=(0, 1)))
    write_metrics(all_ask, tmp_path / "metrics.json")
    assert set(json.loads((tmp_path / "metrics.json").read_text())["text2img-a0_7-r4"]) == {
        "prompt_similarity",
        "prompt_similarity_gain",
        "reference_similarity",
        "reference_similarity_gain",
    }
    table = rows(write_variants_table, all_ask, tmp_path / "variants.csv")
    assert {row["reference_similarity_leak"] for row in table} == {""}


def test_variants_have_a_row_each(world, tmp_path):
    table = {row["variant"]: row for row in rows(write_variants_table, read_world(world), tmp_path / "variants.csv")}
    assert list(table) == [variant.name for variant in SWEEP.variants]
    assert table["text2img-a0.7-r4"]["rank"] == "4"
    assert float(table["text2img-a0.7-r4"]["reference_similarity_gain"]) == pytest.approx(0.1)
    assert {name: row["held_out_loss"] for name, row in table.items() if row["held_out_loss"]} == {
        "text2img-a0.7-r4": "0.50000"
    }


@pytest.mark.parametrize(
    "text", ['=HYPERLINK("http://a.test","x")', "+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "'=1", "'quoted'"]
)
def test_formulas_are_shown_and_can_be_read_back(text):
    assert as_text(text) == "'" + text


@pytest.mark.parametrize("text", ["asuka, green background", "a = b", "1+1", "", "猫"])
def test_other_texts_stay_as_they_are(text):
    assert as_text(text) == text


def test_a_prompt_that_is_a_formula_is_text_in_the_table(tmp_path):
    write_world(tmp_path)
    for file in [*tmp_path.glob("images/*/cells.csv"), *tmp_path.glob("scores/*.csv")]:
        file.write_text(file.read_text().replace("a portrait", "=1+cmd|'/C calc'!A0"))
    table = rows(write_scores_table, read_world(tmp_path), tmp_path / "scores.csv")
    assert {row["prompt"] for row in table} == {"", "asuka, <green> background", "'=1+cmd|'/C calc'!A0"}
