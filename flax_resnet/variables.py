"""A model's arrays by name: `stages.0.1.conv2.kernel`."""

import enum
from collections.abc import Iterator
from typing import Any

from flax import nnx

from flax_resnet.stochastic_depth import BranchDropRate

Path = tuple[Any, ...]
_NOTES = "_pytree__"  # begins the names of attributes in which NNX keeps its own data


def named_variables(model: nnx.Module) -> dict[str, nnx.Variable[Any]]:
    """Every parameter and statistic of a model by its attribute path.

    Not random streams and rates of stochastic depth, which are not weights. A layer inside an
    `nnx.Sequential` is named by its number only, as in torch.
    """
    return named_parts(model)[0]


def named_parts(
    model: nnx.Module,
) -> tuple[dict[str, nnx.Variable[Any]], dict[str, nnx.Module]]:
    """What `named_variables` gives, and every module by its attribute path."""
    weights: list[tuple[Path, nnx.Variable[Any]]] = []
    modules: dict[Path, nnx.Module] = {}
    for path, node, is_a in _walk(model):
        if is_a is _Kind.WEIGHT:
            weights.append((path, node))
        elif is_a is _Kind.MODULE:
            modules[path] = node
    sequentials = {path for path, node in modules.items() if isinstance(node, nnx.Sequential)}
    return (
        {_name(path, sequentials): variable for path, variable in weights},
        {".".join(map(str, path)): module for path, module in modules.items()},
    )


class _Kind(enum.Enum):
    """What a value of a model is; its type decides."""

    WEIGHT = enum.auto()
    OTHER_VARIABLE = enum.auto()
    MODULE = enum.auto()
    OTHER_NODE = enum.auto()
    LEAF = enum.auto()


def _kind(node: Any) -> _Kind:
    if isinstance(node, nnx.RngState | BranchDropRate):
        return _Kind.OTHER_VARIABLE
    if isinstance(node, nnx.Variable):
        return _Kind.WEIGHT
    if isinstance(node, nnx.Module):
        return _Kind.MODULE
    return _Kind.OTHER_NODE if nnx.graph.is_node(node) else _Kind.LEAF


def _walk(model: nnx.Module) -> Iterator[tuple[Path, Any, _Kind]]:
    """The nodes and variables of `nnx.iter_graph`, parents first, in a fifth of its time.

    `nnx.iter_graph` examines every value; here the first of each type decides for the others.
    """
    kinds: dict[type, _Kind] = {}
    visited: set[int] = set()
    stack: list[tuple[Path, Any]] = [((), model)]
    while stack:
        path, node = stack.pop()
        if (is_a := kinds.get(type(node))) is None:
            is_a = kinds[type(node)] = _kind(node)
        if is_a is _Kind.LEAF or id(node) in visited:
            continue
        visited.add(id(node))
        yield path, node, is_a
        if is_a in (_Kind.MODULE, _Kind.OTHER_NODE):
            children = reversed(_children(node, is_a))
            stack.extend([((*path, key), child) for key, child in children])


def _children(node: Any, is_a: _Kind) -> list[tuple[Any, Any]]:
    """(name, value) of what a node holds, in the order of NNX."""
    if type(node) in (list, tuple):
        return list(enumerate(node))
    if is_a is _Kind.MODULE and not isinstance(node, nnx.List | nnx.Dict):
        return sorted(item for item in vars(node).items() if not item[0].startswith(_NOTES))
    kind = nnx.graph.get_node_impl(node)
    assert kind is not None  # a node has one
    return list(kind.node_dict(node).items())


def _name(path: Path, sequentials: set[Path]) -> str:
    parts = [
        str(part)
        for position, part in enumerate(path)
        if not (part == "layers" and path[:position] in sequentials)
    ]
    return ".".join(parts)
