"""Convolutions in the layout that is fast on XLA's CPU backend; JAX's own on TPU and GPU.

XLA's CPU backend has a fast library for one layout: images (n, h, w, c), kernels (h, w, in, out).
It converts other layouts to this one, but not inside a loop. The gradients of a convolution have
other layouts and take fifty times as long there, so this file writes them in the fast layout.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

Pair = tuple[int, int]

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_is_in_loop = ContextVar("is_in_loop", default=False)
_platform: ContextVar[str | None] = ContextVar("platform", default=None)


@contextlib.contextmanager
def in_loop() -> Iterator[None]:
    """Convolutions that are traced in this context are inside a loop."""
    token = _is_in_loop.set(True)
    try:
        yield
    finally:
        _is_in_loop.reset(token)


@contextlib.contextmanager
def on_platform(name: str) -> Iterator[None]:
    """Convolutions that are traced in this context are compiled for this platform.

    Elsewhere they are compiled for JAX's default one.
    """
    token = _platform.set(name)
    try:
        yield
    finally:
        _platform.reset(token)


def convolve(x: Array, kernel: Array, strides: Any, padding: Any, **options: Any) -> Array:
    """`jax.lax.conv_general_dilated`, on CPU in the layout that is fast there.

    (n, h, w, in) and (k, k, in, out) to (n, h2, w2, out). In a loop on CPU it has no forward-mode
    derivative (`jax.jvp`), like every JAX function with a custom gradient.
    """
    dilations = {*options.get("lhs_dilation", ()), *options.get("rhs_dilation", ())}
    is_plain = (
        dilations <= {1}
        and not isinstance(padding, str)
        and options.get("feature_group_count", 1) == 1
        and options.get("out_sharding") is None
        and options.get("preferred_element_type") is None
        and _varying_axes(x) == _varying_axes(kernel)
        and not (_is_placed(x) or _is_placed(kernel))
    )
    if is_plain and (_platform.get() or jax.default_backend()) == "cpu":
        edges = tuple((int(low), int(high)) for low, high in padding)
        is_known = all(isinstance(size, int) for size in x.shape[1:3])  # not symbols of an export
        if kernel.shape[:2] == (1, 1) and edges == ((0, 0), (0, 0)) and is_known:
            return _product(x, kernel, strides, options.get("precision"))
        if _is_in_loop.get():
            # Read now: the gradients may be traced where another default holds. (JAX adds its
            # options when it is imported, so pyright does not know them.)
            default = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
            precision = options.get("precision") or default
            return _convolve(tuple(strides), edges, precision, x, kernel)
    return lax.conv_general_dilated(x, kernel, strides, padding, **options)


def _product(x: Array, kernel: Array, strides: Any, precision: Any) -> Array:
    """A 1x1 convolution as a product of two matrices, whose gradients XLA's CPU backend computes
    in a half to a fifth of the time.
    """
    x = x[:, :: strides[0], :: strides[1]]
    pixels = x.reshape(-1, x.shape[-1])
    return jnp.matmul(pixels, kernel[0, 0], precision=precision).reshape(
        *x.shape[:3], kernel.shape[3]
    )


def _varying_axes(x: Array) -> Any:
    """The axes of a `jax.shard_map` over which `x` varies: only JAX's gradients sum over them."""
    return getattr(jax.typeof(x), "manual_axis_type", None)


def _is_placed(x: Array) -> bool:
    """Whether `x` is on a mesh with explicit axes: only JAX's gradients place their results."""
    mesh = jax.typeof(x).sharding.mesh
    return jax.sharding.AxisType.Explicit in mesh.axis_types


def _plain(
    strides: Pair, padding: tuple[Pair, ...], precision: Any, x: Array, kernel: Array
) -> Array:
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=_LAYOUT, precision=precision
    )


_convolve = jax.custom_vjp(_plain, nondiff_argnums=(0, 1, 2))


def _forward(
    strides: Pair, padding: tuple[Pair, ...], precision: Any, x: Array, kernel: Array
) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(strides, padding, precision, x, kernel), (x, kernel)


def _backward(
    strides: Pair,
    padding: tuple[Pair, ...],
    precision: Any,
    residuals: tuple[Array, Array],
    gradient: Array,
) -> tuple[Array, Array]:
    """A program for TPU or GPU that is lowered on a CPU has JAX's own gradients."""
    x, kernel = residuals

    def stock(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
        run = partial(_plain, strides, padding, precision)
        return jax.vjp(run, x, kernel)[1](gradient)

    def in_layout(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
        convolution = partial(
            lax.conv_general_dilated, dimension_numbers=_LAYOUT, precision=precision
        )
        sizes, spans = x.shape[1:3], _spans(gradient.shape[1:3], strides)
        taps = kernel.shape[:2]
        # The padding with which the dilated output gradient, `span` wide, meets every pixel.
        edges = [
            (k - 1 - low, size - span + low)
            for k, size, span, (low, _) in zip(taps, sizes, spans, padding, strict=True)
        ]
        flipped = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
        of_x = convolution(gradient, flipped, (1, 1), edges, lhs_dilation=strides)
        # Here the output gradient is the kernel, and the sum is over the batch.
        edges = [
            (low, k + span - 1 - size - low)
            for k, size, span, (low, _) in zip(taps, sizes, spans, padding, strict=True)
        ]
        of_kernel = convolution(
            x.transpose(3, 1, 2, 0),
            gradient.transpose(1, 2, 0, 3),
            (1, 1),
            edges,
            rhs_dilation=strides,
        )
        return of_x, of_kernel.transpose(1, 2, 0, 3)

    return lax.platform_dependent(x, kernel, gradient, cpu=in_layout, default=stock)


def _spans(outputs: tuple[int, ...], strides: Pair) -> list[int]:
    """Pixels from the first to the last position of the kernel."""
    return [(count - 1) * stride + 1 for count, stride in zip(outputs, strides, strict=True)]


_convolve.defvjp(_forward, _backward)
