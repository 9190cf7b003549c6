from stages.pipeline.config import SweepConfig
from stages.report.variants import Namer, Sweep, Variant
from tests.report.small_comparison import NAMES, SWEEP

WIDE = Sweep(("theta0", "theta1"), (0.7, 0.3), {"text2img": (8, 2), "dreambooth": (4,)})


def test_names_are_those_of_the_dag():
    config = SweepConfig(alpha=(0.7, 0.3), rank=(8, 2), dreambooth_rank=(4,), bases=("theta0", "theta1"))
    assert {variant.name for variant in WIDE.variants} == set(config.variants)
    assert len(WIDE.variants) == len(config.variants)


def test_whole_alpha_keeps_its_name():
    assert Variant("text2img", 1, 4).name == "text2img-a1-r4"


def test_first_values_lead():
    assert WIDE.leading[-3:] == [Variant("merge", 0.7), Variant("text2img", 0.7, 8), Variant("dreambooth", 0.7, 4)]


def test_sweep_rises():
    assert WIDE.lines("text2img") == [
        [Variant("merge", alpha), Variant("text2img", alpha, 2), Variant("text2img", alpha, 8)] for alpha in (0.3, 0.7)
    ]


def test_no_dreambooth():
    sweep = Sweep((), (0,), {"text2img": (4,), "dreambooth": ()})
    assert sweep.kinds == ["text2img"]
    assert [variant.name for variant in sweep.leading] == ["a0", "text2img-a0-r4"]


def test_labels_tell_variants_apart():
    for sweep in (SWEEP, WIDE):
        labels = [Namer(NAMES, sweep).label(variant) for variant in sweep.variants]
        assert len(set(labels)) == len(labels)


def test_alpha_is_the_weight_of_theta1():
    assert Namer(NAMES, SWEEP).heading(Variant("merge", 0.7)) == ("merge", "0.3 toon + 0.7 anime")


def test_nothing_is_said_of_alpha_where_nothing_is_merged():
    namer = Namer(NAMES, Sweep((), (0,), {"text2img": (4,)}))
    assert namer.heading(Variant("merge", 0)) == ("merge", "")
    assert namer.label(Variant("text2img", 0, 4)) == "text2img LoRA, rank 4"
