from dataclasses import replace

from stages.pipeline.config import validate
from stages.pipeline.variants import Variant
from stages.report.naming import Namer
from stages.report.sweep import Sweep
from tests.report.small_comparison import NAMES, SWEEP

WIDE = replace(SWEEP, alpha=(0.7, 0.3), rank=(8, 2))
KEPT = {"text2img": (100, 200), "dreambooth": (), "textual_inversion": ()}
FULL = replace(WIDE, seed=(3, 1), lora_scale=(1.0, 0.5), kept_steps=KEPT)
"""Several values of each axis."""


def test_names_are_those_of_the_dag():
    """As the paths of dvc.yaml have them: numbers as they are written."""
    values = {
        "alpha": [0, 0.5, 1.0],
        "rank": [4],
        "dreambooth_rank": [2],
        "vectors": [],
        "seed": [7],
        "bases": ["theta0"],
        "lora_scale": [1.0],
        "kept_steps": {"text2img": [], "dreambooth": [], "textual_inversion": []},
    }
    names = [variant.name for variant in validate("sweep", Sweep, values).variants]
    assert names[:4] == ["theta0", "a0", "a0.5", "a1.0"]
    assert names[4:] == [f"text2img-a{alpha}-r4-s7" for alpha in ("0", "0.5", "1.0")] + [
        f"dreambooth-a{alpha}-r2-s7" for alpha in ("0", "0.5", "1.0")
    ]


def test_whole_alpha_keeps_its_name():
    assert Variant("text2img", 1, 4, 0).name == "text2img-a1-r4-s0"


def test_first_values_lead():
    assert WIDE.leading[-3:] == [
        Variant("merge", 0.7),
        Variant("text2img", 0.7, 8, 0),
        Variant("dreambooth", 0.7, 4, 0),
    ]
    assert FULL.leading_lora("text2img") == Variant("text2img", 0.7, 8, 3, None, 1.0)


def test_sweep_rises():
    assert WIDE.tables("text2img") == {
        "sweep": [
            [Variant("merge", alpha), Variant("text2img", alpha, 2, 0), Variant("text2img", alpha, 8, 0)]
            for alpha in (0.3, 0.7)
        ]
    }


def test_other_axes_have_tables_of_their_own_where_they_have_several_values():
    tables = FULL.tables("text2img")
    assert list(tables) == ["sweep", "strength", "seed"]
    assert [[variant.name for variant in row] for row in tables["strength"]] == [
        ["a0.7", "text2img-a0.7-r8-s3-step100-x0.5", "text2img-a0.7-r8-s3-step200-x0.5", "text2img-a0.7-r8-s3-x0.5"],
        ["a0.7", "text2img-a0.7-r8-s3-step100", "text2img-a0.7-r8-s3-step200", "text2img-a0.7-r8-s3"],
    ]
    assert [[variant.name for variant in row] for row in tables["seed"]] == [
        ["a0.7", "text2img-a0.7-r8-s3", "text2img-a0.7-r8-s1"]
    ]
    assert list(FULL.tables("dreambooth")) == ["sweep", "strength", "seed"], "a strength has no need of kept steps"


def test_every_variant_of_a_table_is_one_of_the_sweep():
    shown = {variant for kind in FULL.kinds for rows in FULL.tables(kind).values() for row in rows for variant in row}
    assert shown <= set(FULL.variants)


def test_an_arm_is_what_differs_in_the_training_seed_alone():
    arms = FULL.arms
    assert sum(map(len, arms.values())) == len(FULL.variants)
    for first, variants in arms.items():
        assert [variant.seed for variant in variants] == ([None] if first.rank is None else [3, 1])
        assert {replace(variant, seed=None) for variant in variants} == {replace(first, seed=None)}


def test_trainings_are_counted_once():
    assert [variant.name for variant in FULL.trained][:2] == ["text2img-a0.3-r2-s3", "text2img-a0.3-r2-s1"]
    assert len(FULL.trained) == 2 * 2 * 2 + 2 * 1 * 2


def test_no_dreambooth():
    sweep = replace(SWEEP, alpha=(0,), dreambooth_rank=(), bases=())
    assert sweep.kinds == ["text2img"]
    assert [variant.name for variant in sweep.leading] == ["a0", "text2img-a0-r4-s0"]


def test_labels_tell_variants_apart():
    for sweep in (SWEEP, WIDE, FULL):
        namer = Namer(NAMES, sweep)
        labels = [namer.label(variant) for variant in sweep.variants]
        assert len(set(labels)) == len(labels)
        arms = [namer.arm(first) for first in sweep.arms]
        assert len(set(arms)) == len(arms)
        assert not any("seed" in arm for arm in arms)


def test_alpha_is_the_weight_of_theta1():
    assert Namer(NAMES, SWEEP).heading(Variant("merge", 0.7)) == ("merge", "0.3 toon + 0.7 anime")


def test_nothing_is_said_of_alpha_where_nothing_is_merged():
    namer = Namer(NAMES, replace(SWEEP, alpha=(0,), dreambooth_rank=(), bases=()))
    assert namer.heading(Variant("merge", 0)) == ("merge", "")
    assert namer.label(Variant("text2img", 0, 4, 0)) == "text2img LoRA, rank 4"


def test_a_word_has_vectors_for_a_rank_and_one_strength():
    sweep = replace(SWEEP, vectors=(4, 1), lora_scale=(0.5, 1.0), bases=())
    names = [variant.name for variant in sweep.variants if variant.is_word]
    assert names == ["textual_inversion-a0.7-v1-s0", "textual_inversion-a0.7-v4-s0"]
    leading = sweep.leading_lora("textual_inversion")
    assert (leading.rank, leading.lora_scale) == (4, 1.0)
    assert set(sweep.tables("textual_inversion")) == {"sweep"}
    namer = Namer(NAMES, sweep)
    assert namer.heading(leading) == ("+ textual inversion", "4 vectors")
    assert [namer.column("sweep", each)[0] for each in sweep.tables("textual_inversion")["sweep"][0][1:]] == [
        "1 vector",
        "4 vectors",
    ]
