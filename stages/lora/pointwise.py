"""1x1 convolutions as the products of matrices that they are.

A transformer block of a UNet begins and ends with one, and so do most of its residual blocks. With channels last, the places
of an image are the rows of a matrix, and its product with the weights takes half as long on a CPU as the convolution, forward
and backward, and is the same to rounding.
"""

from torch import Tensor, nn
from torch.nn import functional


class PointwiseConv2d(nn.Conv2d):
    """A convolution of kernel size 1 that is computed as a product of matrices while it is trained or trained through.

    While it is not trained it computes as a convolution, so that it gives the very bits that a pipeline gives.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, in, h, w) to (B, out, h, w)."""
        if not self.training:
            return super().forward(input)
        return functional.linear(input.movedim(1, -1), self.weight[:, :, 0, 0], self.bias).movedim(-1, 1)


def use_matrix_products(model: nn.Module) -> None:
    """Compute the 1x1 convolutions of a model as `PointwiseConv2d`, in place; weights and their names stay the same."""
    for module in model.modules():
        if type(module) is nn.Conv2d and _is_pointwise(module):
            module.__class__ = PointwiseConv2d


def _is_pointwise(convolution: nn.Conv2d) -> bool:
    """Whether each place of the output depends on the same place of the input alone, and on all its channels."""
    plain = (convolution.kernel_size, convolution.stride, convolution.groups) == ((1, 1), (1, 1), 1)
    return plain and convolution.padding in ((0, 0), "valid")
