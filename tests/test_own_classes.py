"""A block and a shortcut of one's own, in both twins: the worked example of docs/extending.md."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
import torch
from flax import nnx

import convert
import flax_resnet
import torch_resnet
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
    images = random_images(2, 15)
    flax_model.train()
    torch_model.train()
    assert relative_error(flax_model(jnp.asarray(images)), run_torch(torch_model, images)) <= 1e-12
    state, back = torch_model.state_dict(), convert.flax_to_torch(flax_model)
    assert set(back) == set(state)
    for name, tensor in back.items():
        assert relative_error(tensor.numpy(), state[name].numpy()) <= 1e-12, name
    assert torch_model.spec is None
    assert isinstance(torch_model.stages[0][0], torch.nn.Module)


class Plain(torch_resnet.BasicBlock):
    """A block of one's own."""


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"zero_init_residuals": True, "stochastic_dept": 0.3}, TypeError),
        ({"preact": True, "stem_planes": 7}, TypeError),
        ({"padding": "same"}, ValueError),
        ({"width": 0, "in_planes": 0}, ValueError),
        ({"drop_rate": 7.0}, ValueError),
    ],
    ids=str,
)
def test_every_argument_that_a_network_of_own_blocks_cannot_have_is_named(arguments, error):
    class FlaxPlain(flax_resnet.BasicBlock):
        pass

    for package, block, more in (
        (torch_resnet, Plain, {}),
        (flax_resnet, FlaxPlain, {"rngs": nnx.Rngs(0)}),
    ):
        with pytest.raises(error) as caught:
            package.ResNet([(1, 8), (1, 8)], block, **arguments, **more)
        assert all(name in str(caught.value) for name in arguments)


def test_a_normalisation_without_weights_is_left_as_it_is():
    class Bare(torch_resnet.BasicBlock):
        def __init__(self, *arguments: Any, **options: Any):
            super().__init__(*arguments, **options)
            self.bn2 = torch.nn.BatchNorm2d(self.out_planes, affine=False)

    model = torch_resnet.ResNet([(1, 8), (1, 8)], Bare, small_images=True)
    assert model(torch.ones(2, 3, 8, 8)).shape == (2, 8)
