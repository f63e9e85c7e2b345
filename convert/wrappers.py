"""What is put around a state dict: a prefix before every name, a dictionary with other entries."""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

# What torch's DataParallel and torch.compile put before every name, and what people call the
# network in a module around it (a Lightning module, most often). No layout of ours begins so.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")
_COUNT = "n_averaged"  # of torch's AveragedModel, which calls the network `module`
# By the class, where torch's wrappers keep the network.
_INNER = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
}
Value = TypeVar("Value")


def unwrap(arrays: dict[str, Value]) -> tuple[dict[str, Value], list[str]]:
    """The arrays without the prefixes that all their names share, and notes on what was taken."""
    notes = []
    if _COUNT in arrays and all(n.startswith(_PREFIXES[0]) for n in arrays if n != _COUNT):
        arrays = {name: array for name, array in arrays.items() if name != _COUNT}
        notes.append(f"left out: {_COUNT!r}, of how many weights these are the average")
    while arrays and (
        prefix := next((p for p in _PREFIXES if all(n.startswith(p) for n in arrays)), None)
    ):
        arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
        notes.append(f"every name began with {prefix!r}, which was taken off")
    return arrays, notes


def unwrap_module(model: Any) -> Any:
    """The network inside of what torch puts around it, to compile it or to spread it."""
    while inner := _INNER.get(type(model).__name__):
        model = getattr(model, inner)
    return model


def only_state_dict(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict in a training script's dictionary, where there is exactly one.

    Other entries may be arrays of one number: PyTorch's own example keeps the best accuracy so.
    """
    found = [entry for entry in content.values() if _is_state_dict(entry)]
    has_weights = any(math.prod(getattr(entry, "shape", ())) != 1 for entry in content.values())
    return found[0] if len(found) == 1 and not has_weights else content


def _is_state_dict(entry: Any) -> bool:
    is_filled = isinstance(entry, Mapping) and len(entry) > 0
    return is_filled and all(hasattr(value, "shape") for value in entry.values())
