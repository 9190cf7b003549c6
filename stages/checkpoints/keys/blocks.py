"""The blocks of a UNet that can have a weight each, as the merge-block-weighted extension of A1111 counts them.

An SD1 UNet has 25: IN00 to IN11, M00, OUT00 to OUT11. As in that extension (bbc-mc/sdweb-merge-block-weighted-gui,
scripts/mbw/merge_block_weighted.py) the time embedding goes with IN00 and the output layers with the last OUT block.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from stages.checkpoints.keys.key_maps import UNET_PREFIX, TensorSpec

BlockWeights = Mapping[str, float] | Sequence[float]

_PARTS = {"input_blocks": "IN", "middle_block": "M", "output_blocks": "OUT"}
_NUMBERED = re.compile(r"(input_blocks|output_blocks)\.(\d+)\.")


def block_names(specs: Iterable[TensorSpec]) -> dict[str, str]:
    """The block of every tensor of a UNet, by the tensor's diffusers name, in the order in which the blocks run."""
    blocks = {spec.name: _block(spec.ldm_name.removeprefix(UNET_PREFIX)) for spec in specs}
    last = max((block for block in blocks.values() if block and block.startswith("OUT")), default="OUT00")
    return {name: block or last for name, block in blocks.items()}


def block_alphas(weights: BlockWeights, specs: Iterable[TensorSpec]) -> dict[str, float]:
    """The weight of theta1 in every tensor whose block has one, by the tensor's diffusers name.

    Args:
        weights: By block name, of some blocks; or of all blocks in order: IN, M, OUT.
        specs: The UNet's tensors.

    Raises:
        ValueError: A block is not there, or the list is not as long as there are blocks.
    """
    blocks = block_names(specs)
    names = sorted(set(blocks.values()), key=lambda name: (list(_PARTS.values()).index(name.rstrip("0123456789")), name))
    if not isinstance(weights, Mapping):
        if len(weights) != len(names):
            raise ValueError(f"blocks: {len(weights)} weights; this UNet has {len(names)} blocks, {names[0]} to {names[-1]}")
        weights = dict(zip(names, weights, strict=True))
    unknown = sorted(weights.keys() - set(names))
    if unknown:
        raise ValueError(f"blocks: there is no {', '.join(unknown)}; this UNet has {', '.join(names)}")
    return {name: weights[block] for name, block in blocks.items() if block in weights}


def _block(ldm_name: str) -> str | None:
    """The block of a tensor; None for the output layers, which go with whichever block is last."""
    if match := _NUMBERED.match(ldm_name):
        return f"{_PARTS[match[1]]}{int(match[2]):02}"
    if ldm_name.startswith("middle_block."):
        return "M00"
    return "IN00" if ldm_name.startswith("time_embed.") else None
