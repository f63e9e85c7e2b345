"""Pairs of twins with the same weights, random in every leaf."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

import convert
import flax_resnet
from convert.arrays import same_bits, to_numpy
from flax_resnet.layers import no_values
from flax_resnet.variables import named_variables
from resnet_spec import find_spec
from tests.torch_or_none import torch, torch_resnet

NUM_CLASSES = 10


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Random values in every leaf, of a size that keeps the signal through any depth.

    Fresh initial values would hide swapped leaves: every scale is 1, every bias 0.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: torch.Tensor, low: float, high: float) -> None:
        with torch.no_grad():
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(low + (high - low) * noise)

    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            uniform(module.weight, 0.5, 1.5)
            uniform(module.bias, -0.5, 0.5)
            assert module.running_mean is not None
            assert module.running_var is not None
            assert module.num_batches_tracked is not None
            uniform(module.running_mean, -0.5, 0.5)
            uniform(module.running_var, 0.5, 1.5)
            module.num_batches_tracked.fill_(int(torch.randint(1, 1000, (), generator=generator)))
        elif isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            bound = (3 / module.weight[0].numel()) ** 0.5  # variance 1 / fan in
            uniform(module.weight, -bound, bound)
            if module.bias is not None:
                uniform(module.bias, -0.5, 0.5)
    blocks = [(m, m.last_layer) for m in model.modules() if hasattr(m, "last_layer")]
    for block, last_layer in blocks:  # else the sum of 600 residuals grows to 1e47
        with torch.no_grad():
            block.get_parameter(f"{last_layer}.weight").div_(len(blocks) ** 0.5)


def make_twins(
    name: str, *, dtype: str = "float64", num_classes: int | None = NUM_CLASSES, **options: Any
) -> tuple[Any, Any]:
    """A Flax and a torch model with the same random weights, by way of the converter."""
    with torch.device("meta"):  # initial values are not needed
        torch_model = torch_resnet.create(name, num_classes, **options)
    torch_model.to(getattr(torch, dtype)).to_empty(device="cpu")
    randomise(torch_model)
    with no_values():
        flax_model = flax_resnet.create(
            name, num_classes, rngs=nnx.Rngs(0), param_dtype=getattr(jnp, dtype), **options
        )
    convert.torch_to_flax(torch_model.state_dict(), flax_model)
    return flax_model, torch_model


def make_flax(name: str, *, dtype: str = "float64", **options: Any) -> Any:
    """A Flax model alone, random in every leaf, for tests that run without torch, too."""
    with no_values():
        model = flax_resnet.create(
            name, NUM_CLASSES, rngs=nnx.Rngs(0), param_dtype=getattr(jnp, dtype), **options
        )
    fill_randomly(model)
    return model


def fill_randomly(model: nnx.Module) -> None:
    """As `randomise`, for a Flax model, in its order of variables."""
    generator = np.random.default_rng(0)
    bounds = {"scale": (0.5, 1.5), "var": (0.5, 1.5), "num_batches_tracked": (1, 1000)}
    for path, variable in named_variables(model).items():
        shape, dtype = variable.get_value().shape, variable.get_value().dtype
        low, high = bounds.get(path.rpartition(".")[2], (-0.5, 0.5))
        if len(shape) > 1:  # variance 1 / fan in
            high = (3 / np.prod(shape[:-1])) ** 0.5
            low = -high
        variable.set_value(jnp.asarray(generator.uniform(low, high, shape), dtype))


def image_size(name: str) -> int:
    """A size at which no stage shrinks to one pixel.

    A stem for large images makes 16 of 64: stages of equal width have equal shapes behind either
    stem, and their operations compile once.
    """
    return 16 if find_spec(name).small_images else 64


def random_images(count: int, size: int, dtype: str = "float64", channels: int = 3) -> np.ndarray:
    """(count, size, size, channels), standard normal."""
    images = np.random.default_rng(0).standard_normal((count, size, size, channels))
    return images.astype(dtype)


def to_nchw(images: np.ndarray) -> torch.Tensor:
    """(n, h, w, c) -> (n, c, h, w), as torch takes images."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def run_torch(model: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """Outputs of the torch twin for (n, h, w, c) images."""
    with torch.no_grad():
        return model(to_nchw(images)).numpy()


def relative_error(actual: Any, expected: Any) -> float:
    """Largest difference over the largest magnitude."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    scale = float(np.abs(expected).max()) if expected.size else 0.0
    difference = float(np.abs(actual - expected).max()) if expected.size else 0.0
    assert np.isfinite(difference)
    return difference / scale if scale else difference


def assert_same_state(one: Any, other: Any) -> None:
    """Equal names, shapes, dtypes and bits."""
    assert set(one) == set(other)
    for name in one:
        assert same_bits(to_numpy(one[name]), to_numpy(other[name])), name
