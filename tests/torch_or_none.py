"""torch and its twin; None where torch is not installed, and tests marked `torch` are skipped."""

import importlib.util
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or importlib.util.find_spec("torch"):
    import torch

    import torch_resnet
else:
    torch = torch_resnet = None

__all__ = ["import_torchvision", "torch", "torch_resnet"]


def import_torchvision() -> Any:
    """torchvision, whose import fails beside a CPU torch for want of its compiled ops.

    The networks need none of them: an empty module in the place of the one that registers them
    lets the rest be imported.
    """
    name = "torchvision._meta_registrations"
    sys.modules.setdefault(name, types.ModuleType(name))
    import torchvision.models

    return torchvision
