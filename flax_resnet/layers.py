"""How one layer of the table is spelled in Flax, and the BatchNorm that torch's equals."""

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import canonicalize_dtype, promote_dtype
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flax_resnet.convolution import convolve
from resnet_spec import Conv as ConvSpec
from resnet_spec import RunningVariance

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


def conv(spec: ConvSpec, **context: Unpack[Context]) -> nnx.Conv:
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


def average_pool(
    x: Float[Array, "n h w c"], window: tuple[int, int], *arguments: Any, **options: Any
) -> Float[Array, "n h2 w2 c"]:
    """`nnx.avg_pool`, of the same arguments, that adds up in float32 at least.

    In bfloat16 XLA's CPU backend adds up in bfloat16: a window of 56 x 56 ones has the mean 0.33.
    """
    return nnx.avg_pool(x.astype(widest(x.dtype)), window, *arguments, **options).astype(x.dtype)


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
    The running statistics move by the mean over a device's groups of images. Where a batch on
    several devices has several groups, take the mean over devices (`jax.lax.pmean`), too. The count
    of batches is an int32: that mean would make a float of it, and JAX compile again.

    Attributes:
        use_running_average: set by `model.train()` and `model.eval()`.
        running_variance: what a batch adds to the running variance, the unbiased one as torch does
            or the biased one as Flax's own BatchNorm does.
        axis_name: a mapped axis over which the batch is spread; its statistics are then those of
            the whole batch. Set it on a model with
            `model.set_attributes(BatchNorm, axis_name="devices")`.
        group_images: normalise so many successive images by themselves, on a part of a device's
            images or on neighbouring devices; None, or more than the batch has, for all.

    Raises:
        ValueError: training on a single value per channel, which has no variance, or on images that
            cannot be cut into such groups.
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
        group_images: int | None = None,
    ):
        del rngs  # nothing here is random; accepted so that all layers are built alike
        self.planes = planes
        self.dtype = dtype
        self.momentum = momentum
        self.epsilon = epsilon
        self.axis_name = axis_name
        self.group_images = group_images
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
            groups, devices = self._groups(len(x))
            count = _count(x, groups, devices)
            normalise = partial(_normalise_batch, devices, self.epsilon)
            if groups == 1:
                y, mean, var = normalise(x, scale, bias, mean)
            else:
                cut = x.reshape(groups, -1, *x.shape[1:])
                y, means, variances = jax.vmap(normalise, (0, None, None, None))(
                    cut, scale, bias, mean
                )
                y, mean, var = y.reshape(x.shape), jnp.mean(means, 0), jnp.mean(variances, 0)
            self._track(mean, var, count)
        return y.astype(self.dtype or x.dtype)

    def set_view(self, use_running_average: bool | None = None) -> None:
        """What `nnx.view` sets.

        Args:
          use_running_average: normalise with the running statistics instead of the batch's.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def _groups(self, images: int) -> tuple[int, "_Devices | None"]:
        """The number of groups on a device, and the devices that share one."""
        devices = _axis_size(self.axis_name)
        size = min(self.group_images or images * devices, images * devices)
        if images * devices % size or max(size, images) % min(size, images):
            raise ValueError(
                f"BatchNorm cannot cut {devices} times {images} images into groups of {size}: give "
                f"a number that divides {images}, or a multiple that divides {images * devices}"
            )
        if self.axis_name is not None and (size > images or devices == size // images):
            return 1, _Devices(self.axis_name, size // images)
        return images // size, None

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


class _Devices(NamedTuple):
    """Neighbours on a mapped axis that normalise their images together."""

    axis_name: str
    size: int

    def mean(self, values: Array) -> Array:
        return jax.lax.pmean(values, self.axis_name, axis_index_groups=self._groups)

    def gather(self, values: Array) -> Array:
        """The values of all, along a new first axis."""
        index = jax.lax.axis_index(self.axis_name) % self.size
        # a sum instead of `all_gather`: `jax.shard_map` knows that all devices have the same sum
        table = jnp.zeros((self.size, *values.shape), values.dtype).at[index].set(values)
        return jax.lax.psum(table, self.axis_name, axis_index_groups=self._groups)

    @property
    def _groups(self) -> list[list[int]] | None:
        """The places on the axis of each group; None if there is one."""
        count = _axis_size(self.axis_name)
        first = range(0, count, self.size)
        return None if self.size == count else [list(range(i, i + self.size)) for i in first]


def _count(x: Float[Array, "n h w c"], groups: int, devices: _Devices | None) -> int:
    """Values per channel, in a group."""
    count = x.size // x.shape[-1] // groups * (1 if devices is None else devices.size)
    if count < 2:
        raise ValueError(
            f"BatchNorm cannot train on one value per channel (input {x.shape}): "
            "give more images, larger images, or call model.eval()"
        )
    return count


def _normalise(
    x: Float[Array, "n h w c"], scale: Array, bias: Array, mean: Array, var: Array, epsilon: float
) -> Float[Array, "n h w c"]:
    """In the precision of the statistics, (c,) each."""
    gain = jax.lax.rsqrt(var + epsilon) * scale
    return _centre(x, mean) * _as_rank(x, gain) + _as_rank(x, bias)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _normalise_batch(
    devices: _Devices | None,
    epsilon: float,
    x: Float[Array, "n h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    shift: Float[Array, " c"],
) -> tuple[Float[Array, "n h w c"], Float[Array, " c"], Float[Array, " c"]]:
    """Images normalised by their own statistics, the mean and the biased variance of them.

    The derivative is written out: JAX's own waits for the other devices twice, for the mean and
    for the variance. `shift` is a guess of the mean, which changes rounding only.
    """
    mean, var = _statistics(devices, x, shift)
    return _normalise(x, scale, bias, mean, var, epsilon), mean, var


def _statistics(
    devices: _Devices | None, x: Float[Array, "n h w c"], shift: Float[Array, " c"]
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
        moments = _mean(devices, jnp.mean(shifted, axes), jnp.mean(jnp.square(shifted), axes))
        return shift + moments[0], jnp.maximum(moments[1] - jnp.square(moments[0]), 0)
    mean = jnp.mean(x.astype(shift.dtype), axes)
    var = jnp.mean(jnp.square(_centre(x, mean)), axes)
    if devices is None:
        return mean, var
    means, variances = jnp.moveaxis(devices.gather(jnp.stack((mean, var))), 1, 0)
    # Chan et al. 1979, for devices that all have as many values
    between = jnp.square(means - jnp.mean(means, 0, keepdims=True))
    return jnp.mean(means, 0), jnp.mean(variances + between, 0)


@_normalise_batch.defjvp
def _differentiate(
    devices: _Devices | None, epsilon: float, primals: tuple[Array, ...], tangents: tuple[Any, ...]
) -> tuple[Any, Any]:
    """A gradient keeps `x` and (c,) arrays, and waits for the other devices once."""
    x, scale, bias, shift = primals
    y, mean, var = _normalise_batch(devices, epsilon, x, scale, bias, shift)

    def tangents_of(
        x: Array, scale: Array, mean: Array, var: Array, dx: Array, dscale: Array, dbias: Array
    ) -> tuple[Array, Array, Array]:
        axes = tuple(range(x.ndim - 1))
        centred, dx = _centre(x, mean), dx.astype(mean.dtype)
        inverse = jax.lax.rsqrt(var + epsilon)
        gain = inverse * scale
        dmean, product = _mean(devices, jnp.mean(dx, axes), jnp.mean(dx * centred, axes))
        slope = inverse * (dscale - gain * inverse * product)
        offset = dbias - gain * dmean
        dy = dx * _as_rank(x, gain) + centred * _as_rank(x, slope) + _as_rank(x, offset)
        return dy, dmean, 2 * product

    # without a checkpoint a gradient would keep the centred values, in float32
    rule = jax.checkpoint(tangents_of, prevent_cse=False)
    return (y, mean, var), rule(x, scale, mean, var, *tangents[:3])


def _mean(devices: _Devices | None, *values: Float[Array, " c"]) -> Float[Array, "values c"]:
    """The mean over devices of several values, in one reduction."""
    stacked = jnp.stack(values)
    return stacked if devices is None else devices.mean(stacked)


def _axis_size(axis_name: str | None) -> int:
    return 1 if axis_name is None else jax.lax.axis_size(axis_name)


def _centre(x: Float[Array, "n h w c"], mean: Float[Array, " c"]) -> Float[Array, "n h w c"]:
    return x.astype(mean.dtype) - _as_rank(x, mean)


def _as_rank(x: Array, values: Array) -> Array:
    """(c,) -> (1, 1, 1, c): said here, since JAX can be told to add no axes by itself."""
    return jax.lax.expand_dims(values, range(x.ndim - 1))


def _promote_all_but_bias(arrays: Any, *, dtype: DTypeLike | None = None) -> Any:
    """What Flax does to inputs and kernel; the bias is float32 at least."""
    inputs, kernel, bias = arrays
    inputs, kernel = promote_dtype((inputs, kernel), dtype=dtype)
    return inputs, kernel, None if bias is None else bias.astype(widest(bias.dtype, inputs.dtype))


class Conv(nnx.Conv):
    """`nnx.Conv`, of the same arguments, that adds its bias in float32 at least.

    In bfloat16 XLA's CPU backend sums the gradient of a bias in bfloat16, which is up to 128 times
    too small: more ones than 256 do not add up.
    """

    def __init__(self, *arguments: Any, **options: Any):
        promote: Any = _promote_all_but_bias
        super().__init__(*arguments, **options, promote_dtype=promote)

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        dtype = canonicalize_dtype(inputs, self.kernel.get_value(), dtype=self.dtype)
        with jax.numpy_dtype_promotion("standard"):  # of a narrow output and the bias
            return super().__call__(inputs, out_sharding).astype(dtype)


class Identity(nnx.Module):
    """The head of a model that returns its pooled features."""

    def __call__(self, x: Array) -> Array:
        return x


class AveragePool(nnx.Module):
    """The mean over height and width, in float32 at least."""

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n c"]:
        return jnp.mean(x, (1, 2), dtype=widest(x.dtype))
