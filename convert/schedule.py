"""The learning-rate schedules of `train.step.optimizer` in plain Python; a test compares them."""

import math
from collections.abc import Callable, Mapping
from typing import Any


def resolve(config: Mapping[str, Any], train_images: int) -> dict[str, Any]:
    """`train.config.Config.resolved`: numbers in steps, the learning rate of this batch size.

    Configurations of older versions have only these.
    """
    resolved, batch_size = dict(config), config["global_batch_size"]
    steps_per_epoch = train_images / batch_size
    if (drops := config.get("drop_epochs")) is not None:
        steps = tuple(round(epochs * steps_per_epoch) for epochs in drops)
        resolved |= {"drop_epochs": None, "drop_steps": steps}
    if (epochs := config.get("warmup_epochs")) is not None:
        resolved |= {"warmup_epochs": None, "warmup_steps": round(epochs * steps_per_epoch)}
    if (base := config.get("learning_rate_batch_size")) is not None:
        rate = config["learning_rate"] * batch_size / base
        resolved |= {"learning_rate_batch_size": None, "learning_rate": rate}
    first = min(config["warmup_learning_rate"], resolved["learning_rate"])
    return {**resolved, "warmup_learning_rate": first}


def make_schedule(config: Mapping[str, Any], total_steps: int) -> Callable[[int], float]:
    """Learning rate by step of a run with these fields of `train.config.Config`, resolved."""
    warmup_steps, peak = config["warmup_steps"], config["learning_rate"]
    drop_steps, drop_factor = config["drop_steps"], config["drop_factor"]
    cosine_steps = max(total_steps - warmup_steps, 1)

    first = config["warmup_learning_rate"]
    last = peak if config.get("warmup", "constant") == "linear" else first

    def learning_rate(step: int) -> float:
        if step < warmup_steps:
            return first + (last - first) * step / warmup_steps
        if config["schedule"] == "cosine":
            progress = min(step - warmup_steps, cosine_steps) / cosine_steps
            return peak * (1 + math.cos(math.pi * progress)) / 2
        return peak * math.prod(drop_factor for drop in drop_steps if drop <= step)

    return learning_rate
