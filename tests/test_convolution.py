"""The convolution of scanned blocks: JAX's gradients, in the form that is fast on CPU."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flax_resnet
from flax_resnet.convolution import convolve, in_loop
from tests.twins import random_images, relative_error

FORM = ("NHWC", "HWIO", "NHWC")
EDGES = [((0, 0), (0, 0)), ((1, 1), (1, 1)), ((0, 1), (2, 0)), ((3, 3), (3, 3))]


@pytest.mark.parametrize("kernel_size", [1, 3, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_gradients_in_a_loop_are_those_of_jax(kernel_size, stride):
    """Odd and even sizes, uneven padding, and strides that do not reach the last pixel."""
    generator = np.random.default_rng(0)
    for size, padding in itertools.product((7, 8), EDGES):
        x = jnp.asarray(generator.standard_normal((2, size, size + 1, 3)))
        kernel = jnp.asarray(generator.standard_normal((kernel_size, kernel_size, 3, 4)))

        def run(x, kernel, padding=padding):
            strides = (stride, stride)
            return convolve(x, kernel, strides, padding, dimension_numbers=FORM)

        expected, pull = jax.vjp(run, x, kernel)
        gradient = jnp.asarray(generator.standard_normal(expected.shape))
        with in_loop():
            actual, own_pull = jax.vjp(run, x, kernel)
        np.testing.assert_array_equal(actual, expected)
        assert own_pull(gradient)[0].shape == x.shape
        for own, jaxs in zip(own_pull(gradient), pull(gradient), strict=True):
            assert relative_error(own, jaxs) <= 1e-13, (size, padding)


@pytest.mark.parametrize("name", ["ResNet32", "PreActResNet164"])
def test_every_convolution_of_a_scanned_step_has_the_form_that_is_fast_on_cpu(name):
    """In XLA's own words, after its passes: b01f with 01io, in the loops as outside of them."""
    model = flax_resnet.create(name, 10, rngs=nnx.Rngs(0), scan_blocks=True)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    images = jnp.asarray(random_images(2, 16, "float32"))

    def loss(params):
        return jnp.sum(nnx.merge(graph, params, rest, copy=True)(images) ** 2)

    compiled = jax.jit(jax.grad(loss)).lower(params).compile().as_text()
    forms = re.findall(r" convolution\(.*dim_labels=(\S+?)[, ]", f"{compiled} ")
    assert len(forms) >= 20
    assert set(forms) == {"b01f_01io->b01f"}
