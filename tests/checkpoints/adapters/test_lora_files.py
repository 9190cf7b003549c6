"""Files as other programs write them: every tensor is read at the strength it was trained with, or its key is named."""

import json
import re
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

from stages.checkpoints.adapters.lora_factors import factors
from stages.checkpoints.adapters.lora_files import LoraFile, LoraModule, kohya_name, read_lora
from stages.checkpoints.adapters.lora_matching import modules_for
from stages.checkpoints.file_names import LORA_METADATA_KEY
from tests.checkpoints.adapters.foreign_loras import (
    CONVOLUTION,
    FILES,
    KOHYA,
    POINTWISE,
    QUERY,
    SHAPES,
    WORD,
    kohya,
    lora,
    pair,
    save,
)
from tests.checkpoints.tiny import CONFIGS

WEIGHTS = {
    "unet": {key: shape for key, shape in SHAPES.items() if not key.startswith(("text_model.", "encoder.", "decoder."))},
    "text_encoder": {key: shape for key, shape in SHAPES.items() if key.startswith("text_model.")},
}


def write(tmp_path, tensors, settings=None):
    text = settings if settings is None or isinstance(settings, str) else json.dumps(settings)
    metadata = None if text is None else {LORA_METADATA_KEY: text}
    save_file(tensors, tmp_path / "x.safetensors", metadata)
    return tmp_path / "x.safetensors"


def only(file: LoraFile) -> LoraModule:
    (module,) = file.modules.values()
    return module


def peft(module, rank=4):
    tensors = pair(module, rank)
    prefix = "text_encoder" if module == WORD else "unet"
    return {f"{prefix}.{module}.lora_A.weight": tensors["down"], f"{prefix}.{module}.lora_B.weight": tensors["up"]}


@pytest.mark.parametrize("name", FILES)
def test_each_layer_of_a_file_of_others(tmp_path, name):
    found = modules_for(read_lora(save(tmp_path, name)), WEIGHTS, CONFIGS["unet"])
    layers = {own: module for modules in found.values() for own, module in modules.items()}
    truth = FILES[name][1]
    assert layers.keys() == truth.keys()
    assert ("text_encoder" in found) == (WORD in truth)
    for own, module in layers.items():
        change = module.scale * factors(module.tensors).read().reshape(truth[own].shape)
        np.testing.assert_allclose(change, truth[own], rtol=1e-5, atol=1e-6)


def test_bfloat16_is_read(tmp_path):
    import torch
    from safetensors.torch import save_file as save_torch

    tensors = {key: torch.from_numpy(value.copy()).bfloat16() for key, value in kohya({QUERY: lora(QUERY, 2, 3.0)}).items()}
    save_torch(tensors, tmp_path / "x.safetensors")
    module = only(read_lora(tmp_path / "x.safetensors"))
    assert module.scale == 1.5
    expected = tensors[f"{KOHYA[QUERY]}.lora_up.weight"].double() @ tensors[f"{KOHYA[QUERY]}.lora_down.weight"].double()
    np.testing.assert_array_equal(factors(module.tensors).read(), expected.numpy())


def test_a_pickle_is_read_without_being_executed(tmp_path):
    import torch

    tensors = {f"unet.{QUERY}.lora.{part}.weight": torch.from_numpy(value) for part, value in pair(QUERY, 2).items()}
    torch.save(tensors, tmp_path / "pytorch_lora_weights.bin")
    module = only(read_lora(tmp_path / "pytorch_lora_weights.bin"))
    assert (module.kind, module.scale, module.shape) == ("LoRA", 1.0, (8, 8))


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"unet.lora_alpha": 8}, 2.0),
        ({"unet.lora_alpha": 8, "unet.use_rslora": True}, 4.0),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn2.to_q": 1, "attn1.to_q": 2}}, 0.5),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"to_q": 1, "attn1.to_q": 2}}, 0.25),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_q": 2, "to_q": 1}}, 0.5),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"n1.to_q": 2}}, 2.0),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {f"^{QUERY}": 2}}, 0.5),
    ],
)
def test_alpha_of_pefts_settings(tmp_path, settings, scale):
    assert only(read_lora(write(tmp_path, peft(QUERY), settings))).scale == scale


def test_the_rank_of_a_whole_lokr_stands_in_the_settings_alone(tmp_path):
    tensors = {f"unet.{QUERY}.lokr_w1": np.ones((2, 2), np.float32), f"unet.{QUERY}.lokr_w2": np.ones((4, 4), np.float32)}
    settings = {"unet.alpha": 4, "unet.r": 8, "unet.peft_type": "LOKR", "unet.rank_pattern": {"attn1.to_q": 16}}
    assert only(read_lora(write(tmp_path, tensors, settings))).scale == 0.25


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0])
@pytest.mark.parametrize("settings", ["unet.lora_alpha", "unet.alpha_pattern", ".alpha"])
def test_an_alpha_that_is_no_strength_is_refused_wherever_it_stands(tmp_path, settings, value):
    common = {"unet.lora_alpha": 8}
    tensors, given = {
        "unet.lora_alpha": ({}, {"unet.lora_alpha": value}),
        "unet.alpha_pattern": ({}, common | {"unet.alpha_pattern": {"to_q": value}}),
        ".alpha": ({f"unet.{QUERY}.alpha": np.array(value, np.float32)}, common),
    }[settings]
    message = "0, which some programs take as nothing added" if value == 0 else "not one finite number"
    with pytest.raises(ValueError, match=rf"x\.safetensors: .*alpha: {message}"):
        read_lora(write(tmp_path, peft(QUERY) | tensors, given))


@pytest.mark.parametrize("rank", [float("nan"), float("inf"), 0, 0.25, -2])
def test_a_rank_that_is_none_is_refused(tmp_path, rank):
    tensors = {f"unet.{QUERY}.lokr_w1": np.ones((2, 2), np.float32), f"unet.{QUERY}.lokr_w2": np.ones((4, 4), np.float32)}
    with pytest.raises(ValueError, match=rf"x\.safetensors: the metadata's unet\.r or rank_pattern: {rank:g} for {QUERY}"):
        read_lora(write(tmp_path, tensors, {"unet.alpha": 4, "unet.r": rank}))


@pytest.mark.parametrize("first", ["pissa", "PiSSA", "pissa_niter_16", "olora", "OLoRA", "corda", "loftq", "lora_ga"])
@pytest.mark.parametrize("stored_alpha", [False, True])
def test_what_was_trained_with_other_weights_beside_it_is_refused(tmp_path, first, stored_alpha):
    """PEFT takes such first weights off the model, so that B A alone is not what training added."""
    tensors = peft(QUERY) | ({f"unet.{QUERY}.alpha": np.array(2.0, np.float32)} if stored_alpha else {})
    path = write(tmp_path, tensors, {"unet.lora_alpha": 8, "unet.init_lora_weights": first})
    message = rf"x\.safetensors: the metadata's unet\.init_lora_weights is '{first}'.*path_initial_model_for_weight_conversion"
    with pytest.raises(ValueError, match=message):
        read_lora(path)


@pytest.mark.parametrize("first", [True, False, "gaussian", "eva", "orthogonal", None])
def test_first_weights_that_leave_the_model_as_it_is_are_read(tmp_path, first):
    settings = {"unet.lora_alpha": 8, "unet.init_lora_weights": first, "text_encoder.init_lora_weights": "pissa"}
    assert only(read_lora(write(tmp_path, peft(QUERY), settings))).scale == 2.0


def test_dora_that_lost_a_magnitude_is_refused(tmp_path):
    settings = {"unet.lora_alpha": 8, "unet.use_dora": True, "text_encoder.lora_alpha": 8, "text_encoder.use_dora": False}
    magnitude = {f"unet.{QUERY}.lora_magnitude_vector": np.ones(8, np.float32)}
    assert read_lora(write(tmp_path, peft(QUERY) | magnitude | peft(WORD), settings)).kinds() == {"DoRA", "LoRA"}
    for tensors, layer in ((peft(QUERY), QUERY), (peft(QUERY) | magnitude | peft(POINTWISE), POINTWISE)):
        with pytest.raises(ValueError, match=rf"x\.safetensors: unet\.{layer}: has no lora_magnitude_vector.* use_dora"):
            read_lora(write(tmp_path, tensors, settings))


@pytest.mark.parametrize(
    "pattern",
    [
        "(([a-z_0-9.])+)+!", "(a|b)*!", r"(?:\w+\.?)+!", "(.*){9}!", "(?x:(a+) *)!", "((a?)+)+!", ".*" * 6 + "!",
        "a?" * 60 + "!", "(.|[a-z])" * 30 + "!", "(" * 30 + "a" + ")" * 30,
    ],
)  # fmt: skip
def test_a_pattern_that_would_hang_is_refused(tmp_path, pattern):
    for name in ("alpha_pattern", "rank_pattern"):
        settings = {"unet.lora_alpha": 8, f"unet.{name}": {"to_k": 1, pattern: 2}}
        with pytest.raises(ValueError, match=rf"x\.safetensors: the metadata's unet\.{name} cannot be read: .* takes too long"):
            read_lora(write(tmp_path, peft(QUERY), settings))


def test_a_pattern_for_each_of_many_layers(tmp_path):
    """More than Python's `re` keeps compiled."""
    names = [f"down_blocks.0.attentions.{number}.to_q" for number in range(600)]
    tensors = {f"unet.{name}.lora_{part}.weight": np.ones((1, 1), np.float32) for name in names for part in "AB"}
    settings = {"unet.lora_alpha": 8, "unet.alpha_pattern": {name: number + 1 for number, name in enumerate(names)}}
    start = time.process_time()
    modules = read_lora(write(tmp_path, tensors, settings)).modules.values()
    assert {module.key.removeprefix("unet."): module.alpha for module in modules} == settings["unet.alpha_pattern"]
    assert time.process_time() - start < 3


def test_a_long_name_makes_a_pattern_slow(tmp_path):
    name = f"unet.{'a.' * 20_000}"
    tensors = {f"{name}.lora_A.weight": np.ones((1, 1), np.float32), f"{name}.lora_B.weight": np.ones((1, 1), np.float32)}
    with pytest.raises(ValueError, match=r"unet\.alpha_pattern cannot be read: .* takes too long"):
        read_lora(write(tmp_path, tensors, {"unet.lora_alpha": 8, "unet.alpha_pattern": {".*x.*!": 1}}))


@pytest.mark.parametrize(
    "pattern",
    [
        QUERY, re.escape(QUERY), f"^(?:{re.escape(QUERY)}|{'|'.join(f'mid_block.{n}' for n in range(999))})", "(to_q|q_proj)",
        ".*attn1.*", ".*down.*attn.*to_.*", r"down_blocks\.\d+\.attentions\.[0-9]+\..*(attn1|attn2)\.(to_q|to_k)",
        r"^(?!.*attn2).*to_q", r"(?P<block>down|up)_blocks.*", r"(transformer_)?blocks.0.attn1.to_[()|*+]?q", "to_q(?:)",
    ],
)  # fmt: skip
def test_patterns_as_people_write_them_are_followed(tmp_path, pattern):
    settings = {"unet.lora_alpha": 8, "unet.alpha_pattern": {pattern: 2, "to_q": 1}}
    assert only(read_lora(write(tmp_path, peft(QUERY), settings))).scale == 0.5


def test_dora_is_known(tmp_path):
    tensors = peft(QUERY) | {f"unet.{QUERY}.lora_magnitude_vector": np.ones(8, np.float32)}
    assert read_lora(write(tmp_path, tensors)).kinds() == {"DoRA"}


def test_settings_count_under_a_pickles_name_too(tmp_path):
    path = write(tmp_path, peft(QUERY), {"unet.lora_alpha": 8}).rename(tmp_path / "x.pt")
    assert only(read_lora(path)).scale == 2.0


def test_an_alpha_that_is_a_whole_number(tmp_path):
    tensors = kohya({QUERY: lora(QUERY, 2, 1.0) | {"alpha": np.array(3)}})
    assert only(read_lora(write(tmp_path, tensors))).scale == 1.5


def test_quantized_factors_are_refused(tmp_path):
    tensors = kohya({QUERY: {key: value.astype(np.int8) for key, value in lora(QUERY, 2, 1.0).items()}})
    with pytest.raises(ValueError, match=r"x\.safetensors: .*attn1_to_q: its values are no floating-point numbers"):
        read_lora(write(tmp_path, tensors))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({f"{KOHYA[QUERY]}.dora_scale": 1}, r"attn1_to_q\.dora_scale: DoRA in kohya's keys"),
        (
            {"lora_te_text_model_embeddings_token_embedding.lora_up.weight": 1},
            r"token_embedding\.lora_up.*: of a table of embed",
        ),
        (
            {"lora_te_embeddings_position_embedding.lora_up.weight": 1},
            r"position_embedding\.lora_up.*: of a table of embeddings",
        ),
        ({"text_encoder.embeddings.token_embedding.lora_embedding_A": 1}, r"lora_embedding_A: of a table of embeddings"),
        ({f"{KOHYA[POINTWISE]}.diff": 1}, r"proj_in\.diff: a whole difference"),
        ({f"{KOHYA[POINTWISE]}.diff_b": 1}, r"proj_in\.diff_b: a whole difference"),
        ({"bundle_emb.word.string_to_param.*": 1}, r"bundle_emb\.word.*an embedding"),
        ({"lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha": 1}, r"lora_te2_.*SDXL"),
        ({f"{KOHYA[POINTWISE]}.oft_blocks": 1}, r"oft_blocks: not a tensor of a LoRA"),
        ({f"unet.{POINTWISE}.lora_B.bias": 1}, r"lora_B\.bias: not a tensor of a LoRA"),
        ({f"base_model.model.{POINTWISE}.lora_A.weight": 1}, r"adapter_config\.json"),
        ({f"{KOHYA[POINTWISE]}.lora_up.weight": 1}, r"proj_in: holds up, which is no whole adapter"),
        ({f"{KOHYA[POINTWISE]}.alpha": 1}, r"proj_in: holds nothing but its alpha"),
        ({f"{KOHYA[POINTWISE]}.hada_w1_a": 1}, r"proj_in: holds hada_w1_a, which is no whole adapter"),
        ({f"{KOHYA[QUERY]}.lokr_w1": 1}, r"attn1_to_q: holds down and lokr_w1 and up"),
        ({f"unet.{QUERY}.lora_A.weight": 1}, r"holds down of lora_unet_.*attn1_to_q twice"),
        ({f"{KOHYA[QUERY]}.alpha": 0}, r"attn1_to_q\.alpha: 0, which some programs take"),
        ({f"{KOHYA[QUERY]}.alpha": np.nan}, r"attn1_to_q\.alpha: not one finite number"),
    ],
)
def test_what_is_not_read_is_named(tmp_path, more, message):
    tensors = kohya({QUERY: lora(QUERY, 2, 1.0)}) | {key: np.array(value, np.float32) for key, value in more.items()}
    with pytest.raises(ValueError, match=rf"x\.safetensors: .*{message}"):
        read_lora(write(tmp_path, tensors))


@pytest.mark.parametrize(
    "shapes",
    [
        {"lora_up.weight": (8, 3), "lora_down.weight": (4, 8)},
        {"lora_up.weight": (8,), "lora_down.weight": (4, 8)},
        {"lora_up.weight": (8, 0), "lora_down.weight": (0, 8)},
        {"lora_up.weight": (8, 2, 1, 1), "lora_mid.weight": (3, 3, 3, 3), "lora_down.weight": (2, 8, 1, 1)},
        {"hada_w1_a": (8, 2), "hada_w1_b": (2, 8), "hada_w2_a": (8, 2), "hada_w2_b": (2, 4)},
        {"lokr_w1": (8,), "lokr_w2": (1, 8)},
        {"lokr_w1_a": (4, 2), "lokr_w1_b": (2, 4), "lokr_w2_a": (2, 1), "lokr_w2_b": (1, 2)},
    ],
)
def test_factors_that_do_not_fit_are_named(tmp_path, shapes):
    tensors = {f"{KOHYA[QUERY]}.{key}": np.ones(shape, np.float32) for key, shape in shapes.items()}
    with pytest.raises(ValueError, match=r"x\.safetensors: .*(fit|no matrix|ranks)"):
        read_lora(write(tmp_path, tensors))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "holds no JSON object"),
        ({"text_encoder.lora_alpha": 8}, r"no unet\.lora_alpha, so the strength"),
        ("[" * 100_000, "is not JSON"),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"(": 2}}, r"unet\.alpha_pattern cannot be read: '\(' is no regular"),
        (
            {"unet.lora_alpha": 8, "unet.alpha_pattern": {"a{99999999999}": 2}},
            r"unet\.alpha_pattern cannot be read: .* is no r",
        ),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": ["to_q"]}, r"unet\.alpha_pattern cannot be read: no JSON object"),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"to_q": None}}, r"alpha_pattern or lora_alpha cannot be read"),
        ({"unet.lora_alpha": 10**400}, r"alpha_pattern or lora_alpha cannot be read"),
    ],
)
def test_settings_that_do_not_say_the_alpha_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=rf"x\.safetensors: .*{message}"):
        read_lora(write(tmp_path, peft(QUERY), settings))


def test_a_file_without_any_lora_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"x\.safetensors: holds no LoRA weights for a UNet or a text encoder: some\.weight"):
        read_lora(write(tmp_path, {"some.weight": np.ones(1, np.float32)}))
    with pytest.raises(ValueError, match=r"x\.safetensors: holds no LoRA weights for a UNet or a text encoder: it is empty"):
        read_lora(write(tmp_path, {}))


def test_layers_of_another_model_are_named(tmp_path):
    for name in ("lora_unet_down_blocks_9_attentions_0_proj_in", "lora_unet_input_blocks_9_1_proj_in"):
        tensors = {f"{name}.{key}": value for key, value in lora(POINTWISE, 2, 1.0).items()}
        with pytest.raises(ValueError, match=rf"x\.safetensors: does not belong to this model, which has no {name}"):
            modules_for(read_lora(write(tmp_path, tensors)), WEIGHTS, CONFIGS["unet"])
    tensors = {f"{KOHYA[QUERY]}.{key}": value for key, value in lora(CONVOLUTION, 2, 1.0).items()}
    with pytest.raises(ValueError, match=r"does not fit this model: .*attn1_to_q was trained beside .* 8 rows of 36"):
        modules_for(read_lora(write(tmp_path, tensors)), WEIGHTS, CONFIGS["unet"])


def test_one_layer_under_both_of_its_names_is_refused(tmp_path):
    names = (KOHYA[POINTWISE], "lora_unet_middle_block_1_proj_in")
    tensors = {f"{name}.{key}": value for name in names for key, value in lora(POINTWISE, 2, 1.0).items()}
    with pytest.raises(ValueError, match=rf"holds {POINTWISE} twice"):
        modules_for(read_lora(write(tmp_path, tensors)), WEIGHTS, CONFIGS["unet"])


def test_no_two_layers_have_one_name():
    for component, weights in WEIGHTS.items():
        assert len({kohya_name(component, key) for key in weights}) == len(weights)
