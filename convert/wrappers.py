"""What is put around a state dict: a prefix before every name, a dictionary with other entries."""

import argparse
import itertools
import math
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from convert.errors import ConversionError

# What torch's DataParallel and torch.compile put before every name, and what people call the
# network in a module around it (a Lightning module, most often). No layout of ours begins so.
TORCHS_PREFIXES = ("module.", "_orig_mod.")
_PREFIXES = (*TORCHS_PREFIXES, "model.", "net.", "network.", "backbone.", "timm_model.")
_COUNT = "n_averaged"  # of torch's AveragedModel, which calls the network `module`
# By the class, where torch's wrappers keep the network.
_INNER = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
}
_ARCHITECTURE = ("arch", "model_name", "architecture", "model")  # PyTorch's example's, timm's ...
# Where Lightning and other scripts keep their arguments, the network's name among them.
_ARGUMENTS = ("hyper_parameters", "hparams", "args", "config", "cfg", "model_args")
_SEPARATORS = (".", "/")
_NAMED = 4  # of many names in a sentence
# Of a Flax TrainState, beside `params` and `batch_stats`.
_TRAINING_STATE = ("step", "opt_state", "dynamic_scale")
Value = TypeVar("Value")


def unwrap(
    arrays: dict[str, Value], prefixes: tuple[str, ...] = _PREFIXES
) -> tuple[dict[str, Value], list[str]]:
    """The arrays without the prefixes that all their names share, and notes on what was taken."""
    notes = []
    if _COUNT in arrays and all(n.startswith(_PREFIXES[0]) for n in arrays if n != _COUNT):
        arrays = {name: array for name, array in arrays.items() if name != _COUNT}
        notes.append(f"left out: {_COUNT!r}, of how many weights these are the average")
    while arrays and (
        prefix := next((p for p in prefixes if all(n.startswith(p) for n in arrays)), None)
    ):
        arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
        notes.append(f"every name began with {prefix!r}, which was taken off")
    return arrays, notes


def take_prefix(arrays: Mapping[str, Value], prefix: str) -> tuple[dict[str, Value], list[str]]:
    """The arrays whose names begin so, without it, and notes on what was left out.

    Raises:
        ConversionError: none begins so, before or after the prefixes that all of them share.
    """
    found, notes = dict(arrays), list[str]()
    if not any(name.startswith(prefix) for name in found):
        found, notes = unwrap(found)
    taken = {n.removeprefix(prefix): a for n, a in found.items() if n.startswith(prefix)}
    if all(name.startswith(_SEPARATORS) for name in taken):  # `encoder`, said without its dot
        taken = {name[1:]: array for name, array in taken.items()}
    if not taken:
        raise ConversionError(f"no name begins with {prefix!r}; there are {name_some(arrays)}")
    if left_out := [name for name in found if not name.startswith(prefix)]:
        notes.append(f"left out: {name_some(left_out)}, which do not begin with {prefix!r}")
    taken, more = unwrap(taken)
    return taken, [*notes, *more]


def without_training_state(
    arrays: Mapping[str, Value], separator: str = "/"
) -> tuple[dict[str, Value], list[str]]:
    """Variables of linen without what a TrainState has beside them, and notes on what was left."""
    collections = {name: name.partition(separator)[0] for name in arrays}
    left_out = [name for name, first in collections.items() if first in _TRAINING_STATE]
    if not left_out or "params" not in collections.values():
        return dict(arrays), []
    kept = {name: array for name, array in arrays.items() if name not in set(left_out)}
    return kept, [f"left out: {name_some(left_out)}, of a state of training"]


def name_some(names: Collection[str]) -> str:
    """The first few of many names."""
    first = ", ".join(name[:60] for name in itertools.islice(names, _NAMED))
    more = len(names) - _NAMED
    return f"{first} and {more} more" if more > 0 else first


def unwrap_module(model: Any) -> Any:
    """The network inside of what torch puts around it, to compile it or to spread it."""
    while inner := _INNER.get(type(model).__name__):
        model = getattr(model, inner)
    return model


def only_state_dict(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict in a training script's dictionary, where there is exactly one.

    Other entries may be arrays of one number: PyTorch's own example keeps the best accuracy so.
    """
    found = [content[name] for name in _entries(content)]
    has_weights = any(math.prod(getattr(entry, "shape", ())) != 1 for entry in content.values())
    return found[0] if len(found) == 1 and not has_weights else content


def stated_architectures(content: Any) -> tuple[str, ...]:
    """What a training script calls the network whose state dict it keeps, by whatever entry."""
    entries = content if isinstance(content, Mapping) else {}
    places = [entries, *(_attributes(entries.get(name)) for name in _ARGUMENTS)]
    found = [p.get(name) for p in places if isinstance(p, Mapping) for name in _ARCHITECTURE]
    return tuple(name for name in found if isinstance(name, str))


def _attributes(value: Any) -> Any:
    """Those of an argparse.Namespace, made or only read; a dictionary as it is."""
    return value if isinstance(value, Mapping) else getattr(value, "state", _vars(value))


def _vars(value: Any) -> Any:
    return vars(value) if isinstance(value, argparse.Namespace) else None


def state_dicts(content: Mapping[str, Any]) -> list[str]:
    """The entries that are whole state dicts: their names have parts, unlike a layer's."""
    return [name for name in _entries(content) if any("." in inner for inner in content[name])]


def _entries(content: Mapping[str, Any]) -> list[str]:
    return [name for name, entry in content.items() if _is_state_dict(entry)]


def _is_state_dict(entry: Any) -> bool:
    is_filled = isinstance(entry, Mapping) and len(entry) > 0
    return is_filled and all(hasattr(value, "shape") for value in entry.values())
