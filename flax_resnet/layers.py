"""How one layer of the table is spelled in Flax, and the BatchNorm that torch's equals."""

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flax_resnet.convolution import convolve
from resnet_spec import Conv, RunningVariance

_has_values = ContextVar("has_values", default=True)


@contextlib.contextmanager
def no_values() -> Iterator[None]:
    """Layers made within hold `jax.ShapeDtypeStruct`, for those who fill them at once.

    Drawing the weights takes longer than reading a file: what torch's device "meta" is for.
    """
    token = _has_values.set(False)
    try:
        yield
    finally:
        _has_values.reset(token)


class NoKeys:
    """In the place of random streams where nothing is drawn: JAX compiles to make one."""

    def params(self) -> None:
        return None


def check_rngs(rngs: Any, stream: str = "params", option: str = "a network") -> None:
    """Raises a TypeError where these are no random streams, a ValueError where one is missing."""
    if not isinstance(rngs, nnx.Rngs | NoKeys):
        raise TypeError(f"rngs is random streams, nnx.Rngs(0) say, not {type(rngs).__name__}")
    if not hasattr(rngs, stream):
        raise ValueError(f"{option} needs the random stream {stream!r}: give nnx.Rngs {stream}=1")


def kaiming_normal(
    key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32, out_sharding: Any = None
) -> Array:
    """He et al. 2015 (arXiv:1502.01852), section 2.2, backward case; normal, not truncated.

    An initialiser as Flax takes them, of convolutions' kernels (..., in, out). Drawn along one
    axis: the same numbers, and XLA on CPU compiles it four times faster.
    """
    del out_sharding  # a model is placed as a whole
    *window, _, out_planes = shape
    deviation = jnp.sqrt(jnp.array(2 / (math.prod(window) * out_planes), dtype))
    normal = jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)
    # Else XLA of jax 0.10.2 multiplies constants first where this is compiled: other last bits.
    return jax.lax.optimization_barrier(normal) * deviation


def no_value(key: Any, shape: tuple[int, ...], dtype: DTypeLike, out_sharding: Any = None) -> Any:
    """An initialiser that draws nothing."""
    del key, out_sharding
    return jax.ShapeDtypeStruct(shape, dtype)


def _constant(value: float, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
    if _has_values.get():
        return jnp.full(shape, value, dtype)
    return no_value(None, shape, dtype)


def _kernel(key: Array, shape: tuple[int, ...], dtype: DTypeLike, out_sharding: Any = None) -> Any:
    del out_sharding
    initialise = kaiming_normal if _has_values.get() else no_value
    return initialise(key, shape, dtype)


class Context(TypedDict, total=False):
    """What Flax adds to the arguments of every layer, handed through from the model.

    rngs (required): random streams, `params` for weights and `dropout`.
    dtype: precision of the computation; None takes it from inputs and parameters.
    param_dtype: precision of the parameters, float32 where not given.
    """

    rngs: nnx.Rngs
    dtype: DTypeLike | None
    param_dtype: DTypeLike


def conv(spec: Conv, **context: Unpack[Context]) -> nnx.Conv:
    """(n, h, w, in_planes) -> (n, h2, w2, out_planes), Kaiming normal over the fan out."""
    edge = (spec.padding, spec.padding)  # in numbers: "SAME" pads a strided one unevenly
    return nnx.Conv(
        spec.in_planes,
        spec.out_planes,
        (spec.kernel_size, spec.kernel_size),
        strides=spec.stride,
        padding=(edge, edge),
        use_bias=False,
        kernel_init=_kernel,
        conv_general_dilated=convolve,
        **context,
    )


def batch_norm(planes: int, **context: Unpack[Context]) -> "BatchNorm":
    """(n, h, w, planes) -> same; eps 1e-5, momentum 0.1 in torch's sense."""
    return BatchNorm(planes, **context)


def dropout(rate: float, **context: Unpack[Context]) -> nnx.Dropout:
    """Zeroes each value with probability `rate`; draws from `rngs` only where `rate` is not 0."""
    if not rate:
        return nnx.Dropout(rate)
    rngs = context.get("rngs")
    check_rngs(rngs, "dropout", f"drop_rate {rate}")
    return nnx.Dropout(rate, rngs=rngs)


def linear(in_features: int, out_features: int, **context: Unpack[Context]) -> nnx.Linear:
    """(n, in_features) -> (n, out_features), both parameters uniform as torch draws them."""
    bound = in_features**-0.5

    def uniform(key: Array, shape: tuple[int, ...], dtype: Any, **_: Any) -> Array:
        flat = jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound)
        return flat.reshape(shape)  # compiled faster, as in kaiming_normal

    return nnx.Linear(in_features, out_features, kernel_init=uniform, bias_init=uniform, **context)


def widest(*dtypes: DTypeLike) -> DTypeLike:
    """Of floating dtypes and float32: without JAX's promotion, which may be told to be strict."""
    return max((jnp.float32, *dtypes), key=lambda dtype: jnp.finfo(dtype).bits)


class BatchNorm(nnx.Module):
    """Batch normalisation over (n, h, w) with torch's running statistics.

    Ioffe & Szegedy 2015, arXiv:1502.03167. Unlike Flax's own it keeps the *unbiased* variance of
    a batch (times m / (m - 1) for m values per channel), weighs a new batch by `momentum`, counts
    batches, and does not slow down tracing with depth. It computes in float32 at least, and so are
    its parameters and statistics. The variance takes two passes over the batch, of bfloat16 one.
    Devices that share a batch wait for one another once in the forward pass and once in the
    backward pass. Forward-mode and second derivatives work.
    The count of batches is an int32: a mean over devices (`jax.lax.pmean`) is for the two others,
    it would make a float of it, and JAX compile again.

    Attributes:
        use_running_average: set by `model.train()` and `model.eval()`.
        running_variance: what a batch adds to the running variance, the unbiased one as torch does
            or the biased one as Flax's own BatchNorm does.
        axis_name: a mapped axis over which the batch is spread; its statistics are then those of
            the whole batch. Set it on a model with
            `model.set_attributes(BatchNorm, axis_name="devices")`.

    Raises:
        ValueError: training on a single value per channel, which has no variance.
    """

    def __init__(
        self,
        planes: int,
        *,
        rngs: nnx.Rngs | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        momentum: float = 0.1,
        epsilon: float = 1e-5,
        axis_name: str | None = None,
    ):
        del rngs  # nothing here is random; accepted so that all layers are built alike
        self.planes = planes
        self.dtype = dtype
        self.momentum = momentum
        self.epsilon = epsilon
        self.axis_name = axis_name
        self.use_running_average = False
        self.running_variance: RunningVariance = "unbiased"
        param_dtype = widest(param_dtype)  # torch mixes it so, too
        self.scale = nnx.Param(_constant(1, (planes,), param_dtype))
        self.bias = nnx.Param(_constant(0, (planes,), param_dtype))
        self.mean = nnx.BatchStat(_constant(0, (planes,), param_dtype))
        self.var = nnx.BatchStat(_constant(1, (planes,), param_dtype))
        self.num_batches_tracked = nnx.BatchStat(_constant(0, (), jnp.int32))

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        scale, bias = self.scale.get_value(), self.bias.get_value()
        wide = widest(x.dtype, scale.dtype)
        scale, bias = scale.astype(wide), bias.astype(wide)
        mean, var = (s.get_value().astype(wide) for s in (self.mean, self.var))
        if self.use_running_average:
            y = _normalise(x, scale, bias, mean, var, self.epsilon)
        else:
            count = self._count(x)
            y, mean, var = _normalise_batch(self.axis_name, self.epsilon, x, scale, bias, mean)
            self._track(mean, var, count)
        return y.astype(self.dtype or x.dtype)

    def set_view(self, use_running_average: bool | None = None) -> None:
        """What `nnx.view` sets.

        Args:
          use_running_average: normalise with the running statistics instead of the batch's.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def _count(self, x: Float[Array, "n h w c"]) -> int:
        """Values per channel, in the whole batch."""
        count = x.size // x.shape[-1] * _axis_size(self.axis_name)
        if count < 2:
            raise ValueError(
                f"BatchNorm cannot train on one value per channel (input {x.shape}): "
                "give more images, larger images, or call model.eval()"
            )
        return count

    def _track(self, mean: Float[Array, " c"], var: Float[Array, " c"], count: int) -> None:
        """Moves the running statistics towards a batch's mean and biased variance."""
        self._move(self.mean, mean)
        correction = count / (count - 1) if self.running_variance == "unbiased" else 1.0
        self._move(self.var, var * correction)
        # set_value without an index: indexed assignment makes tracing quadratic in depth
        self.num_batches_tracked.set_value(self.num_batches_tracked.get_value() + 1)

    def _move(self, statistic: nnx.BatchStat[Array], batch: Array) -> None:
        old = statistic.get_value()
        batch = jax.lax.stop_gradient(batch)
        statistic.set_value(old + (batch.astype(old.dtype) - old) * self.momentum)


def _normalise(
    x: Float[Array, "n h w c"], scale: Array, bias: Array, mean: Array, var: Array, epsilon: float
) -> Float[Array, "n h w c"]:
    """In the precision of the statistics, (c,) each."""
    gain = jax.lax.rsqrt(var + epsilon) * scale
    return _centre(x, mean) * _as_rank(x, gain) + _as_rank(x, bias)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _normalise_batch(
    axis_name: str | None,
    epsilon: float,
    x: Float[Array, "n h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    shift: Float[Array, " c"],
) -> tuple[Float[Array, "n h w c"], Float[Array, " c"], Float[Array, " c"]]:
    """A batch normalised by its own statistics, its mean and its biased variance.

    The derivative is written out: JAX's own waits for the other devices twice, for the mean and
    for the variance. `shift` is a guess of the mean, which changes rounding only.
    """
    mean, var = _statistics(axis_name, x, shift)
    return _normalise(x, scale, bias, mean, var, epsilon), mean, var


def _statistics(
    axis_name: str | None, x: Float[Array, "n h w c"], shift: Float[Array, " c"]
) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
    """Mean and biased variance over all devices, which wait for one another once.

    Two passes in general: where the mean is a thousand deviations, float32 sums of squares lose
    the variance. Devices then exchange their statistics.

    bfloat16 takes one pass, over values less `shift`: XLA for TPU adds them up while a convolution
    writes its outputs. The relative error of the variance is about
    2^-24 (mean - shift)^2 / variance. Rounding the values to bfloat16 has changed it by more.
    """
    axes = tuple(range(x.ndim - 1))
    if x.dtype == jnp.bfloat16:
        shift = jnp.where(jnp.isfinite(shift), shift, 0)  # training does not need it
        shifted = _centre(x, shift)
        moments = _mean(axis_name, jnp.mean(shifted, axes), jnp.mean(jnp.square(shifted), axes))
        return shift + moments[0], jnp.maximum(moments[1] - jnp.square(moments[0]), 0)
    mean = jnp.mean(x.astype(shift.dtype), axes)
    var = jnp.mean(jnp.square(_centre(x, mean)), axes)
    if axis_name is None:
        return mean, var
    size, index = _axis_size(axis_name), jax.lax.axis_index(axis_name)
    # a sum instead of `all_gather`: `jax.shard_map` knows that all devices have the same sum
    table = jnp.zeros((size, 2, *mean.shape), mean.dtype).at[index].set(jnp.stack((mean, var)))
    means, variances = jnp.moveaxis(jax.lax.psum(table, axis_name), 1, 0)
    # Chan et al. 1979, for devices that all have as many values
    between = jnp.square(means - jnp.mean(means, 0, keepdims=True))
    return jnp.mean(means, 0), jnp.mean(variances + between, 0)


@_normalise_batch.defjvp
def _differentiate(
    axis_name: str | None, epsilon: float, primals: tuple[Array, ...], tangents: tuple[Any, ...]
) -> tuple[Any, Any]:
    """A gradient keeps `x` and (c,) arrays, and waits for the other devices once."""
    x, scale, bias, shift = primals
    y, mean, var = _normalise_batch(axis_name, epsilon, x, scale, bias, shift)

    def tangents_of(
        x: Array, scale: Array, mean: Array, var: Array, dx: Array, dscale: Array, dbias: Array
    ) -> tuple[Array, Array, Array]:
        axes = tuple(range(x.ndim - 1))
        centred, dx = _centre(x, mean), dx.astype(mean.dtype)
        inverse = jax.lax.rsqrt(var + epsilon)
        gain = inverse * scale
        dmean, product = _mean(axis_name, jnp.mean(dx, axes), jnp.mean(dx * centred, axes))
        slope = inverse * (dscale - gain * inverse * product)
        offset = dbias - gain * dmean
        dy = dx * _as_rank(x, gain) + centred * _as_rank(x, slope) + _as_rank(x, offset)
        return dy, dmean, 2 * product

    # without a checkpoint a gradient would keep the centred values, in float32
    rule = jax.checkpoint(tangents_of, prevent_cse=False)
    return (y, mean, var), rule(x, scale, mean, var, *tangents[:3])


def _mean(axis_name: str | None, *values: Float[Array, " c"]) -> Float[Array, "values c"]:
    """The mean over devices of several values, in one reduction."""
    stacked = jnp.stack(values)
    return stacked if axis_name is None else jax.lax.pmean(stacked, axis_name)


def _axis_size(axis_name: str | None) -> int:
    return 1 if axis_name is None else jax.lax.axis_size(axis_name)


def _centre(x: Float[Array, "n h w c"], mean: Float[Array, " c"]) -> Float[Array, "n h w c"]:
    return x.astype(mean.dtype) - _as_rank(x, mean)


def _as_rank(x: Array, values: Array) -> Array:
    """(c,) -> (1, 1, 1, c): said here, since JAX can be told to add no axes by itself."""
    return jax.lax.expand_dims(values, range(x.ndim - 1))


class Identity(nnx.Module):
    """The head of a model that returns its pooled features."""

    def __call__(self, x: Array) -> Array:
        return x


class AveragePool(nnx.Module):
    """The mean over height and width, in float32 at least."""

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n c"]:
        return jnp.mean(x, (1, 2), dtype=widest(x.dtype))
