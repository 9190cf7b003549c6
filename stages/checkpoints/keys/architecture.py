"""Which kind of network a checkpoint holds: told from its tensors' keys and shapes, whatever the file is called."""

from collections.abc import Mapping
from typing import NamedTuple

_SDXL_WIDTH, _SDXL_REFINER_WIDTH = 2048, 1280
# What other networks than those of SD1 and SD2 are called in their own files.
_OTHER_KINDS = {
    "conditioner.embedders.": "SDXL",
    "model.diffusion_model.joint_blocks.": "SD3",
    "joint_blocks.": "SD3",
    "model.diffusion_model.double_blocks.": "FLUX",
    "double_blocks.": "FLUX",
    "control_model.": "ControlNet",
    "lora_unet_": "LoRA",
    "lora_te": "LoRA",
    "string_to_param": "textual inversion",
}
_FIRST_AND_LAST_CONVOLUTIONS = {
    "model.diffusion_model.input_blocks.0.0.weight": "model.diffusion_model.out.2.weight",
    "input_blocks.0.0.weight": "out.2.weight",
    "conv_in.weight": "conv_out.weight",
}
_UNUSUAL_INPUTS = {5: "depth-to-image", 7: "upscaling", 8: "InstructPix2Pix", 9: "inpainting"}

Shapes = Mapping[str, tuple[int, ...]]


class Architecture(NamedTuple):
    """What tells Stable Diffusion's generations apart.

    Attributes:
        context_width: Width of the text embeddings that the UNet attends to; 0 where no attention was found.
        linear_projection: Whether the transformers' projections are linear layers (SD2, SDXL) or 1x1 convolutions (SD1).
    """

    context_width: int
    linear_projection: bool

    def __str__(self) -> str:
        large = {_SDXL_WIDTH: "SDXL", _SDXL_REFINER_WIDTH: "SDXL refiner"}
        generation = large.get(self.context_width, "SD2" if self.linear_projection else "SD1")
        return f"{generation}-type (context width {self.context_width})"


def architecture(shapes: Shapes) -> Architecture:
    """Tell the generation of a UNet from its tensors' shapes; the keys may be in either layout."""
    widths = [shape[-1] for key, shape in shapes.items() if key.endswith("attn2.to_k.weight") and shape]
    projections = [shape for key, shape in shapes.items() if key.endswith("proj_in.weight")]
    return Architecture(next(iter(widths), 0), any(len(shape) == 2 for shape in projections))


def refuse_other_kinds(shapes: Shapes) -> None:
    """Refuse what is not a text-to-image model of the SD1 or SD2 kind, by its name.

    Raises:
        ValueError: It is of another kind.
    """
    kinds = {kind for key in shapes for prefix, kind in _OTHER_KINDS.items() if key.startswith(prefix)}
    width = architecture(shapes).context_width
    if width in (_SDXL_WIDTH, _SDXL_REFINER_WIDTH):
        kinds.add("SDXL")
    kinds |= {
        f"{_UNUSUAL_INPUTS[channels]} ({channels} input channels)"
        for channels in _channels_beside_latents(shapes)
        if channels in _UNUSUAL_INPUTS
    }
    if kinds:
        raise ValueError(
            f"is of the kind {', '.join(sorted(kinds))}: only text-to-image models of the kinds SD1 and SD2 are read"
        )


def _channels_beside_latents(shapes: Shapes) -> set[int]:
    """The UNet's input channels, if they are not as many as its output channels: it then takes a mask or an image too."""
    found = set()
    for first, last in _FIRST_AND_LAST_CONVOLUTIONS.items():
        taken, given = shapes.get(first, ()), shapes.get(last, (0,))
        if len(taken) == 4 and taken[1:2] != given[:1]:
            found.add(taken[1])
    return found
