"""What adapters add to a weight: the products of their factors, as PEFT, LyCORIS and ComfyUI compute them.

LoRA (Hu et al. 2021, arXiv:2106.09685), LoHa and LoKr (Yeh et al. 2023, arXiv:2309.14859), the latter two also with the Tucker
decomposition of a convolution's kernel (FedPara, Hyeon-Woo et al. 2021, arXiv:2108.06098, proposition 3).
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stages.checkpoints.files.tensors import Array, LazyTensor, LazyTensors

HADAMARD = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
KRONECKER = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")


@dataclass(frozen=True)
class Factor:
    """A matrix that is stored whole, or as a product.

    Attributes:
        whole: (rows, columns, …), or None.
        first: (rows, r, …); with a core (r, rows).
        second: (r, columns, …).
        core: (r, r, height, width), of a Tucker decomposition.
    """

    whole: LazyTensor | None
    first: LazyTensor | None = None
    second: LazyTensor | None = None
    core: LazyTensor | None = None

    @property
    def rank(self) -> int | None:
        """The inner dimension of the product; None for a matrix that is stored whole."""
        return None if self.second is None else self.second.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns), and for a convolution, where they are known, height and width of the kernel.

        Raises:
            ValueError: The parts do not fit each other.
        """
        if self.whole is not None:
            if len(self.whole.shape) < 2:
                raise ValueError(f"a factor of shape {self.whole.shape} is no matrix")
            return self.whole.shape
        if self.first is None or self.second is None:
            raise ValueError("a factor is missing")
        first, second = self.first.shape, self.second.shape
        if min(len(first), len(second)) < 2 or not self._fits(first, second):
            raise ValueError(f"factors of shapes {first} and {second} do not fit each other")
        if self.core is None:
            return first[0], math.prod(second[1:])
        return (first[1], second[1], *self.core.shape[2:])

    def _fits(self, first: tuple[int, ...], second: tuple[int, ...]) -> bool:
        rank = second[0]
        if self.core is None:
            return first[1] == rank > 0 and math.prod(first[2:]) == 1
        return (*first[:1], *self.core.shape[:2]) == (rank, rank, rank) and rank > 0 and len(first) == len(second) == 2

    def read(self) -> Array:
        """The matrix, in float64: rounded to float32 later, it is the same in whatever order the product was summed."""
        if self.whole is not None:
            return self.whole.read().astype(np.float64)
        assert self.first is not None and self.second is not None
        first, second = (part.read().astype(np.float64) for part in (self.first, self.second))
        if self.core is not None:
            return np.einsum("ijkl,jr,ip->prkl", self.core.read().astype(np.float64), second, first, optimize=True)
        rank = second.shape[0]
        return first.reshape(-1, rank) @ second.reshape(rank, -1)


@dataclass(frozen=True)
class Product:
    """What an adapter adds before it is scaled: one factor, or the Hadamard or the Kronecker product of two."""

    kind: Literal["matrix", "hadamard", "kronecker"]
    factors: tuple[Factor, ...]

    @property
    def rank(self) -> int | None:
        """What alpha is divided by; None where no factor is decomposed."""
        return next((factor.rank for factor in reversed(self.factors) if factor.rank), None)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, values of a row); a convolution's kernel is flattened into its row."""
        rows, columns, *kernel = self.factors[-1].shape
        if self.kind == "kronecker":
            rows, columns = rows * self.factors[0].shape[0], columns * self.factors[0].shape[1]
        return rows, math.prod((columns, *kernel))

    def read(self) -> Array:
        """(rows, values a row), in float64."""
        first, *more = (factor.read() for factor in self.factors)
        if self.kind == "hadamard":
            first = first * more[0]
        elif self.kind == "kronecker":
            second = more[0]
            first = np.kron(first.reshape(*first.shape[:2], *(1,) * (second.ndim - 2)), second)
        return first.reshape(self.shape)


def factors(tensors: LazyTensors) -> Product:
    """The product that one layer's tensors stand for.

    Args:
        tensors: By part: down and up, or LyCORIS' names of LoHa's or of LoKr's factors.

    Raises:
        ValueError: They do not fit each other.
    """
    part = tensors.get
    if "up" in tensors:
        product = Product("matrix", (Factor(None, part("up"), part("down")),))
    elif "hada_w1_a" in tensors:
        sides = (Factor(None, part(f"hada_w{n}_a"), part(f"hada_w{n}_b"), part(f"hada_t{n}")) for n in (1, 2))
        product = Product("hadamard", tuple(sides))
    else:
        first = Factor(part("lokr_w1"), part("lokr_w1_a"), part("lokr_w1_b"))
        second = Factor(part("lokr_w2"), part("lokr_w2_a"), part("lokr_w2_b"), part("lokr_t2"))
        product = Product("kronecker", (first, second))
    _check(product)
    return product


def _check(product: Product) -> None:
    shapes = [factor.shape for factor in product.factors]
    ranks = {factor.rank for factor in product.factors if factor.rank}
    if product.kind == "hadamard" and shapes[0] != shapes[1]:
        raise ValueError(f"factors of shapes {shapes[0]} and {shapes[1]} do not fit each other")
    if len(ranks) > 1:
        raise ValueError(f"factors of the ranks {sorted(ranks)}, which programs scale in different ways")


def without_mid(down: LazyTensor, mid: LazyTensor) -> LazyTensor:
    """The one convolution (r, in, height, width) that `down` (r, in, 1, 1) and `mid` (r, r, height, width) are together.

    Raises:
        ValueError: They do not fit each other.
    """
    rank, width = down.shape[0], math.prod(down.shape[1:])
    if len(mid.shape) != 4 or mid.shape[:2] != (rank, rank):
        raise ValueError(f"lora_mid {mid.shape} does not fit lora_down {down.shape}")

    def load() -> Array:
        core, first = mid.read().astype(np.float64), down.read().reshape(rank, width).astype(np.float64)
        return np.einsum("mnkl,ni->mikl", core, first).astype(np.float32)

    return LazyTensor((rank, width, *mid.shape[2:]), "F32", load, sources=(down, mid))
