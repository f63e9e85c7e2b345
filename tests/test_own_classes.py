"""A block and a shortcut of one's own, in both twins: the worked example of docs/extending.md."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import torch
from flax import nnx

import convert
from tests.twins import random_images, randomise, relative_error, run_torch

EXAMPLE = Path(__file__).parents[1] / "docs" / "extending.md"


def example() -> dict[str, Any]:
    """What the document's Python blocks define, run one after the other."""
    from tests.test_docs import python_blocks

    namespace: dict[str, Any] = {"__name__": "extending"}
    for block in python_blocks(EXAMPLE):
        exec(compile(block, str(EXAMPLE), "exec"), namespace)
    return namespace


def test_the_worked_example_agrees_in_both_twins():
    names = example()
    dimensions = [(1, 8), (2, 8), (2, 16)]
    torch_model = (
        names["torch_resnet"]
        .ResNet(
            dimensions,
            names["TorchSEBlock"],
            shortcut=names["TorchPoolShortcut"],
            small_images=True,
        )
        .double()
    )
    flax_model = names["flax_resnet"].ResNet(
        dimensions,
        names["FlaxSEBlock"],
        shortcut=names["FlaxPoolShortcut"],
        small_images=True,
        rngs=nnx.Rngs(0),
        param_dtype=jnp.float64,
    )
    randomise(torch_model)
    convert.torch_to_flax(torch_model.state_dict(), flax_model)
    images = random_images(2, 16)
    flax_model.train()
    torch_model.train()
    assert relative_error(flax_model(jnp.asarray(images)), run_torch(torch_model, images)) <= 1e-12
    state, back = torch_model.state_dict(), convert.flax_to_torch(flax_model)
    assert set(back) == set(state)
    for name, tensor in back.items():
        assert relative_error(tensor.numpy(), state[name].numpy()) <= 1e-12, name
    assert torch_model.spec is None
    assert isinstance(torch_model.stages[0][0], torch.nn.Module)
