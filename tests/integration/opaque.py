"""Linear layers that are one operator of another package with packed weights, as libraries for 4 bits have them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

STEPS = 127
"""Of the packed integers, on either side of zero."""


@torch.library.custom_op("fxcache_tests::packed_linear", mutates_args=())
def packed_linear(x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """`x` times the weights, which are stored in one row, in the order of the inputs."""
    weight = packed.view(-1, out_features).float() * scales
    result = x.float() @ weight
    return (result if bias is None else result + bias).to(x.dtype)


@packed_linear.register_fake
def _(x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


class PackedLinear(nn.Module):
    """What takes the place of a linear layer; it has neither a `weight` nor a matrix of its shape."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().t()
        scales = weight.abs().amax(0) / STEPS
        packed = (weight / scales).round().clamp(-STEPS, STEPS).to(torch.int8)
        self.register_buffer("packed", packed.reshape(-1).contiguous())
        self.register_buffer("scales", scales)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return packed_linear(x, self.packed, self.scales, self.bias, self.out_features)


def pack(module: nn.Module) -> None:
    """Replace the linear layers of the blocks."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            setattr(module, name, PackedLinear(child))
        else:
            pack(child)
