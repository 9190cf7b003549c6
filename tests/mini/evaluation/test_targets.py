from dataclasses import replace

from stages.mini.evaluation.targets import PIXEL_ART_TARGETS, TARGETS, Target


def test_the_figures_of_an_image_set_decide_a_target():
    target = Target("loras", "features", lambda figures: figures.get("x"), least=0.8)
    assert target.line({"x": 0.8}).endswith("reached")
    assert target.line({"x": 0.79}).endswith("MISSED")
    assert target.line({}).endswith("not measured")
    most = replace(target, least=None, most=0.2)
    assert most.line({"x": 0.2}).endswith("reached")
    assert most.line({"x": 0.3}).endswith("MISSED")


def test_the_worst_variant_counts():
    loras = {target.words: target for target in TARGETS + PIXEL_ART_TARGETS if target.section == "loras"}
    figures = {
        "text2img-a0.7-r4": {"subject": 0.9, "pixel_art": 0.7},
        "dreambooth-a0.7-r4": {"subject": 0.85, "pixel_art": 1.0},
        "a0.7": {"subject": 0.1, "pixel_art": 0.0},
        "theta0": {"subject": 0.3, "pixel_art": 0.05},
    }
    found = {words: target.figure(figures) for words, target in loras.items()}
    assert sorted(value or 0.0 for value in found.values()) == [0.05, 0.3, 0.7, 0.85]
