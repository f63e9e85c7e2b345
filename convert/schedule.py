"""The learning-rate schedules of `train.optimizer` in plain Python; a test holds them equal."""

import math
from collections.abc import Callable, Mapping
from typing import Any


def make_schedule(config: Mapping[str, Any], total_steps: int) -> Callable[[int], float]:
    """Learning rate by step of a run with these fields of `train.config.Config`."""
    warmup_steps, peak = config["warmup_steps"], config["learning_rate"]
    drop_steps, drop_factor = config["drop_steps"], config["drop_factor"]
    cosine_steps = max(total_steps - warmup_steps, 1)

    def learning_rate(step: int) -> float:
        if step < warmup_steps:
            return config["warmup_learning_rate"]
        if config["schedule"] == "cosine":
            progress = min(step - warmup_steps, cosine_steps) / cosine_steps
            return peak * (1 + math.cos(math.pi * progress)) / 2
        return peak * math.prod(drop_factor for drop in drop_steps if drop <= step)

    return learning_rate
