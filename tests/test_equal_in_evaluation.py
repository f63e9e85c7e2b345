"""Files whose networks are ours in evaluation alone: biases, epsilons, masks, missing counters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import convert
import torch_resnet
from convert.layouts import LAYOUTS
from tests.commands import assert_refused, run_here
from tests.test_any_names import State, numbered_scheme, take, theirs_of
from tests.test_structure import OUTSIDE, SHORTCUT_NAMES, numbered, scheme
from tests.twins import random_images, randomise, relative_error, run_torch

FORTY_BLOCKS = scheme("layer{S}.{b}.", numbered("{k}{n}"), SHORTCUT_NAMES[1], OUTSIDE[0])


def network(name: str, *, has_biases: bool = False, epsilon: float = 1e-5, **options: str) -> Any:
    """A float64 twin that is no row of the table: with biases, and another epsilon."""
    model = torch_resnet.create(name, 10, **options).double()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and has_biases:
            module.bias = torch.nn.Parameter(torch.empty(module.out_channels, dtype=torch.double))
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = epsilon
    randomise(model)
    return model.eval()


def under(model: Any, name: str, rename: Callable[[str], str], **options: str) -> State:
    """The state dict of `network` under an author's names, its biases beside their weights."""
    _, truth = theirs_of(torch_resnet.create(name, 10, **options), rename)
    state = model.state_dict()
    theirs = {ours: truth.get(ours) or f"{truth[ours[:-4] + 'weight'][:-6]}bias" for ours in state}
    return {theirs[name]: tensor.clone() for name, tensor in state.items()}


def assert_computes(path: Path, model: Any, *, within: float = 1e-12) -> None:
    """The file's network gives the logits of the author's."""
    images = random_images(2, 32, "float64", model.spec.in_planes)
    loaded = convert.load(path, backend="torch")
    assert relative_error(run_torch(loaded, images), run_torch(model, images)) <= within


@pytest.mark.parametrize("options", [(), ("--layout", "torch-resnet", "--model", "PreActResNet20")])
@pytest.mark.parametrize("epsilon", [1e-5, 1e-3])
def test_biases_and_another_epsilon_are_folded_and_that_is_said(options, epsilon, tmp_path):
    name, rename = "PreActResNet20", numbered_scheme(4)
    shortcut = convert.layout_spec(name, "torch-resnet").shortcut
    model = network(name, has_biases=True, epsilon=epsilon, shortcut=shortcut)
    if options:
        rename = dict(LAYOUTS["torch-resnet"].names(model.spec)).__getitem__
    torch.save(under(model, name, rename, shortcut=shortcut), tmp_path / "theirs.pt")
    said = take(tmp_path, "theirs.pt", *options, "--epsilon", str(epsilon))
    assert "folded into running means: the biases of 21 convolutions" in said
    assert ("epsilon 0.001, here 1e-5" in said) == (epsilon == 1e-3)
    assert "further training is not" in said
    assert ("BatchNorm's epsilon 1e-5" in said) == (epsilon == 1e-5)
    assert "dtypes are kept: " in said
    assert "tensors of float64" in said
    assert_computes(tmp_path / "ours.pt", model)


def test_masks_of_pruning_are_multiplied(tmp_path):
    model = network("ResNet20")
    state = under(model, "ResNet20", FORTY_BLOCKS)
    generator, pruned = torch.Generator().manual_seed(0), State()
    for name, tensor in state.items():
        if tensor.ndim == 4:
            mask = (torch.rand(tensor.shape, generator=generator) < 0.5).double()
            pruned |= {f"{name}_orig": tensor, f"{name}_mask": mask}
            tensor.mul_(mask)
        else:
            pruned[name] = tensor
    ours = dict(zip(model.state_dict(), state.values(), strict=True))
    model.load_state_dict(ours)
    torch.save(pruned, tmp_path / "theirs.pt")
    said = take(tmp_path, "theirs.pt")
    assert "multiplied by their masks: 21 tensors that were pruned" in said
    assert_computes(tmp_path / "ours.pt", model, within=0)
    pruned["conv1.weight_mask"] = torch.ones(3)
    torch.save(pruned, tmp_path / "theirs.pt")
    refused = run_here("convert", "import", "theirs.pt", "-o", "x.pt", cwd=tmp_path)
    assert_refused(refused, "conv1.weight_orig")


@pytest.mark.parametrize("options", [(), ("--layout", "cifar", "--model", "ResNet20")])
def test_the_files_of_akamaster_come_in_without_their_counters(options, tmp_path):
    model = network("ResNet20", shortcut="centred_identity")
    state = convert.to_layout(model.state_dict(), "ResNet20", "cifar", shortcut="centred_identity")
    lacking = {f"module.{n}": t for n, t in state.items() if "num_batches" not in n}
    torch.save({"state_dict": lacking, "best_prec1": 92.6}, tmp_path / "theirs.th")
    said = take(tmp_path, "theirs.th", *options)
    assert "taken as zero: 19 num_batches_tracked, which the file lacks" in said
    assert "shortcut='centred_identity'" in said
    assert_computes(tmp_path / "ours.pt", model, within=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_file_of_another_dtype_keeps_it_and_counters_that_were_cast_are_zero(dtype, tmp_path):
    model = network("ResNet20")
    state = under(model, "ResNet20", FORTY_BLOCKS)
    torch.save({name: tensor.to(dtype) for name, tensor in state.items()}, tmp_path / "theirs.pt")
    said = take(tmp_path, "theirs.pt")
    word = str(dtype).removeprefix("torch.")
    assert f"taken as zero: num_batches_tracked, which are {word}" in said
    assert f"dtypes are kept: 128 tensors of {word}" in said
    loaded = convert.load(tmp_path / "ours.pt", backend="torch").state_dict()
    for name, tensor in model.state_dict().items():
        if "num_batches" not in name:
            assert torch.equal(loaded[name], tensor.to(dtype))


def test_a_bias_with_nan_is_reported_by_the_files_name(tmp_path):
    model = network("ResNet20", has_biases=True)
    state = under(model, "ResNet20", FORTY_BLOCKS)
    state["layer1.0.conv1.bias"][0] = torch.nan
    torch.save(state, tmp_path / "theirs.pt")
    refused = run_here("convert", "import", "theirs.pt", "-o", "x.pt", cwd=tmp_path)
    assert_refused(refused, "non-finite: layer1.0.conv1.bias has 1 NaN")
