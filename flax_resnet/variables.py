"""A model's arrays by name: `stages.0.1.conv2.kernel`."""

from collections.abc import Iterator
from typing import Any

from flax import nnx

from flax_resnet.stochastic_depth import BranchDropRate

Path = tuple[Any, ...]


def named_variables(model: nnx.Module) -> dict[str, nnx.Variable[Any]]:
    """Every parameter and statistic of a model by its attribute path.

    Random streams are left out, and so are the rates of stochastic depth, which are no weights. A
    layer inside an `nnx.Sequential` is called by its number alone, as in torch.
    """
    return named_parts(model)[0]


def named_parts(
    model: nnx.Module,
) -> tuple[dict[str, nnx.Variable[Any]], dict[str, nnx.Module]]:
    """What `named_variables` gives, and every module by its attribute path."""
    nodes = list(_walk(model))
    sequentials = {path for path, node in nodes if isinstance(node, nnx.Sequential)}
    variables = {
        _name(path, sequentials): node
        for path, node in nodes
        if isinstance(node, nnx.Variable) and not isinstance(node, nnx.RngState | BranchDropRate)
    }
    return variables, {
        ".".join(map(str, path)): node for path, node in nodes if isinstance(node, nnx.Module)
    }


def _walk(model: nnx.Module) -> Iterator[tuple[Path, Any]]:
    """The modules and variables of `nnx.iter_graph`, parents first, in a third of its time.

    It asks each value at length what it is: here the first of each type answers for the others.
    """
    is_leaf: dict[type, bool] = {}
    visited: set[int] = set()
    stack: list[tuple[Path, Any]] = [((), model)]
    while stack:
        path, node = stack.pop()
        kind = type(node)
        if kind not in is_leaf:
            is_leaf[kind] = not (isinstance(node, nnx.Variable) or nnx.graph.is_node(node))
        if is_leaf[kind] or id(node) in visited:
            continue
        visited.add(id(node))
        if isinstance(node, nnx.Variable):
            yield path, node
            continue
        if isinstance(node, nnx.Module):
            yield path, node
        stack.extend(((*path, key), child) for key, child in reversed(_children(node)))


def _children(node: Any) -> list[tuple[Any, Any]]:
    """What a node holds, in NNX's order."""
    if type(node) in (list, tuple):
        return list(enumerate(node))
    if isinstance(node, nnx.Module) and not isinstance(node, nnx.List | nnx.Dict):
        return sorted(vars(node).items())
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
