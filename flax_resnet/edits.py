"""Where a network computes otherwise than its row of the table: what was edited after building."""

import functools
from typing import Any

from flax import nnx

from flax_resnet.layers import Identity, NoKeys, no_values
from flax_resnet.stochastic_depth import StochasticDepth
from resnet_spec import ResNetSpec
from resnet_spec.edits import Layer, Methods, list_differences, list_layers, shorten

# What a layer computes with beside its arrays. Momentum and rates are of training alone: two
# networks that differ only in how they were trained are one function. The row does say the kind
# of running variance.
_SETTINGS = (
    *("strides", "padding", "input_dilation", "kernel_dilation", "feature_group_count", "mask"),
    *("epsilon", "running_variance", "small_images", "pool_padding"),
    *("stride", "out_planes", "preact", "requires_activation"),
)
_METHODS = ("__call__", "new_planes")
# Alike in evaluation.
_STANDS_FOR: dict[type[nnx.Module], type[nnx.Module]] = {
    nnx.Dropout: Identity,
    StochasticDepth: Identity,
}


def differences_from_row(model: Any) -> list[str]:
    """By module, where a network computes something else than the row in its `spec`.

    The head is no part of a row. Empty where there is no row.
    """
    return [] if model.spec is None else list_differences(model, _row(model.spec), _methods)


def _methods(module: Any) -> Methods:
    kind = _STANDS_FOR.get(type(module), type(module))
    return tuple((name, getattr(kind, name, None)) for name in _METHODS)


@functools.lru_cache(maxsize=8)
def _row(spec: ResNetSpec) -> tuple[Layer, ...]:
    from flax_resnet.catalogue import from_spec  # which builds networks that know this module

    rngs: Any = NoKeys()
    with no_values():
        network = from_spec(shorten(spec), rngs=rngs)
    modules = [(".".join(map(str, path)), m) for path, m in nnx.iter_modules(network)]
    modules.sort(key=lambda item: item[0].count(".") if item[0] else -1)  # parents first
    return list_layers(modules, spec, _methods, _SETTINGS)
