"""A model's arrays by name: `stages.0.1.conv2.kernel`."""

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
    sequentials: set[Path] = set()
    variables: list[tuple[Path, nnx.Variable[Any]]] = []
    modules: list[tuple[Path, nnx.Module]] = []
    for path, node in nnx.iter_graph(model):  # once: a walk takes as long as copying the weights
        if isinstance(node, nnx.Variable):
            if not isinstance(node, nnx.RngState | BranchDropRate):
                variables.append((path, node))
        elif isinstance(node, nnx.Module):
            modules.append((path, node))
            if isinstance(node, nnx.Sequential):
                sequentials.add(path)
    return (
        {_name(path, sequentials): variable for path, variable in variables},
        {".".join(map(str, path)): module for path, module in modules},
    )


def _name(path: Path, sequentials: set[Path]) -> str:
    parts = [
        str(part)
        for position, part in enumerate(path)
        if not (part == "layers" and path[:position] in sequentials)
    ]
    return ".".join(parts)
