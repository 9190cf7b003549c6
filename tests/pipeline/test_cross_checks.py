"""Settings of several stages that do not go together are refused before anything runs."""

import copy
from pathlib import Path

import pytest
import yaml

from stages.pipeline.checks.cross_checks import look
from stages.pipeline.compose import compose
from stages.sync import check_together, describe, validate_all

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def composed(tmp_path_factory):
    out = tmp_path_factory.mktemp("params") / "params.yaml"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        compose(out)
    return yaml.safe_load(out.read_text())


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def changed(composed, changes):
    params = copy.deepcopy(composed)
    for path, value in changes.items():
        *sections, leaf = path.split(".")
        place = params
        for section in sections:
            place = place[section]
        place[leaf] = value
        if path.startswith("sweep.") and leaf in params["cells"]:
            params["cells"][leaf] = value
    return params


ORIGINAL = {
    "source": {"path": "data/mini/base", "repo": None, "revision": None, "file": None, "sha256": None},
    "config": None,
    "fill": False,
    "ema": False,
    "prediction_type": None,
}
HUB = {"path": None, "repo": "owner/name", "revision": "0" * 40, "file": None, "sha256": None}
BING = {"kind": "bing", "query": "x", "limit": 10, "timeout": 30}
FOREIGN = {"kind": "folder", "path": "stages", "masks": None}

REFUSED = [
    ({"trigger": "mychar"}, "trigger: given 'mychar': no prompt of generate.subject_prompts names it"),
    (
        {"generate.other_prompts": ["a portrait", "Asuka, smiling"]},
        "generate.other_prompts: 'Asuka, smiling' names the trigger 'asuka': put it among subject_prompts",
    ),
    *(
        (
            {"generate.other_prompts": [], "compare.primary": key},
            f"compare.primary: given '{key}': it is measured on generate.other",
        )
        for key in ("trigger_specificity", "leak", "drift", "prompt_alignment_other", "diversity_other")
    ),
    *(
        (
            {"generate.seeds": [7], "compare.primary": key},
            f"compare.primary: given '{key}': it takes two generate.seeds at least",
        )
        for key in ("diversity", "diversity_other")
    ),
    (
        {"sweep.kept_steps.text2img": [100, 250], "train_text2img.keep_every": 100},
        "sweep.kept_steps.text2img: names step 250, and train_text2img.keep_every (100) keeps 100, 200, ",
    ),
    (
        {"sweep.kept_steps.dreambooth": [100]},
        "sweep.kept_steps.dreambooth: names step 100, and train_dreambooth.keep_every (None) keeps none of 500",
    ),
    ({"merge.method": "add_difference"}, "merge.method: add_difference takes base.theta2, which is null: name a checkpoint"),
    ({"base.theta2": ORIGINAL}, "merge.method: weighted_sum does not take base.theta2, which is not null"),
    ({"base.theta1": None}, "merge.method: weighted_sum takes base.theta1, which is null"),
    ({"base.theta1": None, "merge.method": "passthrough"}, "sweep.bases: names theta1, and base.theta1 is null"),
    ({"base.theta1": None, "merge.text_encoder": "theta1"}, "merge.text_encoder: given 'theta1': base.theta1 is null"),
    ({"base.theta1": None, "vae.source": "theta1"}, "vae.source: given 'theta1': base.theta1 is null"),
    ({"base.theta1": None, "merge.method": "passthrough", "sweep.alpha": [0, 1]}, "sweep.alpha: given [0, 1]: passthrough"),
    ({"train_text2img.tuned": "full", "sweep.rank": [2, 4]}, "sweep.rank: train_text2img.tuned is full, which has no rank"),
    ({"train_dreambooth.optimizer": "prodigy"}, "train_dreambooth.optimizer: given 'prodigy': pip install prodigyopt"),
    ({"train_text2img.optimizer": "adamw_8bit"}, "train_text2img.optimizer: given 'adamw_8bit': pip install bitsandbytes"),
    ({"train_text2img.init_lora_weights": "orthogonal", "sweep.rank": [4, 3]}, "train_text2img.init_lora_weights: orthogonal"),
    ({"download.held_out_images": 112}, "download.held_out_images: given 112: of at most 112 images, some must be left"),
    (
        {"download.held_out_images": 5, "download.max_images": 5},
        "download.held_out_images: given 5: of at most 5 images, some must be left to train on; set it lower",
    ),
    ({"download.min_images": 113}, "download.min_images: given 113: data/mini/asuka holds 112 images"),
    ({"generate.clip_skip": 2}, "generate.clip_skip: given 2: theta0's text encoder has 2 layers"),
    ({"caption.model.path": "data/mini"}, "caption.model.path: data/mini is no model in the transformers layout"),
    ({"embed.clip.path": "stages"}, "embed.clip.path: stages is no model in the transformers layout"),
    ({"embed.dino.path": "stages"}, "embed.dino.path: stages is no model in the transformers layout"),
    ({"download.source": BING}, "caption.model: data/mini/captioner knows the drawings of data/mini and nothing else"),
    ({"download.source": FOREIGN, "download.min_images": 1}, "caption.model: data/mini/captioner knows the drawings"),
    (
        {"train_text2img.init_lora_weights": "orthogonal", "train_text2img.rank_pattern": {"a": 3}},
        "rank_pattern has 3",
    ),
    ({"train_dreambooth.instance_prompt": None}, "train_dreambooth.instance_prompt: is null: name the subject"),
    ({"sweep.alpha": [0.1, 0.5], "merge.component_alpha": {"unet": 0.3, "text_encoder": 0.3}}, "merge.component_alpha leaves"),
    (
        {"subjects": {"rei": "rei"}},
        "subjects: names 'rei', which is no image set of data/mini/asuka (a folder such as 1_rei)",
    ),
    (
        {"subjects": {"a": "asuka", "b": "rei"}, "download.held_out_images": 1, "download.source": BING},
        "download.held_out_images: given 1: there are 2 subjects: at least one image of each, or 0",
    ),
    (
        {"merge.rescale_betas_zero_snr": True, "generate.noise_scheduler": "heun_karras"},
        "generate.noise_scheduler: given 'heun_karras': it cannot begin in noise alone: take ddim",
    ),
    (
        {"train_text2img.peft": {"peft_type": "OFT", "oft_block_size": 4}, "sweep.rank": [2, 4]},
        'sweep.rank: given [2, 4]: no setting of train_text2img.peft is "rank", so one value is enough',
    ),
    (
        {"train_text2img.peft": {"peft_type": "OFT", "oft_block_size": "rank"}, "sweep.lora_scale": [0.5, 1.0]},
        "sweep.lora_scale: given 0.5: OFT (train_text2img.peft) has no strength but 1 and 0",
    ),
    ({"train_dreambooth.peft": {"peft_type": "NOFT"}}, "train_dreambooth.peft: given NOFT: PEFT"),
    (
        {"train_text2img.optimizer": "lion_pytorch.Lion"},
        "train_text2img.optimizer: given 'lion_pytorch.Lion': there is no module lion_pytorch",
    ),
    ({"cells.rank": [4]}, "cells.rank: [4] is not sweep.rank, [8]"),
    ({"cells.seed": [1, 2]}, "cells.seed: [1, 2] is not sweep.seed, [0]"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_could_not_work_is_refused_by_its_leaf(composed, changes, message, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    configs = validate_all(changed(composed, changes))
    assert message in "\n".join(finding.text for finding in look(configs) if finding.refused)
    with pytest.raises(ValueError, match=r"\w"):
        check_together(configs)


SAID = [
    ({"train_dreambooth.instance_prompt": "someone"}, "train_dreambooth.instance_prompt: 'someone' does not name the trigger"),
    ({"caption.prefix": None}, "caption.prefix: None does not name the trigger 'asuka'"),
    ({"generate.resolution": 128}, "generate.resolution: 128, and the LoRAs are trained at encode_images.resolution 64"),
    ({"generate.clip_skip": 1}, "generate.clip_skip: 1, and clip_skip is 0: training and drawing should read one layer"),
    ({"download.source": BING, "caption.model": HUB}, "embed.clip: data/mini/scorer knows the drawings of data/mini alone"),
    ({"download.source": BING, "caption.model": HUB}, "embed.dino: data/mini/dino knows the drawings of data/mini alone"),
    (
        {"generate.subject_prompts": ["asuka", "a portrait, smiling"]},
        "generate.subject_prompts: 'a portrait, smiling' does not name the trigger 'asuka'",
    ),
    ({"generate.subject_prompts": ["asuka"]}, "generate.subject_prompts: of one prompt, nothing can be said of others"),
    ({"generate.other_prompts": ["a portrait"]}, "generate.other_prompts: of one prompt, nothing can be said of others"),
    (
        {"subjects": {"a": "asuka", "b": "rei"}, "download.source": BING, "caption.model": HUB},
        "generate.subject_prompts: none names 'rei' (subjects.b): nothing is drawn or said of it",
    ),
    (
        {"generate.subject_prompts": ["asuka, (glasses:1.3)", "asuka"]},
        "generate.subject_prompts: 'asuka, (glasses:1.3)': (glasses:1.3) is read as words; prompt_syntax=a1111 reads",
    ),
    ({"sweep.seed": [0, 7]}, "sweep.seed: of two trainings, intervals are very wide: take three or more, or one"),
]


@pytest.mark.parametrize(("changes", "message"), SAID, ids=[message for _, message in SAID])
def test_what_may_not_be_meant_is_said_aloud(composed, changes, message, capsys):
    check_together(validate_all(changed(composed, changes)))
    assert f"warning: {message}" in capsys.readouterr().err


def test_some_of_the_loras_that_are_kept_may_draw(composed):
    params = changed(composed, {"sweep.kept_steps.text2img": [300], "train_text2img.keep_every": 100})
    params["generate"] |= {"other_prompts": []}
    params["compare"]["primary"] = "subject_fidelity"
    assert not [finding for finding in look(validate_all(params)) if finding.refused]


def test_the_default_experiment_says_nothing_but_what_it_is(composed, capsys):
    configs = validate_all(composed)
    check_together(configs)
    assert capsys.readouterr().err == ""
    assert describe(configs) == "experiment mini: toon and anime merged at alpha 0.7, taught 'asuka'; 5 variants"


def test_an_experiment_without_a_trigger_needs_none(composed):
    assert look(validate_all(changed(composed, {"trigger": None}))) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"download.held_out_images": 111},
        {"download.held_out_images": 4, "download.max_images": 5},
        {"download.held_out_images": 0, "download.max_images": 1},
        {"generate.other_prompts": [], "compare.primary": "subject_fidelity"},
        {"generate.subject_prompts": ["ASUKA", "Asuka, smiling"], "generate.other_prompts": ["a portrait", "a house"]},
        {"sweep.seed": [4]},
        {"sweep.seed": [2, 0, 1]},
        {"sweep.lora_scale": [0.5, 1.0]},
    ],
)
def test_what_works_is_neither_refused_nor_remarked_on(composed, changes):
    assert look(validate_all(changed(composed, changes))) == []


def test_dreambooth_settings_do_not_matter_where_there_is_no_dreambooth(composed):
    changes = {"sweep.dreambooth_rank": [], "train_dreambooth.instance_prompt": None}
    changes |= {"train_dreambooth.clip_skip": 9, "class_images.clip_skip": 9, "class_images.num_class_images": 0}
    assert look(validate_all(changed(composed, changes))) == []
