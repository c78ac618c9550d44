"""Weights in the order that oneDNN multiplies in, for passes without gradients on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirada.core.linear import replaced
from mirada.model import Model

from .share import share

DTYPES = (torch.float32, torch.bfloat16)


class Packed(nn.Linear):
    """Stands where an nn.Linear stood and holds its tensors, and its weight a second time, in
    blocks that lie as they are read. Equal to rounding; a pass with gradients goes the plain way.

    speed: a batch of 32 tokens x 32 through MiniLM on one core of an AMD EPYC took 0.80 of the time
    in float32 and 0.94 in bfloat16.
    """

    def __init__(self, plain: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.weight, self.bias = plain.weight, plain.bias
        self.ordered = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.dtype != self.weight.dtype:
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.ordered, self.bias, "none", [], "")


def packed(model: Model) -> Model:
    """The model with packed projections; the one given stays, and both share their tensors.

    It takes the memory of the projections once more. They are packed as they are now: weights that
    change afterwards need to be packed anew. What cannot be packed here (another device or dtype, a
    build of torch without oneDNN, blocks of quantized weights) stays as it is.
    """
    other = share(model)
    if torch.backends.mkldnn.is_available():
        replaced(other, {module: Packed(module) for module in other.body.modules()
                         if type(module) is nn.Linear and module.weight.device.type == "cpu"
                         and module.weight.dtype in DTYPES})
    return other
