"""SGD as the papers use it, its state by name, and the papers' learning-rate schedules."""

from collections.abc import Mapping
from typing import Any

import jax
import optax
from jaxtyping import Array

from train.config import Config

MOMENTUM = "momentum."  # and a parameter's name
SCHEDULE_STEP = "schedule_step"


def make_schedule(config: Config, total_steps: int) -> optax.Schedule:
    """Learning rate by step: constant at first for the warm-up, then drops or half a cosine."""
    rest = total_steps - config.warmup_steps
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(config.learning_rate, max(rest, 1))
    else:
        drops = {step - config.warmup_steps: config.drop_factor for step in config.drop_steps}
        main = optax.piecewise_constant_schedule(config.learning_rate, drops)
    if config.warmup_steps == 0:
        return main
    warmup = optax.constant_schedule(config.warmup_learning_rate)
    return optax.join_schedules([warmup, main], [config.warmup_steps])


def make_optimizer(
    schedule: optax.Schedule, *, momentum: float, nesterov: bool, weight_decay: float
) -> optax.GradientTransformation:
    """torch.optim.SGD's update, for parameters in a dict by name.

    Weight decay is added to the gradient before the momentum, and only to convolution and linear
    weights, those called `kernel`. Without momentum there are no buffers of it.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=_decayed),
        optax.sgd(schedule, momentum=momentum or None, nesterov=nesterov),
    )


def named_state(state: Any) -> dict[str, Array]:
    """The state of `make_optimizer` by name, whatever the order in which optax keeps it.

    `momentum.<parameter>`: torch's momentum buffer, of the parameter's shape; `schedule_step`: the
    step whose learning rate comes next.
    """
    buffers = optax.tree.get(state, "trace", default={})
    named = {f"{MOMENTUM}{name}": buffer for name, buffer in buffers.items()}
    named[SCHEDULE_STEP] = optax.tree.get(state, "count")
    assert len(named) == len(jax.tree.leaves(state)), "a part of the optimizer has no name"
    return named


def fill_state(fresh: Any, named: Mapping[str, Array]) -> Any:
    """The inverse of `named_state`: a state of the form of `fresh` with these arrays."""
    values: dict[str, Any] = {"count": named[SCHEDULE_STEP]}
    buffers = optax.tree.get(fresh, "trace", default=None)
    if buffers is not None:
        values["trace"] = {name: named[f"{MOMENTUM}{name}"] for name in buffers}
    return optax.tree.set(fresh, **values)


def _decayed(params: dict) -> dict:
    return {name: name.endswith(".kernel") for name in params}
