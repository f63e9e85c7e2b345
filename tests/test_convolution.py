"""The convolution of scanned blocks: JAX's gradients, in the form that is fast on CPU."""

import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flax_resnet
from flax_resnet.convolution import convolve, in_loop
from flax_resnet.layers import kaiming_normal
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
    assert len(forms) >= 9  # 1x1 ones are products of matrices
    assert set(forms) == {"b01f_01io->b01f"}


def test_gradients_have_the_precision_of_the_forward_pass():
    """Also where they are traced after its context has ended, as jax.grad does."""
    x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))

    def loss(kernel):
        with in_loop(), jax.default_matmul_precision("highest"):
            y = convolve(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=FORM)
        return jnp.sum(y**2)

    text = str(jax.make_jaxpr(jax.grad(loss))(kernel))
    precisions = re.findall(r"precision=(.*)", text)
    assert len(precisions) >= 3
    assert all("HIGHEST" in precision for precision in precisions), precisions


def test_a_kernel_that_devices_share_gets_the_sum_of_their_gradients():
    """Inside `jax.shard_map`, which checks what is spread and what is not."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("d",))
    x, kernel = jnp.ones((4, 4, 4, 2)), jnp.ones((3, 3, 2, 2))

    def gradient(x, kernel):
        def loss(kernel):
            with in_loop():
                y = convolve(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=FORM)
            return jax.lax.psum(jnp.sum(y), "d")

        return jax.grad(loss)(kernel)

    spec = jax.sharding.PartitionSpec
    over = jax.shard_map(gradient, mesh=mesh, in_specs=(spec("d"), spec()), out_specs=spec())
    whole = jax.grad(
        lambda k: jnp.sum(
            jax.lax.conv_general_dilated(x, k, (1, 1), ((1, 1), (1, 1)), dimension_numbers=FORM)
        )
    )(kernel)
    np.testing.assert_allclose(over(x, kernel), whole, rtol=1e-5)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_gradients_in_a_loop_on_a_mesh_with_explicit_axes_are_those_of_jax(kernel_size):
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.standard_normal((4, 6, 6, 3)))
    kernel = jnp.asarray(generator.standard_normal((kernel_size, kernel_size, 3, 2)))
    edge = (kernel_size // 2, kernel_size // 2)

    def loss(x, kernel):
        with in_loop():
            return jnp.sum(convolve(x, kernel, (1, 1), (edge, edge), dimension_numbers=FORM) ** 2)

    gradient = jax.jit(jax.grad(loss, (0, 1)))
    expected = gradient(x, kernel)
    mesh = jax.make_mesh((2,), ("d",))  # explicit, as JAX makes one
    places = jax.NamedSharding(mesh, jax.P("d")), jax.NamedSharding(mesh, jax.P())
    with jax.set_mesh(mesh):
        actual = gradient(*jax.device_put((x, kernel), places))
    for one, other in zip(actual, expected, strict=True):
        assert relative_error(one, other) <= 1e-13


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_convolution_of_one_pixel_is_a_product_with_the_same_result_and_gradients(stride):
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.standard_normal((2, 7, 8, 3)))
    kernel = jnp.asarray(generator.standard_normal((1, 1, 3, 4)))
    arguments = ((stride, stride), ((0, 0), (0, 0)))
    expected, pull = jax.vjp(
        lambda x, k: jax.lax.conv_general_dilated(x, k, *arguments, dimension_numbers=FORM),
        x,
        kernel,
    )
    actual, own_pull = jax.vjp(
        lambda x, k: convolve(x, k, *arguments, dimension_numbers=FORM), x, kernel
    )
    gradient = jnp.asarray(generator.standard_normal(expected.shape))
    assert relative_error(actual, expected) <= 1e-14
    for own, jaxs in zip(own_pull(gradient), pull(gradient), strict=True):
        assert relative_error(own, jaxs) <= 1e-14
    jaxpr = str(jax.make_jaxpr(lambda x: convolve(x, kernel, *arguments))(x))
    assert "dot_general" in jaxpr
    assert "conv_general" not in jaxpr


@pytest.mark.parametrize("shape", [(3, 3, 16, 32), (1, 1, 64, 16), (7, 7, 3, 64)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_kernels_are_drawn_as_jax_draws_them(shape, dtype):
    """To the bit, compiled or not, though along one axis, in all releases.

    JAX's own initialiser multiplies the same numbers, in an order that depends on its release.
    """
    dtype, key = jnp.dtype(dtype), jax.random.key(0)
    ours = partial(kaiming_normal, shape=shape, dtype=dtype)
    fan_out = shape[0] * shape[1] * shape[3]
    exact = jax.random.normal(key, shape, dtype) * jnp.sqrt(jnp.array(2 / fan_out, dtype))
    np.testing.assert_array_equal(ours(key), exact)
    np.testing.assert_array_equal(jax.jit(ours)(key), exact)
    jaxs = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")(key, shape, dtype)
    # Until 0.10.2 the same bits where it is not compiled; 0.12 multiplies in another order.
    ulps = 2 if jax.__version_info__ >= (0, 11) else 0
    np.testing.assert_allclose(
        exact.astype(float), jaxs.astype(float), rtol=ulps * float(jnp.finfo(dtype).eps), atol=0
    )
