"""Building a network from a full name or a row of the table."""

from typing import Any

from resnet_spec import ClassifierSpec, ResNetSpec, find_spec, list_models
from resnet_spec.arguments import check_keywords
from torch_resnet.layers import linear
from torch_resnet.network import KEYWORDS, ResidualNetwork
from torch_resnet.preact_resnet import PreActResNet
from torch_resnet.resnet import ResNet

__all__ = ["create", "from_spec", "list_models"]


def create(name: str, num_classes: int | None = None, **overrides: Any) -> ResidualNetwork:
    """A network by its full name, such as `WideResNet28-10`, and a linear head on request.

    Args:
        name: see `list_models` and `resnet_spec.find_spec`.
        num_classes: size of a linear head; None leaves the pooled features.
        overrides: any keyword argument of `ResNet`.

    Raises:
        ValueError: the name is unknown (the nearest ones are offered) or a value out of range.
        TypeError: a model takes no such argument.
    """
    check_keywords("create", overrides, KEYWORDS)
    return from_spec(find_spec(name), num_classes, **overrides)


def from_spec(
    spec: ResNetSpec, num_classes: int | None = None, **overrides: Any
) -> ResidualNetwork:
    """The network of a row of the table; arguments and errors as in `create`."""
    check_keywords("from_spec", overrides, KEYWORDS)
    num_classes = ClassifierSpec(spec, num_classes).num_classes  # a ValueError if it is no size
    model = ResidualNetwork(spec, **overrides)
    # These classes differ in their constructors' arguments only.
    model.__class__ = PreActResNet if spec.preact else ResNet
    if num_classes is not None:
        model.set_head(linear(model.out_planes, num_classes))
    return model
