"""Counting parameters and layers."""

from flax import nnx


def count_parameters(model: nnx.Module) -> int:
    """Number of trained values, those of type `nnx.Param`."""
    return sum(p.get_value().size for _, p in nnx.to_flat_state(nnx.state(model, nnx.Param)))


def count_layers(
    model: nnx.Module, layer_type: type | tuple[type, ...] = (nnx.Conv, nnx.Linear)
) -> int:
    """Number of modules of `layer_type`; the papers do not count shortcuts, this does."""
    return sum(isinstance(module, layer_type) for _, module in nnx.iter_modules(model))
