"""Refuses what is not a network of one batch, before it runs."""

import inspect
from typing import Any

from convert.parity.precision import Framework
from convert.parity.probe import TESTS, TRAINS


def framework_of(model: Any) -> Framework:
    """The framework of a model; torch's models have a state dict."""
    return "torch" if hasattr(model, "state_dict") else "flax"


def problems_of(model: Any, title: str) -> list[str]:
    """Why a model cannot be compared; empty if it can."""
    if framework_of(model) == "torch":
        call = getattr(type(model), "forward", None)
        return _problems_of_call(type(model), call, title)
    from convert.parity.flax_probe import is_linen, is_nnx, is_unbound

    if is_unbound(model):
        return [
            f"{title} is a linen module without its variables: give module.bind(variables), or the "
            "pair (module, variables)"
        ]
    if is_linen(model):
        kind = type(model[0] if isinstance(model, tuple) else model)
        return _problems_of_call(kind, kind.__call__, title)
    if is_nnx(model):
        return _problems_of_call(type(model), vars(type(model)).get("__call__"), title)
    kind = type(model).__name__
    return [f"{title} is a module of torch, NNX or linen, not of type {kind}"]


def _problems_of_call(kind: type, call: Any, title: str) -> list[str]:
    try:
        parameters = list(inspect.signature(call).parameters.values())[1:]  # without self
    except (TypeError, ValueError):  # a compiled one
        return []
    inputs = [
        p.name
        for p in parameters
        if p.default is p.empty
        and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        and p.name not in (*TRAINS, *TESTS)
    ]
    if len(inputs) < 2:
        return []
    return [
        f"{title} takes {len(inputs)} inputs ({', '.join(inputs)}), and gets one batch: wrap "
        f"{kind.__name__} in a module that takes one and makes the others"
    ]
