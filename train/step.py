"""The training and the evaluation step: pure functions, one device's share of a batch each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, UInt8, UInt32

from train.augment import Augment, draw_keys
from train.network import Arrays, Network


class TrainState(NamedTuple):
    """All that a step reads and changes, but for the images.

    Attributes:
        step: how many are done. seed: of the run; a step does not change it.
        skipped: how many of the steps were left out, as their loss or gradient was not finite.
        ema: average of parameters and statistics, where the run keeps one.
    """

    step: Int[Array, ""]
    seed: UInt32[Array, ""]
    skipped: Int[Array, ""]
    params: Arrays
    statistics: Arrays
    optimizer: Any
    ema: Arrays | None = None


class Images(NamedTuple):
    """A whole split on the device: images (n, h, w, c), labels (n,)."""

    images: UInt8[Array, "n h w c"]
    labels: Int[Array, " n"]


class Metrics(NamedTuple):
    """Means over a batch."""

    loss: Float[Array, ""]
    error: Float[Array, ""]


class Sums(NamedTuple):
    """Sums over a batch, of the images that count."""

    loss: Float[Array, ""]
    errors: Float[Array, ""]


TrainStep = Callable[[TrainState, Images, Int[Array, " b"]], tuple[TrainState, Metrics]]
EvalStep = Callable[[Arrays, Arrays, Images, Int[Array, " b"]], Sums]


def make_train_step(
    network: Network,
    optimizer: optax.GradientTransformation,
    augment: Augment,
    *,
    seed: int,
    axis_name: str,
    ema_decay: float | None = None,
) -> TrainStep:
    """One step of SGD on the images of some indices, under a mapped axis of devices.

    Augmentation depends on the seed, the step and an image's place in the global batch, not on
    the number of devices.
    """

    def train_step(
        state: TrainState, data: Images, indices: Int[Array, " b"]
    ) -> tuple[TrainState, Metrics]:
        device = jax.lax.axis_index(axis_name)
        places = device * len(indices) + jnp.arange(len(indices))
        keys, dropout_key = draw_keys(seed, state.step, places)
        images, labels = augment(data.images[indices], keys), data.labels[indices]
        dropout_key = jax.random.fold_in(dropout_key, device)

        def loss_of(params: Arrays) -> tuple[Array, tuple[Array, Arrays]]:
            logits, statistics = network.train(params, state.statistics, images, dropout_key)
            loss = cross_entropy(logits, labels).mean()
            return loss, (count_errors(logits, labels).mean(), statistics)

        (loss, (error, statistics)), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            state.params
        )
        gradients, loss, error = jax.lax.pmean((gradients, loss, error), axis_name)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        ema = None
        if ema_decay is not None and state.ema is not None:
            ema = average(state.ema, {**params, **statistics}, ema_decay)
        moved = TrainState(state.step + 1, params, statistics, optimizer_state, ema)
        return moved, Metrics(loss, error)

    return train_step


def average(ema: Arrays, new: Arrays, decay: float) -> Arrays:
    """The sum of decay * ema and (1 - decay) * new; a counter is the new one.

    Statistics are averaged like parameters, as timm's ModelEma does: those of the newest weights
    would not fit the average.
    """
    return {
        name: decay * ema[name] + (1 - decay) * array
        if jnp.issubdtype(array.dtype, jnp.floating)
        else array
        for name, array in new.items()
    }


def averaged(state: TrainState) -> TrainState:
    """The state with its average in the place of parameters and statistics; else as it is."""
    if state.ema is None:
        return state
    params = {name: state.ema[name] for name in state.params}
    return state._replace(
        params=params, statistics={name: state.ema[name] for name in state.statistics}
    )


def make_eval_step(network: Network, augment: Augment, *, axis_name: str) -> EvalStep:
    """Sums over the images of some indices; a negative index counts for nothing."""

    def eval_step(
        params: Arrays, statistics: Arrays, data: Images, indices: Int[Array, " b"]
    ) -> Sums:
        counts = indices >= 0
        images, labels = augment.normalise(data.images[indices]), data.labels[indices]
        logits = network.evaluate(params, statistics, images)
        loss = jnp.sum(cross_entropy(logits, labels) * counts)
        errors = jnp.sum(count_errors(logits, labels) * counts)
        return Sums(*jax.lax.psum((loss, errors), axis_name))

    return eval_step


def cross_entropy(
    logits: Float[Array, "n classes"], labels: Int[Array, " n"]
) -> Float[Array, " n"]:
    """In float32 at least: a log-softmax in bfloat16 has ruined runs."""
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return optax.softmax_cross_entropy_with_integer_labels(wide, labels)


def count_errors(logits: Float[Array, "n classes"], labels: Int[Array, " n"]) -> Float[Array, " n"]:
    """1 where the largest logit is not the label's, else 0."""
    return (jnp.argmax(logits, axis=-1) != labels).astype(jnp.float32)
