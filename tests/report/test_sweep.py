from stages.pipeline.config import validate
from stages.pipeline.variants import Variant
from stages.report.naming import Namer
from stages.report.sweep import Sweep
from tests.report.small_comparison import NAMES, SWEEP

WIDE = Sweep(alpha=(0.7, 0.3), rank=(8, 2), dreambooth_rank=(4,), bases=("theta0", "theta1"), lora_scale=1.0)


def test_names_are_those_of_the_dag():
    """As the paths of dvc.yaml have them: numbers as they are written."""
    values = {"alpha": [0, 0.5, 1.0], "rank": [4], "dreambooth_rank": [2], "bases": ["theta0"], "lora_scale": 1.0}
    names = [variant.name for variant in validate("sweep", Sweep, values).variants]
    assert names[:4] == ["theta0", "a0", "a0.5", "a1.0"]
    assert names[4:] == [f"text2img-a{alpha}-r4" for alpha in ("0", "0.5", "1.0")] + [
        f"dreambooth-a{alpha}-r2" for alpha in ("0", "0.5", "1.0")
    ]


def test_whole_alpha_keeps_its_name():
    assert Variant("text2img", 1, 4).name == "text2img-a1-r4"


def test_first_values_lead():
    assert WIDE.leading[-3:] == [Variant("merge", 0.7), Variant("text2img", 0.7, 8), Variant("dreambooth", 0.7, 4)]


def test_sweep_rises():
    assert WIDE.rows("text2img") == [
        [Variant("merge", alpha), Variant("text2img", alpha, 2), Variant("text2img", alpha, 8)] for alpha in (0.3, 0.7)
    ]


def test_no_dreambooth():
    sweep = Sweep(alpha=(0,), rank=(4,), dreambooth_rank=(), bases=(), lora_scale=1.0)
    assert sweep.kinds == ["text2img"]
    assert [variant.name for variant in sweep.leading] == ["a0", "text2img-a0-r4"]


def test_labels_tell_variants_apart():
    for sweep in (SWEEP, WIDE):
        labels = [Namer(NAMES, sweep).label(variant) for variant in sweep.variants]
        assert len(set(labels)) == len(labels)


def test_alpha_is_the_weight_of_theta1():
    assert Namer(NAMES, SWEEP).heading(Variant("merge", 0.7)) == ("merge", "0.3 toon + 0.7 anime")


def test_nothing_is_said_of_alpha_where_nothing_is_merged():
    namer = Namer(NAMES, Sweep(alpha=(0,), rank=(4,), dreambooth_rank=(), bases=(), lora_scale=1.0))
    assert namer.heading(Variant("merge", 0)) == ("merge", "")
    assert namer.label(Variant("text2img", 0, 4)) == "text2img LoRA, rank 4"
