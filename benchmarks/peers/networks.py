"""The torch networks of the comparisons, ours among them, by who wrote them."""

from collections.abc import Callable
from typing import Any

OURS = "our torch twin"
PACKAGE = "torch-resnet 0.0.4"
TORCHVISION = "torchvision"
TIMM = "timm"


def create(whose: str, model: str, num_classes: int) -> Any:
    """A network of the table's name with new weights.

    Raises:
        ImportError: the peer is not installed.
    """
    return _MAKERS[whose](model, num_classes)


def _ours(model: str, num_classes: int) -> Any:
    import torch_resnet

    return torch_resnet.create(model, num_classes)


def _package(model: str, num_classes: int) -> Any:
    from benchmarks.peers import torch_resnet_package

    return torch_resnet_package.create(model, num_classes)


def _torchvision(model: str, num_classes: int) -> Any:
    from tests.peers import import_torchvision

    return getattr(import_torchvision().models, model.lower())(num_classes=num_classes)


def _timm(model: str, num_classes: int) -> Any:
    from tests.peers import import_timm

    return import_timm().create_model(model.lower(), num_classes=num_classes)


_MAKERS: dict[str, Callable[[str, int], Any]] = {
    OURS: _ours,
    PACKAGE: _package,
    TORCHVISION: _torchvision,
    TIMM: _timm,
}
