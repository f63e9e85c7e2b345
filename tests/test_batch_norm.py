"""BatchNorm over devices: torch's numbers, in one reduction forward and one backward."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from flax_resnet import BatchNorm
from tests.torch_or_none import torch
from tests.twins import to_nchw

_AXIS = "devices"
_SHAPE = (8, 3, 2, 5)  # of a batch: images, height, width, channels


@pytest.mark.torch
@pytest.mark.parametrize("spread", ["pmap", "shard_map"])
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_a_batch_on_many_devices_is_torchs_in_float64(devices, spread):
    x, weights = _random(0), _random(1)
    scale, bias = np.random.default_rng(2).uniform(0.5, 1.5, (2, 5))
    norm = torch.nn.BatchNorm2d(5).double()
    norm.load_state_dict({"weight": _tensor(scale), "bias": _tensor(bias)}, strict=False)
    torch_x = to_nchw(x).requires_grad_()
    output = norm(torch_x)
    (output * to_nchw(weights)).sum().backward()
    assert torch_x.grad is not None
    expected: Any = (
        _nhwc(output),
        norm.running_mean,
        norm.running_var,
        _nhwc(torch_x.grad),
        norm.weight.grad,
        norm.bias.grad,
    )
    actual = _run(x, weights, scale, bias, devices=devices, spread=spread)
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == np.float64
        np.testing.assert_allclose(ours, theirs, rtol=1e-13, atol=1e-13)


@pytest.mark.torch
@pytest.mark.parametrize(("images", "devices"), [(2, 1), (2, 2), (2, 4), (2, 8), (4, 4), (1, 2)])
def test_groups_of_images_are_torchs_batches_one_by_one(images, devices):
    """On a part of a device, on one, or on several; the running statistics are the groups' mean."""
    x, weights = _random(0), _random(1)
    scale, bias = np.random.default_rng(2).uniform(0.5, 1.5, (2, 5))
    norms: list[Any] = []
    outputs: list[Any] = []
    inputs: list[Any] = []
    for part, part_weights in zip(*(_cut(a, images) for a in (x, weights)), strict=True):
        norms.append(torch.nn.BatchNorm2d(5).double())
        norms[-1].load_state_dict({"weight": _tensor(scale), "bias": _tensor(bias)}, strict=False)
        inputs.append(to_nchw(part).requires_grad_())
        outputs.append(norms[-1](inputs[-1]))
        (outputs[-1] * to_nchw(part_weights)).sum().backward()
    expected: Any = (
        np.concatenate([_nhwc(output) for output in outputs]),
        np.mean([norm.running_mean for norm in norms], 0),
        np.mean([norm.running_var for norm in norms], 0),
        np.concatenate([_nhwc(part.grad) for part in inputs]),
        sum(norm.weight.grad for norm in norms),
        sum(norm.bias.grad for norm in norms),
    )
    actual = _run(x, weights, scale, bias, devices=devices, images=images)
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("images", "devices"), [(3, 1), (3, 2), (16, 4), (12, 4)])
def test_groups_that_cut_a_device_or_a_batch_are_refused(images, devices):
    shares = _share((_random(0), _random(0)), devices)
    run = _mapped(np.ones(5), np.ones(5), devices=devices, images=images)
    if images > len(_random(0)):  # one group of all
        run.lower(*shares)
        return
    message = f"cannot cut {devices} times {8 // devices} images into groups of {images}: give"
    with pytest.raises(ValueError, match=message):
        run.lower(*shares)


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("is_fresh", [True, False])
def test_a_mean_of_a_thousand_deviations_keeps_its_variance_in_float32(devices, is_fresh):
    """From running statistics of zero, too: sums of squares less the square are 0.1 wrong."""
    x = (1e3 + _random(0, (16, 4, 4, 5))).astype(np.float32)
    exact = x.astype(np.float64)
    exact -= exact.mean((0, 1, 2))
    var = np.mean(exact**2, (0, 1, 2))
    numbers = [np.full(5, value, np.float32) for value in (1.0, 0.0)]
    mean = None if is_fresh else np.full(5, 1e3, np.float32)
    y, _, running_var, *_ = _run(x, x, *numbers, devices=devices, mean=mean)
    error = np.abs(y - exact / np.sqrt(var + 1e-5)) - 1e3 * np.finfo(np.float32).eps
    assert error.max() < 1e-4  # beyond the rounding of the mean itself
    np.testing.assert_allclose(running_var, 0.9 + 0.1 * var * 256 / 255, rtol=1e-5)


@pytest.mark.parametrize("devices", [1, 8])
def test_bfloat16_is_as_exact_as_its_values(devices):
    """Sums of squares, from running statistics of zero, where the mean is ten deviations."""
    x = jnp.asarray(10 + _random(0, (16, 8, 8, 5)), jnp.bfloat16)
    exact = np.asarray(x, np.float64)
    exact -= exact.mean((0, 1, 2))
    exact /= np.sqrt(np.mean(exact**2, (0, 1, 2)) + 1e-5)
    numbers = [np.full(5, value, np.float32) for value in (1.0, 0.0)]
    y, mean, var, of_x, *_ = _run(x, x, *numbers, devices=devices)
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=2**-8, atol=1e-4)
    assert mean.dtype == var.dtype == np.float32
    assert y.dtype == of_x.dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_devices_wait_for_each_other_once_forward_and_once_backward(dtype):
    x = jnp.zeros(_SHAPE, dtype)
    for images, waits in ((None, 2), (2, 2), (1, 0)):  # on all devices, on two, on each
        run = _mapped(jnp.ones(5), jnp.ones(5), devices=8, images=images)
        text = run.lower(*_share((x, x), 8)).as_text()
        assert text.count("stablehlo.all_") == text.count("stablehlo.all_reduce") == waits
        assert ("[[0, 1], [2, 3], [4, 5], [6, 7]]" in text) == (images == 2)


@pytest.mark.parametrize("images", [None, 2])
def test_a_gradient_keeps_the_input_and_numbers_per_channel(images):
    """No normalised copy in float32, which a scan over blocks would keep."""
    norm, x = BatchNorm(5, group_images=images), jnp.asarray(_random(0), jnp.bfloat16)
    graph, state = nnx.split(norm)
    _, gradient = jax.vjp(lambda x: nnx.merge(graph, state, copy=True)(x), x)
    kept = [leaf for leaf in jax.tree.leaves(gradient) if leaf.size > 5]
    assert [(leaf.size, leaf.dtype) for leaf in kept if leaf.size >= x.size] == [
        (x.size, jnp.bfloat16)
    ]


def test_derivatives_are_those_of_differences():
    """Forward, of the running statistics none, and the second ones."""
    norm = BatchNorm(5, param_dtype=jnp.float64)
    graph, state = nnx.split(norm)
    weights = jnp.asarray(_random(1))

    def loss(x: Any) -> Any:
        return jnp.sum(nnx.merge(graph, state, copy=True)(x) ** 3 * weights)

    check_grads(loss, (jnp.asarray(_random(0)),), order=2, rtol=1e-5)


def test_seeds_side_by_side_are_seeds_alone():
    x, numbers = np.stack([_random(seed) for seed in range(3)]), (np.ones(5), np.zeros(5))
    together = jax.pmap(
        jax.vmap(_call(*numbers)), _AXIS, in_axes=1, out_axes=1, devices=jax.devices()[:4]
    )
    shares = [np.reshape(a, (3, 4, 2, *_SHAPE[1:])) for a in (x, x)]
    for seed, images in enumerate(x):
        alone = _mapped(*numbers, devices=4)(*_share((images, images), 4))
        for ours, theirs in zip(together(*shares), alone, strict=True):
            np.testing.assert_allclose(ours[seed], theirs, rtol=1e-13, atol=1e-13)


def _run(
    x: Any,
    weights: Any,
    scale: Any,
    bias: Any,
    *,
    devices: int,
    spread: str = "pmap",
    mean: Any = None,
    images: int | None = None,
) -> tuple[Any, ...]:
    """Output, running mean and variance, and gradients of the input, the scale and the bias."""
    run = _mapped(scale, bias, devices=devices, spread=spread, mean=mean, images=images)
    y, mean, var, of_x, of_scale, of_bias = run(*_share((x, weights), devices))
    if spread == "pmap":
        for statistic in (mean, var) if images is None else ():
            np.testing.assert_array_equal(statistic, np.broadcast_to(statistic[0], statistic.shape))
        mean, var, of_scale, of_bias = mean.mean(0), var.mean(0), of_scale.sum(0), of_bias.sum(0)
    return np.reshape(y, x.shape), mean, var, np.reshape(of_x, x.shape), of_scale, of_bias


def _mapped(
    scale: Any,
    bias: Any,
    *,
    devices: int,
    spread: str = "pmap",
    mean: Any = None,
    images: int | None = None,
) -> Any:
    call, chosen = _call(scale, bias, mean, images), jax.devices()[:devices]
    if spread == "pmap":
        return jax.pmap(call, _AXIS, devices=chosen)
    mesh = jax.sharding.Mesh(np.array(chosen), (_AXIS,))
    over, whole = jax.sharding.PartitionSpec(_AXIS), jax.sharding.PartitionSpec()
    # JAX checks what is the same on all devices, and adds up the gradients of what is
    specs = (over, whole, whole, over, whole, whole)
    return jax.shard_map(
        lambda *shares: call(*(a[0] for a in shares)), mesh=mesh, in_specs=over, out_specs=specs
    )


def _call(scale: Any, bias: Any, mean: Any = None, images: int | None = None) -> Callable[..., Any]:
    """(x, weights of the loss) -> what `_run` returns, of one device's share."""
    norm = BatchNorm(5, param_dtype=scale.dtype, axis_name=_AXIS, group_images=images)
    norm.mean.set_value(norm.mean.get_value() if mean is None else jnp.asarray(mean))
    graph, state = nnx.split(norm)

    def loss(x: Any, numbers: Any, weights: Any) -> Any:
        layer = nnx.merge(graph, state, copy=True)
        layer.scale.set_value(numbers[0])
        layer.bias.set_value(numbers[1])
        y = layer(x)
        return jnp.sum(y * weights), (y, layer.mean.get_value(), layer.var.get_value())

    def call(x: Any, weights: Any) -> Any:
        numbers = jax.tree.map(jnp.asarray, (scale, bias))
        gradients, outputs = jax.grad(loss, (0, 1), has_aux=True)(x, numbers, weights)
        return (*outputs, gradients[0], *gradients[1])

    return call


def _share(arrays: Any, devices: int) -> list[Any]:
    return [a.reshape(devices, -1, *a.shape[1:]) for a in arrays]


def _cut(array: np.ndarray, images: int) -> np.ndarray:
    return array.reshape(-1, images, *array.shape[1:])


def _random(seed: int, shape: tuple[int, ...] = _SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def _tensor(array: np.ndarray) -> "torch.Tensor":
    return torch.from_numpy(array)


def _nhwc(tensor: "torch.Tensor") -> np.ndarray:
    return tensor.detach().numpy().transpose(0, 2, 3, 1)
