"""What is put around a state dict: a prefix before every name, a dictionary with other entries."""

from collections.abc import Mapping
from typing import Any, TypeVar

# What torch's DataParallel and torch.compile put before every name.
_PREFIXES = ("module.", "_orig_mod.")
Value = TypeVar("Value")


def unwrap(arrays: dict[str, Value]) -> tuple[dict[str, Value], list[str]]:
    """The arrays without the prefixes that all their names share, and notes on what was taken."""
    notes = []
    while arrays and (
        prefix := next((p for p in _PREFIXES if all(n.startswith(p) for n in arrays)), None)
    ):
        arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
        notes.append(f"every name began with {prefix!r}, which was taken off")
    return arrays, notes


def only_state_dict(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict in a training script's dictionary, where there is exactly one."""
    found = [entry for entry in content.values() if _is_state_dict(entry)]
    is_wrapped = len(found) == 1 and not any(hasattr(e, "shape") for e in content.values())
    return found[0] if is_wrapped else content


def _is_state_dict(entry: Any) -> bool:
    is_filled = isinstance(entry, Mapping) and len(entry) > 0
    return is_filled and all(hasattr(value, "shape") for value in entry.values())
