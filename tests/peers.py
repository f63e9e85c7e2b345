"""Other packages' models, imported as they can be beside a CPU build of torch."""

import sys
import types
from typing import Any


def import_torchvision() -> Any:
    """torchvision, whose import fails beside a CPU torch for want of its compiled ops.

    The networks need none of them: an empty module in the place of the one that registers them
    lets the rest be imported.
    """
    name = "torchvision._meta_registrations"
    sys.modules.setdefault(name, types.ModuleType(name))
    import torchvision.models

    return torchvision
