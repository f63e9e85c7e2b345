"""What surrounds a state dict: prefixes before its names, a dictionary with other entries."""

import itertools
import math
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from convert.arrays import is_counter
from convert.errors import ConversionError

# The prefixes of torch's DataParallel, torch.compile and FSDP, and usual names of the network in a
# module around it (most often a Lightning module). No layout here has names that begin with one.
TORCHS_PREFIXES = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")
_PREFIXES = (*TORCHS_PREFIXES, "model.", "net.", "network.", "backbone.", "timm_model.")
_COUNT = "n_averaged"  # of torch's AveragedModel, which calls the network `module`
# The attribute in which each of torch's wrappers keeps the network.
_INNER = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
}
_ARCHITECTURE = ("arch", "model_name", "architecture", "model")  # PyTorch's example's, timm's ...
# Where Lightning and other scripts keep their arguments, which may name the network.
_ARGUMENTS = ("hyper_parameters", "hparams", "args", "config", "cfg", "model_args")
_SEPARATORS = (".", "/")
_NAMED = 4  # names shown of many
# Shares of the expected names that are there behind a prefix, and without it.
_ENOUGH, _FEW = 0.5, 0.1
# What a Flax TrainState holds beside `params` and `batch_stats`.
_TRAINING_STATE = ("step", "opt_state", "dynamic_scale")
# And a BatchNorm of Haiku beside each average that it keeps.
_HAIKUS_STATE = tuple(f"/{kind}_ema/{n}" for kind in ("mean", "var") for n in ("hidden", "counter"))
Value = TypeVar("Value")


def unwrap(
    arrays: dict[str, Value], prefixes: tuple[str, ...] = _PREFIXES
) -> tuple[dict[str, Value], list[str]]:
    """The arrays without the prefixes that all their names share, and notes on what was removed."""
    notes = []
    if _COUNT in arrays and all(n.startswith(_PREFIXES[0]) for n in arrays if n != _COUNT):
        arrays = {name: array for name, array in arrays.items() if name != _COUNT}
        notes.append(f"left out: {_COUNT!r}, the number of weights in this average")
    while arrays and (
        prefix := next((p for p in prefixes if all(n.startswith(p) for n in arrays)), None)
    ):
        arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
        notes.append(f"every name began with {prefix!r}, which was removed")
    return arrays, notes


def take_prefix(arrays: Mapping[str, Value], prefix: str) -> tuple[dict[str, Value], list[str]]:
    """The arrays whose names begin with `prefix`, without it, and notes on what was left out."""
    found, notes = dict(arrays), list[str]()
    if not any(name.startswith(prefix) for name in found):
        found, notes = unwrap(found)
    taken = {n.removeprefix(prefix): a for n, a in found.items() if n.startswith(prefix)}
    if all(name.startswith(_SEPARATORS) for name in taken):  # `encoder`, given without its dot
        taken = {name[1:]: array for name, array in taken.items()}
    if not taken:
        raise ConversionError(f"no name begins with {prefix!r}; there are {name_some(arrays)}")
    if left_out := [name for name in found if not name.startswith(prefix)]:
        notes.append(f"left out: {name_some(left_out)}, which do not begin with {prefix!r}")
    taken, more = unwrap(taken)
    return taken, [*notes, *more]


def common_prefix(names: Mapping[str, str]) -> str:
    """What `unwrap` or `take_prefix` removed: whole names of tensors, by the shorter ones."""
    return next((whole.removesuffix(name) for name, whole in names.items()), "")


def without_training_state(
    arrays: Mapping[str, Value], separator: str = "/"
) -> tuple[dict[str, Value], list[str]]:
    """Linen's variables without the rest of a TrainState, and notes on what was left out."""
    collections = {name: name.partition(separator)[0] for name in arrays}
    left_out = [
        name
        for name, first in collections.items()
        if first in _TRAINING_STATE or name.endswith(_HAIKUS_STATE)
    ]
    if not left_out or "params" not in collections.values():
        return dict(arrays), []
    kept = {name: array for name, array in arrays.items() if name not in set(left_out)}
    return kept, [f"left out: {name_some(left_out)}, part of a training state"]


def name_some(names: Collection[str]) -> str:
    """The first few of many names."""
    first = ", ".join(name[:60] for name in itertools.islice(names, _NAMED))
    more = len(names) - _NAMED
    return f"{first} and {more} more" if more > 0 else first


def unwrap_module(model: Any) -> Any:
    """The network inside of torch's wrappers for compiling it and for several devices."""
    while inner := _INNER.get(type(model).__name__):
        model = getattr(model, inner)
    return model


def only_state_dict(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict in a training script's dictionary, where there is exactly one.

    Other entries may be arrays of one number: PyTorch's own example keeps the best accuracy in one.
    """
    found = [content[name] for name in _entries(content)]
    has_weights = any(math.prod(getattr(entry, "shape", ())) != 1 for entry in content.values())
    return found[0] if len(found) == 1 and not has_weights else content


def stated_architectures(content: Any) -> tuple[str, ...]:
    """The names that a training script gives the network whose state dict it keeps."""
    entries = content if isinstance(content, Mapping) else {}
    places = [entries, *(_attributes(entries.get(name)) for name in _ARGUMENTS)]
    found = [p.get(name) for p in places if isinstance(p, Mapping) for name in _ARCHITECTURE]
    return tuple(name for name in found if isinstance(name, str))


def _attributes(value: Any) -> Any:
    """The fields of an argparse.Namespace, real or as `formats.pickles` reads it, or a mapping."""
    if isinstance(value, Mapping):
        return value
    return getattr(value, "state", None) or getattr(value, "__dict__", None)


def state_dicts(content: Mapping[str, Any]) -> list[str]:
    """The entries that are whole state dicts: unlike a single layer's, their names have dots."""
    return [name for name in _entries(content) if any("." in inner for inner in content[name])]


def _entries(content: Mapping[str, Any]) -> list[str]:
    return [name for name, entry in content.items() if is_state_dict(entry)]


def is_state_dict(value: Any) -> bool:
    """Whether a value is a mapping of names to tensors, or to descriptions of them."""
    is_filled = isinstance(value, Mapping) and len(value) > 0
    return is_filled and all(isinstance(k, str) and hasattr(v, "shape") for k, v in value.items())


def find_prefixes(names: Collection[str], first: str) -> list[str]:
    """What precedes the name of a layout's first tensor in longer names that end with it."""
    found = (name.removesuffix(first) for name in names if name.endswith(first))
    return sorted(prefix for prefix in found if prefix.endswith(_SEPARATORS))


def prefix_problems(expected: Collection[str], given: Collection[str]) -> list[str]:
    """A sentence if most of the expected names are there behind a prefix, and few without."""
    weights = [name for name in expected if not is_counter(name)]
    if sum(name in given for name in weights) > _FEW * len(weights):
        return []
    prefixes = [
        prefix
        for prefix in (find_prefixes(given, weights[0]) if weights else ())
        if sum(prefix + name in given for name in weights) > _ENOUGH * len(weights)
    ]
    return [
        f"its names are there behind {' and '.join(map(repr, prefixes))}: take these tensors by "
        f"prefix={prefix!r} (--prefix {prefix})"
        for prefix in prefixes[:1]
    ]
