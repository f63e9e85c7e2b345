"""Trees of arrays, as Flax has them, from and to flat names."""

from collections.abc import Iterator, Mapping
from typing import Any

from convert.errors import ConversionError
from convert.layouts.layout import Layout


def flatten(tree: Mapping[Any, Any], layout: Layout) -> dict[str, Any]:
    """Arrays by full name: `{"params": {"bn_init": ...}}` -> `params/bn_init/scale`."""
    separator = layout.spelling.separator

    def walk(node: Mapping[Any, Any], path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            if isinstance(value, Mapping):
                yield from walk(value, (*path, str(key)))
            else:
                is_variable = hasattr(value, "get_value")  # a leaf of `nnx.state`
                leaf = value.get_value() if is_variable else value
                yield separator.join((*path, str(key))), leaf

    named: dict[str, Any] = {}
    for name, leaf in walk(tree, ()):
        if name in named:
            raise ConversionError(f"two arrays are called {name}")
        named[name] = leaf
    return named


def nest(arrays: Mapping[str, Any], layout: Layout) -> dict[Any, Any]:
    """The inverse of `flatten`; places in a list are numbers, as in NNX's pure dicts."""
    tree: dict[Any, Any] = {}
    for name, array in arrays.items():
        *path, leaf = name.split(layout.spelling.separator)
        node = tree
        for part in path:
            node = node.setdefault(int(part) if part.isdecimal() else part, {})
        node[leaf] = array
    return tree
