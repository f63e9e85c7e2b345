"""A model's arrays by name: `stages.0.1.conv2.kernel`."""

from typing import Any

from flax import nnx

from flax_resnet.stochastic_depth import BranchDropRate


def named_variables(model: nnx.Module) -> dict[str, nnx.Variable[Any]]:
    """Every parameter and statistic of a model by its attribute path.

    Random streams are left out, and so are the rates of stochastic depth, which are no weights. A
    layer inside an `nnx.Sequential` is called by its number alone, as in torch.
    """
    sequentials = {p for p, m in nnx.iter_modules(model) if isinstance(m, nnx.Sequential)}
    state = nnx.state(model, nnx.Not(nnx.Any(nnx.RngState, BranchDropRate)))
    return {_name(path, sequentials): variable for path, variable in nnx.to_flat_state(state)}


def _name(path: tuple[Any, ...], sequentials: set[tuple[Any, ...]]) -> str:
    parts = [
        str(part)
        for position, part in enumerate(path)
        if not (part == "layers" and path[:position] in sequentials)
    ]
    return ".".join(parts)
