"""How one layer of the table is spelled in torch, and the initial values of convolutions."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from resnet_spec import Conv


def conv(spec: Conv) -> nn.Conv2d:
    """(n, in_planes, h, w) -> (n, out_planes, h2, w2); `draw_convolutions` draws its weights."""
    return nn.Conv2d(
        spec.in_planes,
        spec.out_planes,
        spec.kernel_size,
        stride=spec.stride,
        padding=spec.padding,
        bias=False,
    )


def batch_norm(planes: int) -> nn.BatchNorm2d:
    """(n, planes, h, w) -> same; eps 1e-5, momentum 0.1."""
    return nn.BatchNorm2d(planes)


def linear(in_features: int, out_features: int) -> nn.Linear:
    """(n, in_features) -> (n, out_features): the head that `create` sets."""
    return nn.Linear(in_features, out_features)


class AveragePool(nn.Module):
    """The mean over height and width."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c"]:
        return x.mean(dim=(2, 3))


def draw_convolutions(model: nn.Module) -> None:
    """Draws every convolution that is still as its constructor left it, in place.

    Kaiming normal, He et al. 2015 (arXiv:1502.01852, section 2.2, backward case). Weights that
    the `__init__` of a block has set stay.
    """
    with torch.inference_mode(False):  # in which torch counts no changes
        as_built = _count_changes(nn.Conv2d(1, 1, 1, device="meta").weight)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight
            # On the device "meta" there is nothing to draw, and torch would import for a second.
            if not weight.is_meta and _count_changes(weight) in (None, as_built):
                nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")


def _count_changes(weight: Tensor) -> int | None:
    """The changes to a tensor that torch counts, all but those through `.data`.

    None in inference mode, where it counts none.
    """
    return None if weight.is_inference() else weight._version
