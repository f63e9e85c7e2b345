"""The training and the evaluation step: pure functions of one device's share of a batch."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, UInt8, UInt32

from flax_resnet.convolution import in_loop
from train.step.augment import Augment, draw_keys
from train.step.functional import Arrays, Network


class TrainState(NamedTuple):
    """All that a step reads and changes, except the images.

    Attributes:
        step: number of steps done. seed: of the run; a step does not change it.
        skipped: number of these steps whose loss or gradient was not finite.
        optimizer: its state for the parameters that are trained.
        ema: average of parameters and statistics, if the run keeps one.
    """

    step: Int[Array, ""]
    seed: UInt32[Array, ""]
    skipped: Int[Array, ""]
    params: Arrays
    statistics: Arrays
    optimizer: Any
    ema: Arrays | None = None


class Images(NamedTuple):
    """Images on the device, (n, h, w, c), labels (n,): a share of a batch, or a whole split.

    A split's images are rows, (n, h * w * c): of four axes, a TPU would copy the whole split into
    another layout in every step.
    """

    images: UInt8[Array, "n h w c"] | UInt8[Array, "n hwc"]
    labels: Int[Array, " n"]


class Metrics(NamedTuple):
    """Means over a batch, and the number of skipped steps of the run so far."""

    loss: Float[Array, ""]
    error: Float[Array, ""]
    skipped: Int[Array, ""]


class Sums(NamedTuple):
    """Sums over the images of a batch that count, and the number of these."""

    loss: Float[Array, ""]
    errors: Float[Array, ""]
    images: Int[Array, ""]


class Mix(Protocol):
    """Images and labels to blended images and soft labels, see `train.step.augment`."""

    def __call__(
        self, images: Array, labels: Array, keys: Array, batch_key: Array
    ) -> tuple[Float[Array, "n h w c"], Float[Array, "n classes"]]: ...


TrainStep = Callable[[TrainState, Images, Int[Array, "parts b"]], tuple[TrainState, Metrics]]
EvalStep = Callable[[Arrays, Arrays, Images, Int[Array, " b"]], Sums]


def make_train_step(
    network: Network,
    optimizer: optax.GradientTransformation,
    augment: Augment,
    *,
    axis_name: str | None,
    mix: Mix | None = None,
    ema_decay: float | None = None,
    skips_nonfinite: bool = False,
    streamed: bool = False,
) -> TrainStep:
    """One training step on the images of indices (parts, b) on each device of an axis.

    Where images are `streamed`, a device's are these already, in this order, and the indices only
    say how many parts there are: XLA for TPU would copy every image to pick it.

    The parts are computed one after another to save memory. Gradients and statistics are means over
    them, and over the groups of images that BatchNorm normalises: its running statistics are
    updated once a step. Augmentation depends on the
    seed, the step and an image's place in the global batch, not on the number of devices.

    Without `axis_name` one device has the whole batch. With `skips_nonfinite` a step whose loss or
    gradient is not finite changes only the counters.
    """

    def train_step(
        state: TrainState, data: Images, indices: Int[Array, "parts b"]
    ) -> tuple[TrainState, Metrics]:
        trained = {name: state.params[name] for name in network.trained}
        gradients_of = jax.value_and_grad(
            _make_loss(network, augment, mix, axis_name), has_aux=True
        )

        def of_part(part: Int[Array, ""], chosen: Any) -> Any:
            images = chosen if streamed else Images(*(a[chosen] for a in data))
            return gradients_of(trained, state, images, part)

        parts = _cut(data, len(indices)) if streamed else indices
        (loss, (error, statistics)), gradients = _mean_of_parts(of_part, parts)
        if axis_name is not None:
            # of the whole batch they are the same on all devices; counters always are
            differ = network.moved if network.group_images else ()
            means = {n: statistics[n] for n in differ if _is_float(statistics[n])}
            gradients, loss, error, means = jax.lax.pmean(
                (gradients, loss, error, means), axis_name
            )
            statistics = {**statistics, **means}
        statistics = {**state.statistics, **{n: statistics[n] for n in network.moved}}
        updates, moved = optimizer.update(gradients, state.optimizer, trained)
        changed: Any = optax.apply_updates(trained, updates)
        new = state._replace(
            params={**state.params, **changed}, statistics=statistics, optimizer=moved
        )
        if ema_decay is not None and state.ema is not None:
            new = new._replace(ema=average(state.ema, {**new.params, **statistics}, ema_decay))
        if skips_nonfinite:
            size = loss + optax.tree.norm(gradients) + optax.tree.norm(updates)
            new = _where(jnp.isfinite(size), new, state)
        new = new._replace(step=state.step + 1)
        return new, Metrics(loss, error, new.skipped)

    return train_step


def _make_loss(
    network: Network, augment: Augment, mix: Mix | None, axis_name: str | None
) -> Callable[..., Any]:
    """(trained parameters, state, images, number of the part) -> loss, (error, statistics)."""

    def loss_of(
        trained: Arrays, state: TrainState, data: Images, part: Int[Array, ""]
    ) -> tuple[Array, tuple[Array, Arrays]]:
        size = len(data.labels)
        shard = part
        if axis_name is not None:
            shard = part * jax.lax.axis_size(axis_name) + jax.lax.axis_index(axis_name)
        keys = draw_keys(state.seed, state.step, shard * size + jnp.arange(size))
        images, targets = augment(data.images, keys.images), data.labels
        if mix is not None:
            batch_key = jax.random.fold_in(keys.batch, part)
            images, targets = mix(images, targets, keys.images, batch_key)
        logits, statistics = network.train(
            {**state.params, **trained},
            state.statistics,
            images,
            jax.random.fold_in(keys.dropout, shard),
        )
        errors = count_errors(logits, data.labels)
        return cross_entropy(logits, targets).mean(), (errors.mean(), statistics)

    return loss_of


def _cut(data: Images, parts: int) -> Images:
    """Images and labels with a first axis of parts."""
    return Images(*(a.reshape(parts, -1, *a.shape[1:]) for a in data))


def _mean_of_parts(of_part: Callable[..., Any], parts: Any) -> Any:
    """The mean of the results of `of_part`; counters, which are equal for all parts, stay.

    `parts` are arrays whose first axis it is.
    """
    count = len(jax.tree.leaves(parts)[0])
    first = of_part(jnp.int32(0), jax.tree.map(lambda a: a[0], parts))
    if count == 1:
        return first

    def add(sums: Any, part: Any) -> tuple[Any, None]:
        grown = jax.tree.map(lambda a, b: a + b if _is_float(a) else a, sums, of_part(*part))
        return grown, None

    rest = (jnp.arange(1, count, dtype=jnp.int32), jax.tree.map(lambda a: a[1:], parts))
    with in_loop():
        sums, _ = jax.lax.scan(add, first, rest)
    return jax.tree.map(lambda a: a / count if _is_float(a) else a, sums)


def _is_float(array: Array) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating)


def _where(is_finite: Bool[Array, ""], new: TrainState, old: TrainState) -> TrainState:
    """The new state, or the old one with new counters, because the schedule counts every step."""
    kept = jax.tree.map(lambda a, b: jnp.where(is_finite, a, b), new, old)
    counted = optax.tree.set(kept.optimizer, count=optax.tree.get(new.optimizer, "count"))
    return kept._replace(
        optimizer=counted, skipped=old.skipped + jnp.where(is_finite, 0, 1).astype(jnp.int32)
    )


def average(ema: Arrays, new: Arrays, decay: float) -> Arrays:
    """The average `decay * ema + (1 - decay) * new`, exact where both are equal; new counters.

    Statistics are averaged like parameters, as in timm's ModelEma: those of the newest weights
    would not fit the average.
    """
    return {
        name: ema[name] + (1 - decay) * (array - ema[name]) if _is_float(array) else array
        for name, array in new.items()
    }


def averaged(state: TrainState) -> TrainState:
    """The state with its average as parameters and statistics; unchanged without an average."""
    if state.ema is None:
        return state
    params = {name: state.ema[name] for name in state.params}
    return state._replace(
        params=params, statistics={name: state.ema[name] for name in state.statistics}
    )


def make_eval_step(
    network: Network, augment: Augment, *, axis_name: str | None, streamed: bool = False
) -> EvalStep:
    """Sums over the images of some indices; a negative index counts for nothing.

    `streamed` as in `make_train_step`.
    """

    def eval_step(
        params: Arrays, statistics: Arrays, data: Images, indices: Int[Array, " b"]
    ) -> Sums:
        counts = indices >= 0
        images, labels = data if streamed else Images(*(a[indices] for a in data))
        logits = network.evaluate(params, statistics, augment.normalise(images))
        loss = jnp.sum(cross_entropy(logits, labels) * counts)
        errors = jnp.sum(count_errors(logits, labels) * counts)
        sums = Sums(loss, errors, jnp.sum(counts, dtype=jnp.int32))
        return sums if axis_name is None else jax.lax.psum(sums, axis_name)

    return eval_step


def cross_entropy(
    logits: Float[Array, "n classes"], targets: Int[Array, " n"] | Float[Array, "n classes"]
) -> Float[Array, " n"]:
    """The loss of each image, for labels or for soft labels.

    At least in float32: a log-softmax in bfloat16 has ruined runs.
    """
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if targets.ndim == 2:
        return optax.softmax_cross_entropy(wide, targets.astype(wide.dtype))
    return optax.softmax_cross_entropy_with_integer_labels(wide, targets)


def count_errors(logits: Float[Array, "n classes"], labels: Int[Array, " n"]) -> Float[Array, " n"]:
    """1 if the largest logit is not the label's, else 0."""
    return (jnp.argmax(logits, axis=-1) != labels).astype(jnp.float32)
