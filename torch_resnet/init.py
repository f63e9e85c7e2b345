"""Initial values: Kaiming normal convolutions, BN at 1 and 0, residual branches at zero."""

import torch
from torch import Tensor, nn


def resnet_init(model: nn.Module, zero_init_residual: bool = False) -> None:
    """Redraws every convolution and resets every BatchNorm of `model`, in place.

    Convolutions as in He et al. 2015 (arXiv:1502.01852, section 2.2, backward case).
    `zero_init_residual` as in Goyal et al. 2017 (arXiv:1706.02677, section 5.1): the layer that a
    block's class names as its `last_layer` starts at zero, the scale of a BatchNorm or the weight
    of a convolution. A block of your own without that name is left as it is.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            _draw(module.weight)
        elif isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    if zero_init_residual:
        _zero_residual_branches(model)


def init_new(model: nn.Module, zero_init_residual: bool) -> None:
    """As `resnet_init`, of a network just built: what a block's `__init__` has set stays.

    Only convolutions as their constructor left them are drawn; no BatchNorm needs a reset.
    """
    with torch.inference_mode(False):  # in which torch counts nothing
        as_built = _count_changes(nn.Conv2d(1, 1, 1, device="meta").weight)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and _count_changes(module.weight) in (None, as_built):
            _draw(module.weight)
    if zero_init_residual:
        _zero_residual_branches(model)


def _count_changes(weight: Tensor) -> int | None:
    """As torch counts those of a tensor, other than through `.data`; None in inference mode."""
    return None if weight.is_inference() else weight._version


def _draw(weight: Tensor) -> None:
    if not weight.is_meta:  # nothing to draw, and torch would import a second's worth for it
        nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")


def _zero_residual_branches(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(last_layer := getattr(module, "last_layer", None), str):
            nn.init.zeros_(module.get_submodule(last_layer).get_parameter("weight"))
