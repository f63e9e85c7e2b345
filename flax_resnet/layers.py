"""How one layer of the table is spelled in Flax, and the BatchNorm that torch's equals."""

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar
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
    return jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape) * deviation


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
    batches, takes the variance in two passes, and does not slow down tracing with depth.
    It computes in float32 at least, and so are its parameters and statistics. The count of batches
    is an int32: a mean over devices (`jax.lax.pmean`) is for the two others, it would make a float
    of it, and JAX compile again.

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
        wide = x.astype(widest(x.dtype, scale.dtype))
        scale, bias = scale.astype(wide.dtype), bias.astype(wide.dtype)
        if self.use_running_average:
            mean, var = (s.get_value().astype(wide.dtype) for s in (self.mean, self.var))
        else:
            mean, var = self._track(wide)
        centred = wide - _as_rank(wide, mean)
        gain = jax.lax.rsqrt(var + self.epsilon) * scale
        y = centred * _as_rank(wide, gain) + _as_rank(wide, bias)
        return y.astype(self.dtype or x.dtype)

    def set_view(self, use_running_average: bool | None = None) -> None:
        """What `nnx.view` sets.

        Args:
          use_running_average: normalise with the running statistics instead of the batch's.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def _track(self, x: Float[Array, "n h w c"]) -> tuple[Array, Array]:
        """The batch's mean and biased variance, (c,) each; updates the running statistics."""
        axes = tuple(range(x.ndim - 1))
        count = x.size // x.shape[-1]
        mean = jnp.mean(x, axes)
        if self.axis_name is not None:
            count *= jax.lax.axis_size(self.axis_name)
            mean = jax.lax.pmean(mean, self.axis_name)
        if count < 2:
            raise ValueError(
                f"BatchNorm cannot train on one value per channel (input {x.shape}): "
                "give more images, larger images, or call model.eval()"
            )
        var = jnp.mean(jnp.square(x - _as_rank(x, mean)), axes)
        if self.axis_name is not None:
            var = jax.lax.pmean(var, self.axis_name)
        self._move(self.mean, mean)
        correction = count / (count - 1) if self.running_variance == "unbiased" else 1.0
        self._move(self.var, var * correction)
        # set_value without an index: indexed assignment makes tracing quadratic in depth
        self.num_batches_tracked.set_value(self.num_batches_tracked.get_value() + 1)
        return mean, var

    def _move(self, statistic: nnx.BatchStat[Array], batch: Array) -> None:
        old = statistic.get_value()
        batch = jax.lax.stop_gradient(batch)
        statistic.set_value(old + (batch.astype(old.dtype) - old) * self.momentum)


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
