"""A run's optimizer as torch's own SGD and LambdaLR, and as the named arrays of a checkpoint."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from convert.arrays import as_arrays, compare_shapes, value_problems
from convert.errors import ConversionError
from convert.leaves import as_flax, as_torch

if TYPE_CHECKING:
    import torch

Arrays = Mapping[str, np.ndarray]
_MOMENTUM, _SCHEDULE_STEP = (
    "momentum.",
    "schedule_step",
)  # names in the item, as in `train.step.optimizer`
# What torch's SGD does, in fields that configurations of older versions do not have.
_STOCK = {
    "optimizer": "sgd",
    "clip_norm": None,
    "accumulate_steps": 1,
    "frozen_stages": None,
    "skip_nonfinite": None,
}
_COMPARED = ("params", "momentum", "dampening", "weight_decay", "nesterov", "maximize")


def check_stock(config: Mapping[str, Any]) -> None:
    """Fields of the data and the loss (mixup, label smoothing, ...) are not the optimizer's.

    Raises:
        ConversionError: torch's SGD does not make the steps of this run; all reasons are named.
    """
    problems = [
        f"{name} is {config[name]!r}"
        for name, usual in _STOCK.items()
        if config.get(name, usual) != usual
    ]
    if problems:
        raise ConversionError(
            "torch's own SGD does not make the steps of this run, though its weights may be "
            "exported:",
            problems,
        )


def make_stock(
    model: "torch.nn.Module", config: Mapping[str, Any], schedule: Callable[[int], float], step: int
) -> "tuple[torch.optim.SGD, torch.optim.lr_scheduler.LambdaLR]":
    """A run's optimizer and scheduler after so many steps, without momentum buffers yet.

    There are two groups: weights of convolutions and linear layers, which decay, and the rest. The
    base rate is 1, so that the lambda is the learning rate itself.
    """
    import torch

    decays = {True: config["weight_decay"], False: 0.0}
    groups = [
        {
            "params": [p for p in model.parameters() if (p.ndim > 1) == is_decayed],
            "weight_decay": weight_decay,
            "initial_lr": 1.0,
        }
        for is_decayed, weight_decay in decays.items()
    ]
    momentum = config["momentum"]
    nesterov = config["nesterov"] and momentum > 0  # which torch refuses without momentum
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=momentum, nesterov=nesterov)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule, last_epoch=step - 1)
    return optimizer, scheduler


def parameter_names(model: "torch.nn.Module") -> list[str]:
    """In the order in which the state dict of `make_stock`'s optimizer counts them."""
    axes = {name: parameter.ndim for name, parameter in model.named_parameters()}
    return sorted(axes, key=lambda name: axes[name] <= 1)  # stable: decayed ones first


def buffers_of_item(
    item: Arrays, parameters: Arrays, config: Mapping[str, Any], step: int
) -> dict[str, np.ndarray]:
    """The momentum buffers in a checkpoint's optimizer item, with torch's names and axes.

    Raises:
        ConversionError: the item is not that of an optimizer of these parameters at this step.
    """
    buffers = {n.removeprefix(_MOMENTUM): a for n, a in item.items() if n.startswith(_MOMENTUM)}
    named = as_torch(buffers)
    problems = _compare_buffers(named, parameters if config["momentum"] else {})
    others = set(item) - {f"{_MOMENTUM}{name}" for name in buffers}
    if others != {_SCHEDULE_STEP}:
        problems += [f"should hold {_SCHEDULE_STEP} beside the momentum, holds {sorted(others)}"]
    elif int(item[_SCHEDULE_STEP]) != step:
        problems += [f"{_SCHEDULE_STEP} is {item[_SCHEDULE_STEP]} at step {step}"]
    if problems:
        raise ConversionError("the optimizer is not that of this model and run:", problems)
    return named


def item_of_buffers(buffers: Arrays, step: int) -> dict[str, np.ndarray]:
    """The inverse of `buffers_of_item`."""
    named = {f"{_MOMENTUM}{name}": array for name, array in as_flax(buffers).items()}
    return {**named, _SCHEDULE_STEP: np.array(step, np.int32)}


def buffers_of_state(
    state: Mapping[str, Any],
    names: list[str],
    zeros: Arrays,
    config: Mapping[str, Any],
    step: int,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The momentum buffers in a state dict of SGD by the parameter's name, and what is wrong.

    An optimizer that has not made a step yet has none: they are `zeros`, of the right shapes and
    dtypes. `names` are in the order of `parameter_names`.
    """
    found = as_arrays(
        {
            index: entry["momentum_buffer"]
            for index, entry in state["state"].items()
            if entry.get("momentum_buffer") is not None
        }
    )
    if not config["momentum"]:
        return {}, []
    if not found and step == 0:
        return dict(zeros), []
    unknown = [f"left over: parameter {index}" for index in found if index not in range(len(names))]
    buffers = {names[i]: found[i] for i in sorted(found) if i in range(len(names))}
    problems = _compare_buffers(buffers, zeros)
    return buffers, [f"optimizer: {problem}" for problem in [*unknown, *problems]]


def compare_stock(
    optimizer: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    stock: "tuple[torch.optim.SGD, torch.optim.lr_scheduler.LambdaLR]",
) -> list[str]:
    """How two state dicts differ from those of `make_stock` at the same step."""
    expected_optimizer, expected_scheduler = (one.state_dict() for one in stock)
    groups = expected_optimizer["param_groups"]
    given = optimizer["param_groups"]
    if len(given) != len(groups):
        return [f"optimizer: should have {len(groups)} groups of parameters, has {len(given)}"]
    problems = []
    for number, (mine, yours) in enumerate(zip(groups, given, strict=True)):
        place = f"optimizer: group {number}:"
        problems += [
            f"{place} {key} should be {mine[key]}, is {yours[key]}"
            for key in _COMPARED
            if mine[key] != yours[key]
        ]
        if not math.isclose(mine["lr"], float(yours["lr"]), rel_tol=1e-6, abs_tol=1e-12):
            problems.append(f"{place} lr should be {mine['lr']}, is {float(yours['lr'])}")
    problems += [
        f"scheduler: {key} should be {expected_scheduler[key]}, is {scheduler[key]}"
        for key in ("last_epoch", "base_lrs")
        if scheduler[key] != expected_scheduler[key]
    ]
    return problems


def _compare_buffers(buffers: Arrays, parameters: Arrays) -> list[str]:
    problems = compare_shapes(
        {name: array.shape for name, array in parameters.items()},
        {name: array.shape for name, array in buffers.items()},
    )
    problems += [
        f"dtype: {name} should be {parameters[name].dtype}, is {array.dtype}"
        for name, array in buffers.items()
        if name in parameters and array.dtype != parameters[name].dtype
    ]
    problems += [p for name, array in buffers.items() for p in value_problems(name, array)]
    return [f"momentum: {problem}" for problem in problems]
