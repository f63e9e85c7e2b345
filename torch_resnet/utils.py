"""Counting parameters and layers."""

from torch import nn


def count_parameters(model: nn.Module) -> int:
    """Number of trained values, those with `requires_grad`."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def count_layers(
    model: nn.Module, layer_type: type | tuple[type, ...] = (nn.Conv2d, nn.Linear)
) -> int:
    """Number of modules of `layer_type`; the papers do not count shortcuts, this does."""
    return sum(isinstance(module, layer_type) for module in model.modules())
