"""Small LoRA files as other programs write them for the model of `tiny.py`, with what each adds to which weight.

What is right is computed here by the formulas of LyCORIS and ComfyUI, written anew: the rank is read off the decomposed
factor, the scale is alpha / rank, and a LoKr of two whole factors is not scaled.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from stages.checkpoints.file_names import LORA_FILE, LORA_METADATA_KEY
from stages.checkpoints.keys.key_maps import component_specs
from tests.checkpoints.tiny import CONFIGS

Tensors = dict[str, np.ndarray]

ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
QUERY, OUT = f"{ATTENTION}.to_q", f"{ATTENTION}.to_out.0"
POINTWISE = "mid_block.attentions.0.proj_in"
CONVOLUTION = "down_blocks.1.resnets.0.conv1"
WORD = "text_model.encoder.layers.0.self_attn.q_proj"
KOHYA = {
    QUERY: "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
    OUT: "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0",
    POINTWISE: "lora_unet_mid_block_attentions_0_proj_in",
    CONVOLUTION: "lora_unet_down_blocks_1_resnets_0_conv1",
    WORD: "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
}
LDM = {
    QUERY: "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q",
    OUT: "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_out_0",
    POINTWISE: "lora_unet_middle_block_1_proj_in",
    CONVOLUTION: "lora_unet_input_blocks_3_0_in_layers_2",
    WORD: "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
}
SHAPES = {spec.name: spec.shape for name in CONFIGS for spec in component_specs(name, CONFIGS[name])}


def pair(module: str, rank: int, seed: int = 0) -> Tensors:
    """A LoRA's two factors in the shapes of one layer."""
    out, width, *kernel = SHAPES[f"{module}.weight"]
    random = np.random.default_rng([seed, *module.encode()])
    down, up = random.normal(size=(rank, width, *kernel)), random.normal(size=(out, rank, *(1 for _ in kernel)))
    return {"down": down.astype(np.float32), "up": up.astype(np.float32)}


def added(tensors: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """What one layer's tensors in kohya's keys add to its weight; their keys without the layer's name."""
    held = {key: value.astype(np.float64) for key, value in tensors.items()}
    if "lora_up.weight" in held:
        up, down = held["lora_up.weight"], held["lora_down.weight"]
        rank = len(down)
        if "lora_mid.weight" in held:
            down = np.einsum("abxy,bi->aixy", held["lora_mid.weight"], down.reshape(rank, -1))
        change = np.einsum("oa,ai->oi", up.reshape(-1, rank), down.reshape(rank, -1))
    elif "hada_w1_a" in held:
        rank = len(held["hada_w1_b"])
        change = _built(held, "hada_w1_a", "hada_w1_b", "hada_t1") * _built(held, "hada_w2_a", "hada_w2_b", "hada_t2")
    else:
        rank = next((len(held[key]) for key in ("lokr_w2_b", "lokr_w1_b") if key in held), None)
        w1 = held["lokr_w1"] if "lokr_w1" in held else _built(held, "lokr_w1_a", "lokr_w1_b", "")
        w2 = held["lokr_w2"] if "lokr_w2" in held else _built(held, "lokr_w2_a", "lokr_w2_b", "lokr_t2")
        change = np.einsum("ab,cd...->acbd...", w1, w2)
    scale = float(held["alpha"].reshape(())) / rank if rank and "alpha" in held else 1.0
    return scale * change.reshape(shape)


def _built(held: Tensors, first: str, second: str, core: str) -> np.ndarray:
    if core in held:
        return np.einsum("abxy,bi,ao->oixy", held[core], held[second], held[first])
    return held[first] @ held[second]


def kohya(layers: Mapping[str, Mapping[str, np.ndarray]], names: Mapping[str, str] = KOHYA) -> Tensors:
    """A file's tensors of those of each layer."""
    return {f"{names[module]}.{key}": value for module, tensors in layers.items() for key, value in tensors.items()}


def lora(module: str, rank: int, alpha: float | None) -> Tensors:
    tensors = {f"lora_{part}.weight": value for part, value in pair(module, rank).items()}
    return tensors if alpha is None else tensors | {"alpha": np.array(alpha, np.float32)}


def _named(**shapes: tuple[int, ...]) -> Tensors:
    random = np.random.default_rng(7)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def _layers() -> dict[str, dict[str, Tensors]]:
    """By file, the tensors of each layer in kohya's keys."""
    alpha, random = np.array(3.0, np.float32), np.random.default_rng(3)
    shapes = {"lora_up.weight": (8, 3, 1, 1), "lora_mid.weight": (3, 3, 3, 3), "lora_down.weight": (3, 4, 1, 1)}
    tucker = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()} | {"alpha": alpha}
    core = {"hada_w1_a": (2, 8), "hada_w1_b": (2, 4), "hada_w2_a": (2, 8), "hada_w2_b": (2, 4)}
    return {
        "an alpha for each layer": {
            QUERY: lora(QUERY, 2, 1.0), OUT: lora(OUT, 4, 16.0), POINTWISE: lora(POINTWISE, 2, 0.5),
            CONVOLUTION: lora(CONVOLUTION, 3, 3.0), WORD: lora(WORD, 4, 1.0),
        },
        "no alpha": {module: lora(module, rank, None) for module, rank in ((QUERY, 2), (OUT, 4), (WORD, 3))},
        "Tucker": {CONVOLUTION: tucker},
        "LoHa": {
            QUERY: _named(hada_w1_a=(8, 2), hada_w1_b=(2, 8), hada_w2_a=(8, 2), hada_w2_b=(2, 8)) | {"alpha": alpha},
            CONVOLUTION: _named(**core, hada_t1=(2, 2, 3, 3), hada_t2=(2, 2, 3, 3)) | {"alpha": alpha},
            POINTWISE: _named(hada_w1_a=(8, 3), hada_w1_b=(3, 8), hada_w2_a=(8, 3), hada_w2_b=(3, 8)) | {"alpha": alpha},
            WORD: _named(hada_w1_a=(8, 2), hada_w1_b=(2, 8), hada_w2_a=(8, 2), hada_w2_b=(2, 8)),
        },
        "LoKr": {
            QUERY: _named(lokr_w1=(4, 2), lokr_w2=(2, 4)) | {"alpha": np.array(np.inf, np.float32)},
            OUT: _named(lokr_w1=(2, 2), lokr_w2_a=(4, 1), lokr_w2_b=(1, 4)) | {"alpha": alpha},
            POINTWISE: _named(lokr_w1_a=(4, 2), lokr_w1_b=(2, 4), lokr_w2_a=(2, 2), lokr_w2_b=(2, 2)) | {"alpha": alpha},
            CONVOLUTION: _named(lokr_w1=(2, 2), lokr_t2=(2, 2, 3, 3), lokr_w2_a=(2, 4), lokr_w2_b=(2, 2)) | {"alpha": alpha},
            WORD: _named(lokr_w1_a=(2, 1), lokr_w1_b=(1, 2), lokr_w2=(4, 4)) | {"alpha": alpha},
        },
        "LoKr of a whole kernel": {CONVOLUTION: _named(lokr_w1=(2, 2), lokr_w2=(4, 2, 3, 3)) | {"alpha": alpha}},
        "LoKr of a flat kernel": {CONVOLUTION: _named(lokr_w1=(2, 2), lokr_w2_a=(4, 2), lokr_w2_b=(2, 18)) | {"alpha": alpha}},
        "LoRA and LoHa": {
            QUERY: lora(QUERY, 2, 1.0),
            OUT: _named(hada_w1_a=(8, 2), hada_w1_b=(2, 8), hada_w2_a=(8, 2), hada_w2_b=(2, 8)) | {"alpha": alpha},
        },
    }  # fmt: skip


LAYERS = _layers()


def truth(layers: Mapping[str, Tensors]) -> dict[str, np.ndarray]:
    """What each layer adds to its weight."""
    return {module: added(tensors, SHAPES[f"{module}.weight"]) for module, tensors in layers.items()}


def _dotted(layers: Mapping[str, Tensors], down: str, up: str, word: str) -> Tensors:
    """The names of diffusers' scripts; `word` stands for the layer of the text encoder."""
    tensors = {}
    for module, parts in layers.items():
        name = f"text_encoder.{word}" if module == WORD else f"unet.{module}"
        tensors |= {f"{name}.{down}": parts["lora_down.weight"], f"{name}.{up}": parts["lora_up.weight"]}
    return tensors


def _files() -> dict[str, tuple[Tensors, dict[str, np.ndarray]]]:
    files = {name: (kohya(layers), truth(layers)) for name, layers in LAYERS.items()}
    alphas, plain = LAYERS["an alpha for each layer"], LAYERS["no alpha"]
    files["blocks of the LDM layout"] = kohya(alphas, LDM), truth(alphas)
    bare = KOHYA | {WORD: KOHYA[WORD].replace("text_model_", "")}
    files["a text encoder without its upper level"] = kohya(alphas, bare), truth(alphas)
    shaped = {module: tensors | {"alpha": tensors["alpha"].reshape(1).astype(np.float16)} for module, tensors in alphas.items()}
    files["alphas of one number in half precision"] = kohya(shaped), truth(alphas)
    flat = {
        POINTWISE: {key: value.reshape(value.shape[:2]) if value.ndim else value for key, value in alphas[POINTWISE].items()}
    }
    files["a pointwise convolution as matrices"] = kohya(flat), truth({POINTWISE: alphas[POINTWISE]})
    files["diffusers' script of 2023"] = _dotted(plain, "lora.down.weight", "lora.up.weight", WORD), truth(plain)
    names = ("lora_A.weight", "lora_B.weight", WORD.removeprefix("text_model."))
    files["PEFT's names without settings"] = _dotted(plain, *names), truth(plain)
    words = ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight", WORD)
    files["a text encoder's linear layers"] = _dotted({WORD: plain[WORD]}, *words), truth({WORD: plain[WORD]})
    owners = {QUERY: f"{ATTENTION}.processor.to_q", OUT: f"{ATTENTION}.processor.to_out"}
    processors = {
        f"{owners[module]}_lora.{part}.weight": plain[module][f"lora_{part}.weight"]
        for module in owners
        for part in ("down", "up")
    }
    files["attention processors"] = processors, truth({module: plain[module] for module in owners})
    files["attention processors with prefix"] = (
        {f"unet.{key}": value for key, value in processors.items()}
        | {
            f"text_encoder.{WORD.removesuffix('q_proj')}to_q_lora.{part}.weight": plain[WORD][f"lora_{part}.weight"]
            for part in ("down", "up")
        },
        truth(plain),
    )
    return files


FILES = _files()


def save(folder: Path, name: str) -> Path:
    """Write one of the files."""
    path = folder / "foreign.safetensors"
    save_file({key: np.array(value, order="C") for key, value in FILES[name][0].items()}, path)
    return path


INCOMPLETE = {
    "init_lora_weights": {"unet.lora_alpha": 8, "unet.r": 4, "unet.init_lora_weights": "pissa"},
    "use_dora": {"unet.lora_alpha": 8, "unet.r": 4, "unet.use_dora": True},
}
"""PEFT's settings with which two factors are not all that training changed, by the one that says so."""


def save_incomplete(folder: Path, setting: str) -> Path:
    """Write a file of two factors with such settings, named as in the directory of a training."""
    parts, path = pair(QUERY, 4), folder / LORA_FILE
    tensors = {f"unet.{QUERY}.lora_A.weight": parts["down"], f"unet.{QUERY}.lora_B.weight": parts["up"]}
    save_file(tensors, path, {LORA_METADATA_KEY: json.dumps(INCOMPLETE[setting])})
    return path
