"""Convolutions as XLA's CPU backend computes them fast; on TPU and GPU they are JAX's own.

XLA's CPU backend has a fast library for convolutions of one form, images (n, h, w, c) and kernels
(h, w, in, out). It brings all others into that form, but not those inside a loop: the gradients
of a convolution, which have other forms, take fifty times as long there. Here they have the form.
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

_FORM = ("NHWC", "HWIO", "NHWC")
_is_in_loop = ContextVar("is_in_loop", default=False)


@contextlib.contextmanager
def in_loop() -> Iterator[None]:
    """Convolutions that are traced within belong to a loop."""
    token = _is_in_loop.set(True)
    try:
        yield
    finally:
        _is_in_loop.reset(token)


def convolve(x: Array, kernel: Array, strides: Any, padding: Any, **options: Any) -> Array:
    """`jax.lax.conv_general_dilated`, on CPU in a form that is fast there.

    (n, h, w, in) and (k, k, in, out) to (n, h2, w2, out). In a loop on CPU it has no forward-mode
    derivative (`jax.jvp`), as no JAX function has whose gradient is written out.
    """
    dilations = {*options.get("lhs_dilation", ()), *options.get("rhs_dilation", ())}
    is_plain = (
        dilations <= {1}
        and not isinstance(padding, str)
        and options.get("feature_group_count", 1) == 1
        and options.get("out_sharding") is None
        and options.get("preferred_element_type") is None
        and _is_spread(x) == _is_spread(kernel)
        and not (_is_placed(x) or _is_placed(kernel))
    )
    if is_plain and jax.default_backend() == "cpu":
        edges = tuple((int(low), int(high)) for low, high in padding)
        is_known = all(isinstance(size, int) for size in x.shape[1:3])  # no symbols of an export
        if kernel.shape[:2] == (1, 1) and edges == ((0, 0), (0, 0)) and is_known:
            return _product(x, kernel, strides, options.get("precision"))
        if _is_in_loop.get():
            # asked for now: the gradients may be traced where another default holds (JAX adds its
            # options to its configuration as it is imported, which pyright does not see)
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


def _is_spread(x: Array) -> Any:
    """Over which axes of a `jax.shard_map`: JAX's own gradients know how to sum over them."""
    return getattr(jax.typeof(x), "manual_axis_type", None)


def _is_placed(x: Array) -> bool:
    """On a mesh with explicit axes: JAX's own gradients say where their results go."""
    mesh = jax.typeof(x).sharding.mesh
    return jax.sharding.AxisType.Explicit in mesh.axis_types


def _plain(
    strides: Pair, padding: tuple[Pair, ...], precision: Any, x: Array, kernel: Array
) -> Array:
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=_FORM, precision=precision
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
    """JAX's own gradients in a program for TPU or GPU that is lowered on a CPU."""
    x, kernel = residuals

    def stock(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
        run = partial(_plain, strides, padding, precision)
        return jax.vjp(run, x, kernel)[1](gradient)

    def in_form(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
        convolution = partial(
            lax.conv_general_dilated, dimension_numbers=_FORM, precision=precision
        )
        sizes, spans = x.shape[1:3], _spans(gradient.shape[1:3], strides)
        taps = kernel.shape[:2]
        # How far the dilated output gradient, `span` wide, is to be padded to meet every pixel.
        edges = [
            (k - 1 - low, size - span + low)
            for k, size, span, (low, _) in zip(taps, sizes, spans, padding, strict=True)
        ]
        flipped = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
        of_x = convolution(gradient, flipped, (1, 1), edges, lhs_dilation=strides)
        # Here the output gradient is the kernel, and the batch is what is summed over.
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

    return lax.platform_dependent(x, kernel, gradient, cpu=in_form, default=stock)


def _spans(outputs: tuple[int, ...], strides: Pair) -> list[int]:
    """Pixels from the first to the last place where the kernel was put."""
    return [(count - 1) * stride + 1 for count, stride in zip(outputs, strides, strict=True)]


_convolve.defvjp(_forward, _backward)
