import csv
import json
from dataclasses import replace

import pytest

from stages.pipeline.variants import Variant
from stages.report.score_tables import (
    as_text,
    write_cell_tables,
    write_contrasts,
    write_costs,
    write_distances,
    write_levels,
    write_metrics,
)
from tests.report.small_comparison import (
    DREAMBOOTH,
    NARROW,
    SEEDS,
    SWEEP,
    TEXT2IMG,
    WIDE,
    leak,
    read_world,
    rewrite,
    write_world,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"))


def rows(write, comparison, path):
    write(comparison, path)
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_levels_are_of_every_arm_by_every_measure(world, tmp_path):
    table = rows(write_levels, read_world(world), tmp_path / "levels.csv")
    found = {(row["variant"], row["measure"]): row for row in table}
    assert len(found) == len(table) == 5 * 10
    fidelity = found[DREAMBOOTH.name, "subject_fidelity"]
    # 0.7, one hundredth for each prompt (0, 1, 2), and the mean of 3, 5 and 8 thousandths
    assert float(fidelity["mean"]) == pytest.approx(0.7 + 0.01 + 0.016 / 3, abs=1e-4)
    half_width = 4.30265273 * 0.01 / 3**0.5  # Student's t for two degrees of freedom, from the tables
    assert float(fidelity["high"]) - float(fidelity["mean"]) == pytest.approx(half_width, abs=1e-4)
    assert (fidelity["units"], fidelity["trainings"], fidelity["lora_scale"]) == ("3", "1", "1.0")
    assert found["a0.7", "drift"]["mean"] == "0.00000"
    assert found["a0.7", "subject_fidelity"]["lora_scale"] == ""


def test_contrasts_say_what_is_better_and_what_is_worse(tmp_path):
    leak(write_world(tmp_path), TEXT2IMG)
    table = rows(write_contrasts, read_world(tmp_path), tmp_path / "contrasts.csv")
    of_merge = {row["measure"]: row for row in table if row["arms"] == "text2img LoRA, rank 4 > merge, alpha 0.7"}
    assert of_merge["leak"]["verdict"] == "worse"
    assert float(of_merge["leak"]["mean"]) == pytest.approx(0.4, abs=1e-4)
    assert of_merge["prompt_alignment_other"]["verdict"] == "worse"
    assert of_merge["subject_fidelity"]["verdict"] == "better"
    assert not {"drift", "copying", "diversity"} & of_merge.keys(), "beside the merge they say nothing"
    (primary,) = [row for row in table if row["primary"] == "True"]
    assert (primary["arms"], primary["measure"]) == (
        "text2img LoRA, rank 4 > DreamBooth LoRA, rank 4",
        "trigger_specificity",
    )


def metrics_of(root, sweep, path):
    write_metrics(read_world(root, sweep), path)
    return json.loads(path.read_text())


def test_a_model_has_the_same_key_and_value_in_any_sweep(tmp_path):
    wide = replace(WIDE, seed=(0, 1, 2))
    write_world(tmp_path, wide)
    found = metrics_of(tmp_path, wide, tmp_path / "wide.json")
    assert len(found) == 2 + 2 + 2 * 2 * 3
    for ranks, seeds in (((4,), (0,)), ((2,), (1, 0)), ((2, 4), (2,))):
        narrow = metrics_of(tmp_path, replace(NARROW, rank=ranks, seed=seeds), tmp_path / "narrow.json")
        loras = {f"text2img-a0_7-r{rank}-s{seed}" for rank in ranks for seed in seeds}
        assert set(narrow) == {"theta0", "a0_7", *loras}
        assert all(found[key] == values for key, values in narrow.items())


def test_gains_are_differences_to_the_merge(tmp_path):
    leak(write_world(tmp_path), TEXT2IMG)
    metrics = metrics_of(tmp_path, SWEEP, tmp_path / "metrics.json")
    assert metrics[TEXT2IMG.key]["leak_gain"] == pytest.approx(0.4)
    assert metrics[TEXT2IMG.key]["prompt_alignment_other_gain"] == pytest.approx(-0.2)
    assert metrics[TEXT2IMG.key]["subject_fidelity_gain"] == pytest.approx(0.1)
    assert metrics[TEXT2IMG.key]["trigger_specificity_gain"] == pytest.approx(-0.3)
    assert not any(name.endswith("_gain") for name in metrics["a0_7"])
    assert "-0.0," not in (tmp_path / "metrics.json").read_text()


def test_keys_have_no_dots_and_differ():
    variants = [*WIDE.variants, *SWEEP.variants, Variant("merge", 1), Variant("merge", 0.07), Variant("merge", 1e-05)]
    variants += [replace(TEXT2IMG, lora_scale=0.5), replace(TEXT2IMG, step=50)]
    keys = {variant.name: variant.key for variant in variants}
    assert not any("." in key for key in keys.values())
    assert len(set(keys.values())) == len(keys)


def test_no_leak_is_claimed_where_every_prompt_asks_for_the_subject(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.report.small_comparison.OTHER_PROMPTS", [])
    metrics = metrics_of(write_world(tmp_path), SWEEP, tmp_path / "metrics.json")
    measures = {"subject_fidelity", "subject_fidelity_clip", "prompt_alignment", "diversity", "copying"}
    assert set(metrics[TEXT2IMG.key]) == measures | {f"{measure}_gain" for measure in measures}


def cell_rows(comparison, folder):
    """cells.csv."""
    write_cell_tables(comparison, folder)
    with (folder / "cells.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_parquet_file_has_the_same_rows_with_their_types(world, tmp_path):
    import pandas as pd

    table = cell_rows(read_world(world), tmp_path)
    typed = pd.read_parquet(tmp_path / "cells.parquet")
    assert len(typed) == len(table)
    assert list(typed) == list(table[0])
    assert typed["value"].round(5).tolist() == pytest.approx([float(row["value"]) for row in table], abs=1e-5)
    merges = typed[typed["kind"] == "merge"]
    assert list(merges["rank"].isna().unique()) == [True]
    assert typed[typed["variant"] == TEXT2IMG.name]["rank"].unique().tolist() == [4]
    assert typed["copy"].dropna().map(type).unique().tolist() == [bool]
    before = (tmp_path / "cells.parquet").read_bytes()
    write_cell_tables(read_world(world), tmp_path)
    assert (tmp_path / "cells.parquet").read_bytes() == before


def test_every_image_has_a_row_for_each_metric(world, tmp_path):
    table = cell_rows(read_world(world), tmp_path)
    assert len(table) == 5 * 6 * len(SEEDS) * 5
    of_lora = {(row["prompt"], row["seed"], row["metric"]): row for row in table if row["variant"] == TEXT2IMG.name}
    row = of_lora["asuka, glasses", "5", "dino_similarity"]
    assert float(row["value"]) == pytest.approx(0.5 + 0.01 + 0.005, abs=1e-4)
    assert (row["train_seed"], row["prompts"], row["nearest"]) == ("0", "subject", "")
    nearest = of_lora["asuka, glasses", "5", "nearest_training_similarity"]
    assert (nearest["nearest"], nearest["copy"]) == ("0002.png", "no")


def test_a_planted_copy_is_called_one(tmp_path):
    import numpy as np

    from stages.measures.embedded_files import read_embedded

    write_world(tmp_path)
    dataset = read_embedded(tmp_path / "embeddings" / "dataset.safetensors")
    spread = np.eye(20, dtype=np.float32)[[0, 0, 1, 2, 3, 4, 5, 6]] + np.eye(20, dtype=np.float32)[0]
    many = np.repeat(spread / np.linalg.norm(spread, axis=1, keepdims=True), 1, axis=0)
    rewrite(tmp_path, "dataset", images={"clip": dataset.images["clip"], "dino": many})
    drawn = read_embedded(tmp_path / "embeddings" / f"{TEXT2IMG.name}.safetensors")
    copied = drawn.images["dino"].copy()
    copied[4] = many[5]
    rewrite(tmp_path, TEXT2IMG.name, images={"clip": drawn.images["clip"], "dino": copied})
    table = cell_rows(read_world(tmp_path), tmp_path)
    similar = [row for row in table if row["variant"] == TEXT2IMG.name and row["metric"] == "nearest_training_similarity"]
    assert [row["nearest"] for row in similar if float(row["value"]) > 0.9999] == ["0005.png"]


def test_distances_are_nothing_where_images_are_the_subject_and_more_elsewhere(world, tmp_path):
    table = {row["variant"]: row for row in rows(write_distances, read_world(world), tmp_path / "distances.csv")}
    assert list(table) == [variant.name for variant in SWEEP.variants]
    assert float(table["theta0"]["mmd"]) > float(table[DREAMBOOTH.name]["mmd"]) > 0
    assert float(table["theta0"]["p"]) < 0.05


def test_costs_are_those_of_each_training(world, tmp_path):
    table = {row["variant"]: row for row in rows(write_costs, read_world(world), tmp_path / "costs.csv")}
    assert list(table) == [TEXT2IMG.name, DREAMBOOTH.name]
    assert (table[TEXT2IMG.name]["trained_weights"], table[TEXT2IMG.name]["steps"]) == ("20", "100")
    assert (table[TEXT2IMG.name]["held_out_loss"], table[DREAMBOOTH.name]["held_out_loss"]) == ("0.5", "")
    size = (world / "lora" / TEXT2IMG.name / "pytorch_lora_weights.safetensors").stat().st_size
    assert table[TEXT2IMG.name]["file_bytes"] == str(size)


@pytest.mark.parametrize(
    "text", ['=HYPERLINK("http://a.test","x")', "+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "'=1", "'quoted'"]
)
def test_formulas_are_shown_and_can_be_read_back(text):
    assert as_text(text) == "'" + text


@pytest.mark.parametrize("text", ["asuka, green background", "a = b", "1+1", "", "猫"])
def test_other_texts_stay_as_they_are(text):
    assert as_text(text) == text


def test_a_prompt_that_is_a_formula_is_text_in_the_table(tmp_path, monkeypatch):
    formula = "=1+cmd|'/C calc'!A0"
    monkeypatch.setattr("tests.report.small_comparison.OTHER_PROMPTS", [formula, "a portrait"])
    table = cell_rows(read_world(write_world(tmp_path)), tmp_path)
    assert f"'{formula}" in {row["prompt"] for row in table}
    assert formula not in {row["prompt"] for row in table}
