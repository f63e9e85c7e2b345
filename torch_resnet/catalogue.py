"""Building a network from a full name or a row of the table."""

from collections.abc import Callable
from typing import Any

from resnet_spec import ClassifierSpec, ResNetSpec, UnknownNameError, find_spec, list_models
from torch_resnet.layers import linear
from torch_resnet.network import ResidualNetwork
from torch_resnet.preact_resnet import PreActResNet
from torch_resnet.resnet import ResNet
from torch_resnet.shortcut import SHORTCUTS

__all__ = ["create", "from_spec", "list_models"]


def create(name: str, num_classes: int | None = None, **overrides: Any) -> ResidualNetwork:
    """A network by its full name, such as `WideResNet28-10`, and a linear head on request.

    Args:
        name: see `list_models` and `resnet_spec.find_spec`.
        num_classes: size of a linear head; None leaves the pooled features.
        overrides: any keyword argument of `ResNet`; `shortcut` also by its name in the table.

    Raises:
        ValueError: the name is unknown (the nearest ones are offered) or a value out of range.
        TypeError: an override is no argument of a model.
    """
    return from_spec(find_spec(name), num_classes, **overrides)


def from_spec(
    spec: ResNetSpec, num_classes: int | None = None, **overrides: Any
) -> ResidualNetwork:
    """The network of a row of the table; arguments and errors as in `create`."""
    num_classes = ClassifierSpec(spec, num_classes).num_classes  # a ValueError if it is no size
    base = PreActResNet if spec.preact else ResNet
    if "shortcut" in overrides:
        overrides["shortcut"] = _find_shortcut(overrides["shortcut"])
    model = base(**{**base.spec_arguments(spec), **overrides})
    if num_classes is not None:
        model.set_head(linear(model.out_planes, num_classes))
    return model


def _find_shortcut(shortcut: str | Callable[..., Any]) -> Callable[..., Any]:
    if not isinstance(shortcut, str):
        return shortcut
    if shortcut not in SHORTCUTS:
        raise UnknownNameError("shortcut", shortcut, SHORTCUTS)
    return SHORTCUTS[shortcut]
