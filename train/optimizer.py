"""SGD as the papers use it, and their learning-rate schedules."""

import optax

from train.config import Config


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
    weights, those called `kernel`.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=_decayed),
        optax.sgd(schedule, momentum=momentum, nesterov=nesterov),
    )


def _decayed(params: dict) -> dict:
    return {name: name.endswith(".kernel") for name in params}
