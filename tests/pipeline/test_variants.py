"""What variants are called, and where their files lie: it depends on the variant alone."""

import pytest

from stages.pipeline.variants import TRAINED_KINDS, Kind, Trainings, Variant, export_cell, variant_cell, variants_of

AXES = {"alphas": [0.7], "ranks": [4], "seeds": [0], "steps": [], "scales": [1.0]}


def swept(**axes) -> list[Variant]:
    values = AXES | axes
    trainings: dict[Kind, Trainings] = {
        kind: Trainings(values["ranks"], values["seeds"], values["steps"]) for kind in TRAINED_KINDS
    }
    return variants_of(["theta0"], values["alphas"], trainings, values["scales"])


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        (Variant("theta0"), "theta0"),
        (Variant("merge", 0.7), "a0.7"),
        (Variant("merge", 1), "a1"),
        (Variant("text2img", 0.7, 4, 0), "text2img-a0.7-r4-s0"),
        (Variant("dreambooth", 0.25, 16, 12), "dreambooth-a0.25-r16-s12"),
        (Variant("text2img", 0.7, 4, 0, 500), "text2img-a0.7-r4-s0-step500"),
        (Variant("text2img", 0.7, 4, 0, None, 0.5), "text2img-a0.7-r4-s0-x0.5"),
        (Variant("text2img", 0.7, 4, 0, None, 2.0), "text2img-a0.7-r4-s0-x2"),
        (Variant("text2img", 0.7, 4, 0, None, 0), "text2img-a0.7-r4-s0-x0"),
        (Variant("text2img", 0.7, 4, 0, None, 0.1234567), "text2img-a0.7-r4-s0-x0.1234567"),
        (Variant("text2img", 0.7, 4, 3, 500, 0.5), "text2img-a0.7-r4-s3-step500-x0.5"),
        (Variant("textual_inversion", 0.7, 4, 3), "textual_inversion-a0.7-v4-s3"),
    ],
)
def test_a_name_says_all_that_a_variant_is(variant, name):
    assert variant.name == name
    assert variant.key == name.replace(".", "_")


@pytest.mark.parametrize(
    "axis",
    [
        {"alphas": [0.7, 0.3]},
        {"ranks": [2, 4]},
        {"seeds": [1, 0, 2]},
        {"steps": [500, 1000]},
        {"scales": [0.5, 1.0]},
    ],
)
def test_another_value_of_a_sweep_renames_nothing_and_moves_no_file(axis):
    before, after = swept(), swept(**axis)
    cells = {variant.name: variant_cell(variant) for variant in after}
    assert len(after) > len(before)
    for variant in before:
        assert cells[variant.name] == variant_cell(variant)
    assert dict(map(export_cell, before[1:])).items() <= dict(map(export_cell, after[1:])).items()


def test_no_two_variants_of_a_sweep_have_one_name():
    wide = swept(alphas=[0.7, 0.3], ranks=[4, 2], seeds=[0, 1, 2], steps=[500, 1000], scales=[0.5, 1.0])
    words = 2 * 2 * 3 * 3  # alphas, ranks, seeds; two kept steps and the end
    assert len(wide) == 1 + 2 + 2 * (2 * words) + words  # both LoRAs at two strengths, which a word does not have
    assert len({variant.name for variant in wide}) == len({variant.key for variant in wide}) == len(wide)


def test_variants_come_as_they_are_made_and_the_end_of_a_training_after_what_was_kept():
    assert [variant.name for variant in swept(steps=[5], scales=[0.5, 1.0])][:6] == [
        "theta0",
        "a0.7",
        "text2img-a0.7-r4-s0-step5-x0.5",
        "text2img-a0.7-r4-s0-step5",
        "text2img-a0.7-r4-s0-x0.5",
        "text2img-a0.7-r4-s0",
    ]


def test_a_kept_lora_lies_in_the_folder_of_its_training_and_every_strength_draws_by_one_file():
    end = Variant("text2img", 0.7, 4, 1)
    assert end.trained == "data/lora/text2img-a0.7-r4-s1"
    assert Variant("text2img", 0.7, 4, 1, 500).trained == "data/lora/text2img-a0.7-r4-s1/step-500"
    assert Variant("text2img", 0.7, 4, 1, 500, 0.5).trained == "data/lora/text2img-a0.7-r4-s1/step-500"
    assert Variant("text2img", 0.7, 4, 1, 500, 0.5).training == end
    assert Variant("text2img", 0.7, 4, 1, 500, 0.5).merge == Variant("merge", 0.7)
    assert {variant.model for variant in swept(seeds=[0, 1], steps=[5])} == {"data/base/theta0", "data/merged/a0.7"}


def test_what_has_no_lora_draws_by_its_model_alone():
    assert variant_cell(Variant("theta0")) == {"model": "data/base/theta0", "trained": "data/base/theta0", "lora": {}}
    assert variant_cell(Variant("merge", 0.3)) == {"model": "data/merged/a0.3", "trained": "data/merged/a0.3", "lora": {}}
    assert variant_cell(Variant("dreambooth", 0.3, 8, 2, 10, 0.5)) == {
        "model": "data/merged/a0.3",
        "trained": "data/lora/dreambooth-a0.3-r8-s2/step-10",
        "lora": {"lora": "data/lora/dreambooth-a0.3-r8-s2/step-10", "lora-scale": 0.5},
    }


def test_a_training_is_exported_once_at_its_end_and_full_strength():
    loras = [variant for variant in swept(steps=[5, 10], scales=[0.5, 1.0]) if variant.kind == "text2img"]
    assert len(loras) == 6
    assert dict(map(export_cell, loras)) == {
        "text2img-a0.7-r4-s0": {"source": "data/lora/text2img-a0.7-r4-s0", "setting": "export.lora_dtype"}
    }
    assert export_cell(Variant("merge", 0.7)) == ("model-a0.7", {"source": "data/merged/a0.7", "setting": "export.dtype"})
