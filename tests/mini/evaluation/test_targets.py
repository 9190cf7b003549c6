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
    figures = {
        "text2img-a0.7-r4-s0": {"subject": 0.9, "leak": 0.02, "hair_as_asked": 0.9, "pixel_art": 0.7, "pixel_art_leak": 0.03},
        "dreambooth-a0.7-r4-s0": {"subject": 0.85, "leak": 0.07, "hair_as_asked": 1.0, "pixel_art": 1.0, "pixel_art_leak": 0.0},
        "text2img-a0.7-r4-s0-step100": {
            "subject": 0.0,
            "leak": 1.0,
            "hair_as_asked": 0.0,
            "pixel_art": 0.0,
            "pixel_art_leak": 1.0,
        },
        "text2img-a0.7-r4-s0-x0.5": {
            "subject": 0.0,
            "leak": 1.0,
            "hair_as_asked": 0.0,
            "pixel_art": 0.0,
            "pixel_art_leak": 1.0,
        },
        "a0.7": {"subject": 0.1, "leak": 0.5, "hair_as_asked": 0.6, "pixel_art": 0.0, "pixel_art_leak": 0.6},
        "theta0": {"subject": 0.3, "leak": 0.4, "hair_as_asked": 0.5, "pixel_art": 0.05, "pixel_art_leak": 0.7},
    }
    of_loras = [target for target in TARGETS if target.section == "loras"]
    assert [target.figure(figures) for target in of_loras] == [0.85, 0.07, 0.9, 0.3]
    assert [target.figure(figures) for target in PIXEL_ART_TARGETS] == [0.7, 0.03, 0.05]
    assert [target.line(figures).split()[-1] for target in of_loras] == ["reached", "reached", "reached", "MISSED"]
