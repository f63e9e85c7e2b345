"""What a user has called a network with: every wrong word is answered by the right one."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from resnet_spec.table import UnknownNameError, nearest_names

_HINTS = {
    "num_classes": "the head's size goes to create(name, num_classes), or to model.set_head",
    "preact": "pre-activation is in the name: PreActResNet20 for ResNet20",
    **dict.fromkeys(("rngs", "dtype", "param_dtype", "scan_blocks", "remat"), "it is Flax's alone"),
}


def check_keywords(function: str, given: Iterable[str], known: Collection[str]) -> None:
    """Raises a TypeError that names each keyword which `function` does not know, and what to do."""
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


def find_class(what: str, value: Any, classes: Mapping[Any, Any], *, foreign: str) -> Any:
    """The class that has this name in the table, or what is called in its place, as it is.

    Args:
        what: the name of the argument.
        value: what was given for it.
        classes: by their names in the table.
        foreign: the other framework, whose modules are none here.

    Raises:
        UnknownNameError: a name that is not in the table.
        TypeError: it is neither a name nor can be called, or a class of the other framework's.
    """
    if isinstance(value, str):
        if value not in classes:
            raise UnknownNameError(what, value, classes)
        return classes[value]
    if not callable(value):
        raise TypeError(f"{what} is a class or one of {', '.join(classes)}, not {value!r}")
    if any(base.__module__.startswith(f"{foreign}.") for base in getattr(value, "__mro__", ())):
        raise TypeError(f"{what} {value.__module__}.{value.__name__} is a module of {foreign}'s")
    return value
