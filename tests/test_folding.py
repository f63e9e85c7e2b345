"""Biases before a BatchNorm, and another epsilon, folded away: the logits are those of the peer."""

import dataclasses

import numpy as np
import pytest
import torch

import torch_resnet
from convert.arrays import as_arrays
from convert.folding import fold
from resnet_spec import ResNetSpec, find_spec
from tests.twins import random_images, randomise, relative_error, run_torch

EPSILONS = (1.001e-5, 1e-3, 1e-6)  # Keras's, TensorFlow's, and one smaller than ours


def with_biases(spec: ResNetSpec, epsilon: float) -> torch.nn.Module:
    """A torch twin in float64 with a bias in every convolution, and another epsilon."""
    model = torch_resnet.from_spec(spec).double()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.bias = torch.nn.Parameter(torch.empty(module.out_channels, dtype=torch.double))
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = epsilon
    randomise(model)
    for module in model.modules():  # variances near zero, where an epsilon counts
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_var is not None
            module.running_var[0] = 2e-6
            module.weight.data[0] *= 1e-3
    return model.eval()


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize(
    ("name", "shortcut"),
    [
        ("ResNet20", "projection"),
        ("ResNet20", "identity"),
        ("PreActResNet20", "identity"),
        ("PreActResNet20", "centred_identity"),
        ("PreActResNet164", "full_projection"),
    ],
)
def test_a_network_with_biases_and_another_epsilon_is_one_of_ours_in_evaluation(
    name, shortcut, epsilon
):
    spec = dataclasses.replace(find_spec(name), stage_depths=(2, 2, 2), shortcut=shortcut)
    theirs, ours = with_biases(spec, epsilon), torch_resnet.from_spec(spec).double()
    arrays, notes = fold(as_arrays(theirs.state_dict()), spec, epsilon)
    ours.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    images = random_images(2, 16)
    assert relative_error(run_torch(ours.eval(), images), run_torch(theirs, images)) <= 1e-12
    num_convs = sum(1 for _ in spec.convolutions())
    assert notes == (
        f"folded into running means: the biases of {num_convs} convolutions",
        f"folded into running variances: BatchNorm's epsilon {epsilon:g}, here 1e-5",
        "evaluation is the same; further training is not, as it lacks what is folded",
    )


def test_nothing_to_fold_changes_nothing_and_an_epsilon_may_be_that_of_one_layer():
    model = torch_resnet.ResNet20()
    arrays = as_arrays(model.state_dict())
    spec = find_spec("ResNet20")
    same, notes = fold(arrays, spec)
    assert notes == ()
    assert all(same[name] is array for name, array in arrays.items())
    changed, _ = fold(arrays, spec, {"stem.bn": 1e-3})
    others = {name for name in arrays if changed[name] is not arrays[name]}
    assert others == {"stem.bn.running_var"}
    variance = arrays["stem.bn.running_var"].astype(np.float64)
    np.testing.assert_array_equal(
        changed["stem.bn.running_var"], (variance + (1e-3 - 1e-5)).astype(np.float32)
    )
