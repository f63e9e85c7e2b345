"""A run's optimizer: as torch's SGD and LambdaLR, and as the named arrays of a checkpoint."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from convert.arrays import as_arrays, compare_shapes, value_problems
from convert.errors import ConversionError
from convert.leaves import as_flax, as_torch
from convert.runs.disk_format import MOMENTUM, SCHEDULE_STEP

if TYPE_CHECKING:
    import torch

Arrays = Mapping[str, np.ndarray]
# Values for which torch's SGD does the same. Configurations of older versions lack these fields.
_STOCK = {
    "optimizer": "sgd",
    "clip_norm": None,
    "accumulate_steps": 1,
    "frozen_stages": None,
    "skip_nonfinite": None,
}
_COMPARED = ("params", "momentum", "dampening", "weight_decay", "nesterov", "maximize")


def make_schedule(
    config: Mapping[str, Any], train_images: int, total_steps: int
) -> Callable[[int], float]:
    """Learning rate by step of a run with these fields of `train.config.Config`.

    `train.step.optimizer` has the same schedule in JAX, which `convert` and a `LambdaLR` must do
    without; a test compares them.
    """
    config = _in_steps(config, train_images)
    warmup_steps, peak = config["warmup_steps"], config["learning_rate"]
    drop_steps, drop_factor = config["drop_steps"], config["drop_factor"]
    cosine_steps = max(total_steps - warmup_steps, 1)
    first = min(config["warmup_learning_rate"], peak)
    last = peak if config.get("warmup", "constant") == "linear" else first

    def learning_rate(step: int) -> float:
        if step < warmup_steps:
            return first + (last - first) * step / warmup_steps
        if config["schedule"] == "cosine":
            progress = min(step - warmup_steps, cosine_steps) / cosine_steps
            return peak * (1 + math.cos(math.pi * progress)) / 2
        return peak * math.prod(drop_factor for drop in drop_steps if drop <= step)

    return learning_rate


def _in_steps(config: Mapping[str, Any], train_images: int) -> dict[str, Any]:
    """As `Config.resolved`; older versions have no fields in epochs, nor a base batch size."""
    resolved, batch_size = dict(config), config["global_batch_size"]
    steps_per_epoch = train_images / batch_size
    if (drops := config.get("drop_epochs")) is not None:
        resolved["drop_steps"] = tuple(round(epochs * steps_per_epoch) for epochs in drops)
    if (epochs := config.get("warmup_epochs")) is not None:
        resolved["warmup_steps"] = round(epochs * steps_per_epoch)
    if (base := config.get("learning_rate_batch_size")) is not None:
        resolved["learning_rate"] = config["learning_rate"] * batch_size / base
    return resolved


def check_stock(config: Mapping[str, Any]) -> None:
    """Checks the fields of the optimizer; those of data and loss (mixup, ...) do not matter.

    Raises:
        ConversionError: torch's SGD does other steps than this run; all reasons are named.
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

    groups = [
        {
            "params": [p for p in model.parameters() if (p.ndim > 1) == is_decayed],
            "weight_decay": config["weight_decay"] if is_decayed else 0.0,
            "initial_lr": 1.0,
        }
        for is_decayed in (True, False)
    ]
    momentum = config["momentum"]
    nesterov = config["nesterov"] and momentum > 0  # torch refuses it without momentum
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
    buffers = {n.removeprefix(MOMENTUM): a for n, a in item.items() if n.startswith(MOMENTUM)}
    named = as_torch(buffers)
    problems = _compare_buffers(named, parameters if config["momentum"] else {})
    others = sorted(name for name in item if not name.startswith(MOMENTUM))
    if others != [SCHEDULE_STEP]:
        problems += [f"should hold {SCHEDULE_STEP} beside the momentum, holds {others}"]
    elif int(item[SCHEDULE_STEP]) != step:
        problems += [f"{SCHEDULE_STEP} is {item[SCHEDULE_STEP]} at step {step}"]
    if problems:
        raise ConversionError("the optimizer is not that of this model and run:", problems)
    return named


def item_of_buffers(buffers: Arrays, step: int) -> dict[str, np.ndarray]:
    """The inverse of `buffers_of_item`."""
    named = {f"{MOMENTUM}{name}": array for name, array in as_flax(buffers).items()}
    return {**named, SCHEDULE_STEP: np.array(step, np.int32)}


def buffers_of_state(
    state: Mapping[str, Any], zeros: Arrays, config: Mapping[str, Any], step: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The momentum buffers in a state dict of SGD by the parameter's name, and its problems.

    An optimizer that has not made a step yet has no buffers: they are `zeros`, of the parameters'
    shapes and dtypes, in the order of `parameter_names`.
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
    names = dict(enumerate(zeros))
    unknown = [f"left over: parameter {index}" for index in found if index not in names]
    buffers = {names[index]: found[index] for index in sorted(found) if index in names}
    problems = [*unknown, *_compare_buffers(buffers, zeros)]
    return buffers, [f"optimizer: {problem}" for problem in problems]


def compare_stock(
    optimizer: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    stock: "tuple[torch.optim.SGD, torch.optim.lr_scheduler.LambdaLR]",
) -> list[str]:
    """The differences of two state dicts from those of `make_stock` at the same step."""
    expected_optimizer, expected_scheduler = (one.state_dict() for one in stock)
    groups, given = expected_optimizer["param_groups"], optimizer["param_groups"]
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
