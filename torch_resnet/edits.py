"""How a network differs from the row of the table in its `spec`, and what its weights say of it.

A state dict says which network it is of, where torch keeps the versions of layers.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import nn

from resnet_spec import ClassifierSpec, ResNetSpec
from resnet_spec.classifier import DESCRIPTION_KEY, decode, encode
from resnet_spec.edits import Methods, ModuleInRow, list_differences, list_modules, shorten
from torch_resnet.stochastic_depth import StochasticDepth

# What a layer computes with besides its tensors. Momentum and rates matter in training only: two
# networks that differ only in how they were trained are one function.
_SETTINGS = (
    *("stride", "padding", "dilation", "groups", "padding_mode", "kernel_size", "ceil_mode"),
    *("eps", "out_planes", "preact", "requires_activation"),
)
_METHODS = ("forward", "_conv_forward", "new_planes")
# Equal in evaluation; torch makes an `nn.SyncBatchNorm` of a BatchNorm for several devices.
_STANDS_FOR: dict[type[nn.Module], type[nn.Module]] = {
    nn.SyncBatchNorm: nn.BatchNorm2d,
    nn.Dropout: nn.Identity,
    StochasticDepth: nn.Identity,
}


def differences_from_row(model: Any) -> list[str]:
    """By module, where a network computes something other than the row in its `spec`.

    The head does not belong to a row, and hooks are not compared. Empty where there is no row.
    """
    if model.spec is None:
        return []
    return list_differences(model, _row(model.rebuild, model.spec), _methods)


def _methods(module: Any) -> Methods:
    kind = _STANDS_FOR.get(type(module), type(module))
    functions = {name: getattr(kind, name, None) for name in _METHODS}
    if own := vars(module).get("forward"):  # a compiled one, for example, keeps the original
        function = inspect.unwrap(own)
        functions["forward"] = getattr(function, "__func__", function)
    return tuple(functions.items())


@functools.lru_cache(maxsize=8)
def _row(rebuild: Callable[[ResNetSpec], Any], spec: ResNetSpec) -> tuple[ModuleInRow, ...]:
    def build() -> Any:
        with torch.device("meta"):
            return rebuild(shorten(spec))

    # In a thread of its own no mode of the caller holds, such as fake tensors.
    with ThreadPoolExecutor(1) as thread:
        network = thread.submit(build).result()
    return list_modules(network.named_modules(), spec, _methods, _SETTINGS)


def describe_weights(
    model: Any, state_dict: Any, prefix: str, local_metadata: dict[str, Any]
) -> None:
    """Writes into a state dict which network it is of, as a hook of `state_dict`.

    An edited network is not described: it is no longer the one in its row.
    """
    if model.spec is None or differences_from_row(model):
        return
    head = model.head
    is_linear = isinstance(head, nn.Linear)
    classifier = ClassifierSpec(
        model.spec,
        head.out_features if is_linear else None,
        head.bias is not None if is_linear else True,
    )
    local_metadata[DESCRIPTION_KEY] = encode(classifier)


def list_differences_of_weights(
    spec: ResNetSpec | None, local_metadata: Mapping[str, Any]
) -> list[str]:
    """What the network of some weights computes differently from `spec`, and what to do about it.

    Names and shapes are not compared: torch refuses those itself, unless it is not to be strict.
    """
    text = local_metadata.get(DESCRIPTION_KEY)
    fields = None if text is None else decode(text)["model"]
    if fields is None or spec is None:
        return []
    differences = spec.differences(ClassifierSpec.from_json(fields).network, unseen=True)
    problems = [f"weights of another network: {difference}" for difference in differences]
    return [*problems, "to load them all the same, del state_dict._metadata"] if problems else []
