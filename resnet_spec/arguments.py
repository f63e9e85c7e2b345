"""From a caller's keyword arguments to a network's spec and the classes that it is built of."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from resnet_spec.blocks import BlockKind, ShortcutKind
from resnet_spec.spec import Dialect, ResNetSpec, check_own_classes, split_dimensions
from resnet_spec.table import UnknownNameError, nearest_names


class SpecOptions(Dialect, total=False):
    """The keyword arguments of every network in both twins."""

    shortcut: Callable[..., Any] | ShortcutKind
    in_planes: int
    width: int
    drop_rate: float
    stochastic_depth: float
    small_images: bool
    zero_init_residual: bool


class Parts(NamedTuple):
    """What a network is built of.

    Attributes:
        spec: for classes of a user's own, which no spec describes, it says all but the classes.
        block, shortcut: classes.
        is_in_table: whether `spec` describes the network, as it has no class of a user's own.
    """

    spec: ResNetSpec
    block: Callable[..., Any]
    shortcut: Callable[..., Any]
    is_in_table: bool


def find_parts(
    spec: ResNetSpec,
    changes: Mapping[str, Any],
    blocks: Mapping[BlockKind, Any],
    shortcuts: Mapping[ShortcutKind, Any],
    *,
    foreign: str,
) -> Parts:
    """A spec with a caller's changes, and the classes of its blocks and shortcuts.

    Args:
        spec: what `changes` do not say.
        changes: `dimensions`, and fields of the spec; `block` and `shortcut` are names of the
            table, classes of the twin or classes of a user's own.
        blocks: the twin's blocks by their names in the table.
        shortcuts: the twin's shortcuts by their names in the table.
        foreign: the other framework, whose modules are refused.

    Raises:
        ValueError: a value is out of its range, or a name is not in the table.
        TypeError: a block or shortcut is neither a name nor callable, or of the other framework.
    """
    fields = dict(changes)
    if "dimensions" in fields:
        fields |= split_dimensions(fields.pop("dimensions"))
    block = _find_class("block", fields.get("block", spec.block), blocks, foreign)
    shortcut = _find_class("shortcut", fields.get("shortcut", spec.shortcut), shortcuts, foreign)
    kinds = _find_kind(block, blocks), _find_kind(shortcut, shortcuts)
    is_in_table = None not in kinds
    if not is_in_table:
        check_own_classes(vars(spec) | fields)
        kinds = kinds[0] or "basic", "projection"
    fields |= dict(zip(("block", "shortcut"), kinds, strict=True))
    # What does not change is not checked again.
    fields = {name: value for name, value in fields.items() if value is not getattr(spec, name)}
    spec = dataclasses.replace(spec, **fields) if fields else spec
    return Parts(spec, block, shortcut, is_in_table)


def _find_class(what: str, value: Any, classes: Mapping[Any, Any], foreign: str) -> Any:
    if isinstance(value, str):
        if value not in classes:
            raise UnknownNameError(what, value, classes)
        return classes[value]
    if not callable(value):
        raise TypeError(f"{what} is a class or one of {', '.join(classes)}, not {value!r}")
    if any(base.__module__.startswith(f"{foreign}.") for base in getattr(value, "__mro__", ())):
        raise TypeError(f"{what} {value.__module__}.{value.__name__} is a module of {foreign}")
    return value


def _find_kind(value: Any, classes: Mapping[Any, Any]) -> Any:
    return next((kind for kind, known in classes.items() if known is value), None)


_HINTS = {
    "num_classes": "the head's size goes to create(name, num_classes), or to model.set_head",
    "preact": "pre-activation is in the name: PreActResNet20 for ResNet20",
    **dict.fromkeys(
        ("rngs", "dtype", "param_dtype", "scan_blocks", "remat"), "only the Flax models take it"
    ),
}


def check_keywords(function: str, given: Iterable[str], known: Collection[str]) -> None:
    """Raises a TypeError that names each keyword `function` does not take, and suggests one."""
    problems = [
        f"{function} takes no {name} ({_hint(name, known)})" for name in given if name not in known
    ]
    if problems:
        raise TypeError("; ".join(problems))


def _hint(name: str, known: Collection[str]) -> str:
    if name in _HINTS:
        return _HINTS[name]
    nearest = nearest_names(name, known)
    return f"did you mean {' or '.join(nearest)}?" if nearest else f"known: {', '.join(known)}"
