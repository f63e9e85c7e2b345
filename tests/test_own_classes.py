"""A block and a shortcut of one's own, in both twins: the worked example of docs/extending.md."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import convert
import flax_resnet
import resnet_spec
import torch_resnet
from flax_resnet import layers
from flax_resnet.layers import kaiming_normal
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


def test_the_worked_example_in_bfloat16_adds_up_as_in_float32():
    """With a bias, and a window of a whole image; the stock layers fail at each."""
    names = example()
    context: Any = {"rngs": nnx.Rngs(0), "dtype": jnp.bfloat16}
    images = jnp.ones((32, 56, 56, 4), jnp.bfloat16)
    means = names["FlaxPoolShortcut"](4, 8, 56)(images)
    assert means.dtype == jnp.bfloat16
    np.testing.assert_array_equal(means[..., :4], np.ones((32, 1, 1, 4)))
    assert float(nnx.avg_pool(images, (56, 56))[0, 0, 0, 0]) < 0.5
    block = names["FlaxSEBlock"](4, 8, shortcut=names["FlaxPoolShortcut"], stride=2, **context)
    block.conv = layers.Conv(4, 8, (3, 3), 2, padding=1, **context)  # with a bias
    assert block(images).dtype == block.conv(images).dtype == jnp.bfloat16

    @nnx.grad
    def gradients(conv: nnx.Conv) -> Any:
        return conv(images).astype(jnp.float32).sum()

    exact = 32 * 28 * 28
    np.testing.assert_array_equal(gradients(block.conv)["bias"].get_value(), exact)
    stock = nnx.Conv(4, 8, (3, 3), 2, padding=1, **context)
    assert float(gradients(stock)["bias"].get_value()[0]) < exact / 2
    with jax.numpy_dtype_promotion("strict"):
        assert block.conv(images).dtype == jnp.bfloat16


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
        ({"small_images": "no", "zero_init_residual": 1}, ValueError),
        ({"drop_rate": "0.1", "stochastic_depth": None}, ValueError),
        ({"stochastic_depth": True}, ValueError),
        ({"stochastic_depth": float("nan")}, ValueError),
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
        row = resnet_spec.find_spec("ResNet20").to_json()
        if error is ValueError and "padding" not in arguments:  # in the words of the table's rows
            with pytest.raises(ValueError, match=f"^{re.escape(str(caught.value))}$"):
                resnet_spec.ResNetSpec.from_json({**row, **arguments})


def test_a_normalisation_without_weights_is_left_as_it_is():
    class Bare(torch_resnet.BasicBlock):
        def __init__(self, *arguments: Any, **options: Any):
            super().__init__(*arguments, **options)
            self.bn2 = torch.nn.BatchNorm2d(self.out_planes, affine=False)

    model = torch_resnet.ResNet([(1, 8), (1, 8)], Bare, small_images=True)
    assert model(torch.ones(2, 3, 8, 8)).shape == (2, 8)


def test_what_a_block_of_ones_own_has_set_stays_and_the_rest_starts_as_the_papers_say():
    class Torch(torch_resnet.BasicBlock):
        def __init__(self, in_planes: int, planes: int, **options: Any):
            super().__init__(in_planes, planes, **options)
            self.conv1 = torch.nn.Conv2d(in_planes, planes, 3, options["stride"], 1, bias=False)
            self.gate = torch.nn.Conv2d(planes, planes, 1)
            torch.nn.init.constant_(self.gate.weight, 0.25)
            torch.nn.init.zeros_(self.bn2.weight)
            self.conv2.weight = torch.nn.Parameter(torch.ones(planes, planes, 3, 3))

    class Flax(flax_resnet.BasicBlock):
        def __init__(self, in_planes: int, planes: int, **options: Any):
            super().__init__(in_planes, planes, **options)
            context = {name: options[name] for name in ("rngs", "dtype", "param_dtype")}
            self.conv1 = nnx.Conv(
                *(in_planes, planes, (3, 3), options["stride"]),
                padding=1,
                use_bias=False,
                kernel_init=kaiming_normal,
                **context,
            )
            quarter = nnx.initializers.constant(0.25)
            self.gate = nnx.Conv(planes, planes, (1, 1), kernel_init=quarter, **context)
            self.bn2.scale.set_value(jnp.zeros(planes))
            self.conv2.kernel.set_value(jnp.ones((3, 3, planes, planes)))

    torch.manual_seed(0)
    dimensions = [(1, 64), (1, 64)]
    torch_model = torch_resnet.ResNet(dimensions, Torch)
    flax_model = flax_resnet.ResNet(dimensions, Flax, rngs=nnx.Rngs(0))
    states = torch_model.state_dict(), convert.flax_to_torch(flax_model)
    for state in states:
        assert (state["stages.0.0.gate.weight"] == 0.25).all()
        assert (state["stages.0.0.conv2.weight"] == 1).all()
        assert not state["stages.0.0.bn2.weight"].any()
        for name in ("stem.conv.weight", "stages.0.0.conv1.weight"):
            assert_kaiming_normal(state[name])


def test_a_network_built_in_inference_mode_starts_as_any_other():
    states = []
    for is_inference in (False, True):
        torch.manual_seed(0)
        with torch.inference_mode(is_inference):
            states.append(torch_resnet.create("ResNet20", 10).state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def assert_kaiming_normal(weight: torch.Tensor) -> None:
    z = weight.double() / (2 / (weight.shape[0] * weight[0, 0].numel())) ** 0.5
    assert abs(z.std() - 1) < 0.03
    assert z.abs().max() > 3.3  # no uniform distribution's, nor one cut at two deviations


def test_the_worked_examples_layers_start_alike_in_both_twins():
    """Deviations: Kaiming over the fan out of convolutions, torch's uniform of the linear ones."""
    names, dimensions = example(), [(1, 64), (1, 64), (2, 128)]
    torch.manual_seed(0)
    torch_model = names["torch_resnet"].ResNet(
        dimensions, names["TorchSEBlock"], shortcut=names["TorchPoolShortcut"]
    )
    flax_model = names["flax_resnet"].ResNet(
        dimensions, names["FlaxSEBlock"], shortcut=names["FlaxPoolShortcut"], rngs=nnx.Rngs(0)
    )
    for state in (torch_model.state_dict(), convert.flax_to_torch(flax_model)):
        for block in ("stages.0.0", "stages.1.0", "stages.1.1"):
            assert_kaiming_normal(state[f"{block}.conv.weight"])
            for name in ("squeeze", "excite"):
                weight, bias = state[f"{block}.{name}.weight"], state[f"{block}.{name}.bias"]
                bound = weight.shape[1] ** -0.5
                assert weight.abs().max() <= bound * (1 + 1e-6)
                assert bias.abs().max() <= bound * (1 + 1e-6)
                assert abs(weight.std() / bound - 3**-0.5) < 0.04
                assert abs(bias.std() / bound - 3**-0.5) < 0.2
