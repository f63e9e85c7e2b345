"""SGD and LARS as the papers use them, and the learning-rate schedules."""

from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array

from train.config import Config

_TRUST = 0.001  # the trust coefficient of LARS


def make_schedule(config: Config, total_steps: int) -> optax.Schedule:
    """Learning rate by step: the warm-up, then drops or half a cosine.

    The configuration must be `resolved`: every number in steps.
    """
    rest = total_steps - config.warmup_steps
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(config.learning_rate, max(rest, 1))
    else:
        drops = {step - config.warmup_steps: config.drop_factor for step in config.drop_steps}
        main = optax.piecewise_constant_schedule(config.learning_rate, drops)
    first = config.warmup_learning_rate
    last = config.learning_rate if config.warmup == "linear" else first
    warmup = optax.linear_schedule(first, last, max(config.warmup_steps, 1))
    whole = optax.join_schedules([warmup, main], [config.warmup_steps])
    # optax divides int32 counts, which gives float32 even in float64 mode
    return lambda step: whole(jnp.asarray(step, float))


def unreached(config: Config, total_steps: int) -> str:
    """A sentence on what a resolved configuration plans after the run's end; empty if nothing."""
    beyond = []
    if config.warmup_steps >= total_steps:
        beyond.append(f"its warm-up does at {config.warmup_steps}")
    late = [step for step in config.drop_steps if step >= total_steps]
    if config.schedule == "drops" and late:
        beyond.append(f"its learning rate falls at {', '.join(map(str, late))}")
    if config.max_steps is not None and config.max_steps > total_steps:
        beyond.append(
            f"--max-steps {config.max_steps}, which --epochs {config.epochs} does not reach"
        )
    return f"the run ends at step {total_steps}, before {' and '.join(beyond)}" if beyond else ""


def make_optimizer(config: Config, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The update of torch.optim.SGD, or LARS, for parameters in a dict by name.

    Gradients are clipped first, if that is on. Weight decay is added to the gradient before the
    momentum, only for convolution and linear weights, which are called `kernel`. LARS scales the
    steps of these alone; its momentum averages steps, not gradients. SGD without momentum has no
    buffers.
    """
    clip = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    if config.optimizer == "lars":
        trace = optax.trace(config.momentum, config.nesterov)
        rate = optax.scale_by_learning_rate(schedule)
        return optax.chain(*clip, _trust(config.weight_decay), rate, trace)
    decay = optax.add_decayed_weights(config.weight_decay, mask=_is_weight)
    sgd = optax.sgd(schedule, config.momentum or None, config.nesterov)
    return optax.chain(*clip, decay, sgd)


def _trust(weight_decay: float) -> optax.GradientTransformation:
    """The local rates of LARS (You et al. 2017, arXiv:1708.03888, algorithm 1), with the decay.

    Each is 0.001 |w| / (|g| + decay |w|); `optax.lars` divides by |g + decay w| instead. It is 1
    for weights that are all zero, which would otherwise never change.
    """

    def scale(gradient: Array, weight: Array) -> Array:
        size = jnp.linalg.norm(weight)
        bound = jnp.linalg.norm(gradient) + weight_decay * size
        rate = jnp.where((size == 0) | (bound == 0), 1, _TRUST * size / bound)
        return rate * (gradient + weight_decay * weight)

    def update(gradients: Any, params: Any) -> dict[str, Array]:
        weights = _is_weight(gradients)
        return {n: scale(g, params[n]) if weights[n] else g for n, g in gradients.items()}

    return optax.stateless(update)


def _is_weight(params: dict) -> dict:
    return {name: name.endswith(".kernel") for name in params}
