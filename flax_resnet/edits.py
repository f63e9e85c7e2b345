"""How a network differs from the row of the table in its `spec`: what was edited after building."""

import functools
from collections.abc import Callable
from typing import Any

from flax import nnx

from flax_resnet.layers import Identity, NoKeys, no_values
from flax_resnet.stochastic_depth import StochasticDepth
from resnet_spec import ResNetSpec
from resnet_spec.edits import Methods, ModuleInRow, list_differences, list_modules, shorten

# What a layer computes with besides its arrays. Momentum and rates matter in training only: two
# networks that differ only in how they were trained are one function. But the row says which
# running variance a layer keeps.
_SETTINGS = (
    *("strides", "padding", "input_dilation", "kernel_dilation", "feature_group_count", "mask"),
    *("epsilon", "running_variance", "small_images", "pool_padding"),
    *("stride", "out_planes", "preact", "requires_activation"),
)
_METHODS = ("__call__", "new_planes")
# Equal in evaluation.
_STANDS_FOR: dict[type[nnx.Module], type[nnx.Module]] = {
    nnx.Dropout: Identity,
    StochasticDepth: Identity,
}


def differences_from_row(model: Any) -> list[str]:
    """By module, where a network computes something other than the row in its `spec`.

    The head does not belong to a row. Empty where there is no row.
    """
    if model.spec is None:
        return []
    return list_differences(model, _row(model.rebuild, model.spec), _methods)


def _methods(module: Any) -> Methods:
    kind = _STANDS_FOR.get(type(module), type(module))
    return tuple((name, getattr(kind, name, None)) for name in _METHODS)


@functools.lru_cache(maxsize=8)
def _row(rebuild: Callable[..., Any], spec: ResNetSpec) -> tuple[ModuleInRow, ...]:
    with no_values():
        network = rebuild(shorten(spec), rngs=NoKeys())
    modules = [(".".join(map(str, path)), m) for path, m in nnx.iter_modules(network)]
    modules.sort(key=lambda item: item[0].count(".") if item[0] else -1)  # parents first
    return list_modules(modules, spec, _methods, _SETTINGS)
