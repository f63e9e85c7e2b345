"""Where a network computes otherwise than its row of the table: what was edited after building."""

import functools
import inspect
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import nn

from resnet_spec import ResNetSpec
from resnet_spec.edits import Layer, Methods, list_differences, list_layers, shorten
from torch_resnet.stochastic_depth import StochasticDepth

# What a layer computes with beside its tensors. Momentum and rates are of training alone: two
# networks that differ only in how they were trained are one function.
_SETTINGS = (
    *("stride", "padding", "dilation", "groups", "padding_mode", "kernel_size", "ceil_mode"),
    *("eps", "out_planes", "preact", "requires_activation"),
)
_METHODS = ("forward", "_conv_forward", "new_planes")
# Alike in evaluation; `nn.SyncBatchNorm` is what torch makes of a BatchNorm for several devices.
_STANDS_FOR: dict[type[nn.Module], type[nn.Module]] = {
    nn.SyncBatchNorm: nn.BatchNorm2d,
    nn.Dropout: nn.Identity,
    StochasticDepth: nn.Identity,
}


def differences_from_row(model: Any) -> list[str]:
    """By module, where a network computes something else than the row in its `spec`.

    The head is no part of a row, and hooks are not looked at. Empty where there is no row.
    """
    return [] if model.spec is None else list_differences(model, _row(model.spec), _methods)


def _methods(module: Any) -> Methods:
    kind = _STANDS_FOR.get(type(module), type(module))
    functions = {name: getattr(kind, name, None) for name in _METHODS}
    if own := vars(module).get("forward"):  # a compiled one, say, which keeps the original
        function = inspect.unwrap(own)
        functions["forward"] = getattr(function, "__func__", function)
    return tuple(functions.items())


@functools.lru_cache(maxsize=8)
def _row(spec: ResNetSpec) -> tuple[Layer, ...]:
    from torch_resnet.catalogue import from_spec  # which builds networks that know this module

    def build() -> Any:
        with torch.device("meta"):
            return from_spec(shorten(spec))

    with ThreadPoolExecutor(1) as thread:  # where no mode of the caller's holds: fake tensors, say
        network = thread.submit(build).result()
    return list_layers(network.named_modules(), spec, _methods, _SETTINGS)
