"""`convert.parity` for networks of anybody: planted faults are found and named at their layer."""

import copy
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from torch import nn

import flax_resnet
from convert import ConversionError
from convert.layouts import torchvision
from convert.parity import ParityError, Report, assert_same, compare
from resnet_spec import find_spec
from tests.ports import SIZES, TRANSPOSED, make_flax_port, make_torch_port
from tests.torch_or_none import import_torchvision
from tests.twins import random_images, randomise

IMAGES = random_images(4, 8)
BIASED = "biased running variance"
FAULTS = {
    "CNN": {
        "epsilon": "bn1",
        "momentum": "bn1",
        "running variance": "bn1",  # what Flax's own BatchNorm does
        "SAME padding": "conv2",
        "transposed kernel": TRANSPOSED["CNN"],
        "swapped statistics": "bn1",
        "GELU": "conv3",  # the layer behind it
        "align_corners": "conv4",
        "flatten order": "head",
        "max pool padding": "conv2",
    },
    "mixer": {
        "epsilon": "norm1",
        "momentum": "bn1",
        "running variance": "bn1",
        "SAME padding": "patches",
        "transposed kernel": TRANSPOSED["mixer"],
        "swapped statistics": "bn1",
        "GELU": "tokens2",
        "align_corners": "project",
        "flatten order": "head",
        "max pool padding": "norm1",
    },
    "attention": {
        "epsilon": "norm1",
        "momentum": "bn1",
        "running variance": "bn1",
        "SAME padding": "patches",
        "transposed kernel": TRANSPOSED["attention"],
        "swapped statistics": "bn1",
        "GELU": "fc2",
        "align_corners": "norm1",  # behind the places of patches
        "flatten order": "head",
        "max pool padding": "norm1",
    },
}
PLANTED = [(net, fault, layer) for net, all_ in FAULTS.items() for fault, layer in all_.items()]
KINDS = ("NNX", "linen")
QUICK = (("CNN", "NNX"), ("attention", "linen"))  # ten steps of the others are slow
RIGHT = [
    pytest.param(network, kind, marks=() if (network, kind) in QUICK else pytest.mark.slow)
    for network in FAULTS
    for kind in KINDS
]


def compare_ports(kind: str, network: str, fault: str = "", **options: Any) -> Report:
    in_torch = {"align_corners": True} if fault == "align_corners" else {}
    torch_model = make_torch_port(network, **in_torch)
    flax_model = make_flax_port(kind, network, torch_model, fault)
    images = random_images(4, SIZES[network])
    return compare(torch_model, flax_model, images, precision="f64", **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("network", "fault", "layer"), PLANTED)
def test_a_planted_fault_is_named_at_its_layer(kind, network, fault, layer):
    report = compare_ports(
        kind, network, fault, allow=() if fault == "running variance" else BIASED
    )
    assert report.first_difference == layer
    assert fault in {hint.cause for hint in report.hints}, report.table()
    assert {hint.layer for hint in report.hints} == {layer}
    table = report.table()
    assert table.startswith(f"verdict: they differ, first at {layer}")
    assert f"{fault}: with " in table


@pytest.mark.parametrize(("network", "kind"), RIGHT)
def test_a_right_port_is_the_same_but_for_the_biased_variance(network, kind):
    report = compare_ports(kind, network, allow=BIASED, steps=10)
    assert report.verdict.same, report.table()
    assert not report.hints
    assert len(report.sections["steps"]) == len(report.sections["gradients"]) > 10
    allowed = [row.name for row in report.sections["statistics"] if row.is_allowed]
    norms = ("bn1", "bn2") if network == "CNN" else ("bn1",)
    assert allowed == [f"{norm}.running_var" for norm in norms]


def test_a_biased_variance_is_named_and_not_buried():
    report = compare_ports("NNX", "CNN")
    assert not report.verdict.same_function
    reasons = [reason for reason in report.verdict.reasons if BIASED in reason]
    assert reasons == [
        "one keeps a biased running variance, as Flax's own BatchNorm does, in bn1.running_var, "
        f"bn2.running_var; no other statistics differ: allow={BIASED!r} accepts it"
    ]


def test_a_wrong_momentum_is_not_taken_for_a_biased_variance():
    report = compare_ports("NNX", "CNN", "momentum", allow=BIASED)
    assert not any(row.is_allowed for row in report.sections["statistics"] if "bn1" in row.name)
    assert report.verdict.first_layer == "bn1"


class TorchBlocks(nn.Module):
    """Blocks with names of their own, layers in another order than they run, several outputs."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(6, 5)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.attention = nn.MultiheadAttention(6, 2, dropout=0.5, batch_first=True)
        self.first = nn.Linear(4, 6)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        x = self.first(x)
        for block in self.blocks:
            x = self.drop(block(x))
        y, _ = self.attention(x, x, x)
        return {"logits_of_all": self.last(y), "pair": (x.mean(1), y)}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(6), nn.Linear(6, 6)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.act(self.fc(self.norm(x)))


class LinenBlocks(linen.Module):
    """The same with linen's automatic names; `fault` forgets a residual."""

    fault: bool = False

    @linen.compact
    def __call__(self, x: jax.Array, deterministic: bool = True) -> Any:
        x = linen.Dense(6)(x)
        for is_last in (False, True):
            x = LinenBlock(self.fault and is_last)(x)
            x = linen.Dropout(0.5)(x, deterministic=deterministic)
        y = linen.MultiHeadDotProductAttention(2, dropout_rate=0.5)(x, deterministic=deterministic)
        return {"logits_of_all": linen.Dense(5)(y), "pair": (x.mean(1), y)}


class LinenBlock(linen.Module):
    fault: bool = False

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = linen.relu(linen.Dense(6)(linen.LayerNorm(epsilon=1e-5)(x)))
        return y if self.fault else x + y


TOKENS = np.random.default_rng(0).standard_normal((3, 5, 4))


def linen_blocks(fault: bool = False) -> tuple[linen.Module, Any]:
    module = LinenBlocks(fault)
    return module, module.init(jax.random.key(1), jnp.asarray(TOKENS, jnp.float32))


@pytest.mark.parametrize("source", ["torch", "flax"])
def test_by_order_and_with_copied_weights_names_do_not_matter(source):
    torch.manual_seed(0)
    report = assert_same(
        TorchBlocks(), linen_blocks(), TOKENS, names="order", copy_weights=source, precision="f64"
    )
    rows = [row.name for row in report.sections["eval"]]
    assert "blocks.1.fc" in rows
    assert "attention" in rows
    assert rows[-3:] == ["output.logits_of_all", "output.pair.0", "output.pair.1"]
    gradients = {row.name for row in report.sections["gradients"]}
    assert {"attention.query.weight", "attention.out.bias", "first.weight"} <= gradients
    assert report.unpaired[0] == ("blocks.0.act", "blocks.1.act")
    assert "blocks.0.act" in report.table()


def test_a_forgotten_residual_is_found_at_its_block():
    torch.manual_seed(0)
    report = compare(TorchBlocks(), linen_blocks(True), TOKENS, names="order", copy_weights="torch")
    assert report.first_difference == "blocks.1"
    assert not report.hints


def test_weights_that_are_not_copied_are_compared():
    torch.manual_seed(0)
    report = compare(TorchBlocks(), linen_blocks(), TOKENS, names="order", precision="f64")
    assert report.first_difference == "first"
    assert report.first_in("weights") is not None


def test_a_map_pairs_what_it_names_and_lists_the_rest():
    torch.manual_seed(0)
    names = {"first": "Dense_0", "blocks.0": "LinenBlock_0", "blocks.0.fc": "LinenBlock_0.Dense_0"}
    report = compare(TorchBlocks(), linen_blocks(), TOKENS, names=names, precision="f64")
    assert {"first", "blocks.0", "blocks.0.fc"} <= {row.name for row in report.sections["eval"]}
    assert "last" in report.unpaired[0]
    assert "Dense_1" in report.unpaired[1]
    assert any("only A has" in reason for reason in report.verdict.reasons)


@pytest.mark.slow
def test_torchvision_is_the_same_as_our_flax_twin():
    resnet = import_torchvision().models.resnet
    theirs = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=7)
    randomise(theirs)
    spec = dataclasses.replace(find_spec("ResNet18"), stage_depths=(1, 1, 1, 1))
    ours = flax_resnet.from_spec(spec, 7, rngs=nnx.Rngs(0))
    names = {name: our for our, name in torchvision.names(spec)}
    names |= {f"layer{stage + 1}.0": f"stages.{stage}.0" for stage in range(4)}
    images = random_images(2, 64)
    report = assert_same(theirs, ours, images, names=names, copy_weights="torch", precision="f64")
    assert {row.name for row in report.sections["train"]} == {*names, "output"}
    gradients = {row.name for row in report.sections["gradients"]}
    assert gradients == {name for name, _ in theirs.named_parameters()}
    statistics = {row.name for row in report.sections["statistics"]}
    assert statistics >= {name for name, _ in theirs.named_buffers()}
    theirs.layer3[0].downsample[1].eps = 1e-3
    report = compare(theirs, ours, images, names=names, copy_weights="torch", precision="f64")
    assert report.first_difference == "layer3.0.downsample.1"
    assert {hint.cause for hint in report.hints} == {"epsilon"}


def test_images_are_taken_in_either_layout():
    torch_model = make_torch_port("CNN")
    flax_model = make_flax_port("NNX", "CNN", torch_model)
    for images in (IMAGES, torch.from_numpy(IMAGES).permute(0, 3, 1, 2), jnp.asarray(IMAGES)):
        assert_same(torch_model, flax_model, images, precision="f64", allow=BIASED)


def test_float32_is_held_against_its_rounding_where_jax_has_no_float64():
    torch_model = make_torch_port("CNN")
    flax_model = make_flax_port("NNX", "CNN", torch_model)
    with jax.enable_x64(False):
        report = assert_same(torch_model, flax_model, IMAGES, allow=BIASED)
    assert report.precision == "f32"
    assert all(row.noise_ratio is not None for row in report.sections["eval"])


def test_a_zero_initialised_scale_hides_the_forward_pass_and_not_the_gradients():
    """A comparison of outputs alone passes here, though the branch behind is wrong."""
    torch_model = make_torch_port("CNN")
    zeroed = copy.deepcopy(torch_model)
    zeroed.bn2.weight.data.zero_()  # pyright: ignore
    flax_model = make_flax_port("NNX", "CNN", zeroed, "SAME padding")
    report = compare(zeroed, flax_model, IMAGES, precision="f64", allow=BIASED)
    outputs = {row.name: row for row in report.sections["eval"]}
    assert not outputs["output"].differs
    assert not outputs["bn2"].differs
    assert report.first_difference == "conv2"
    assert "SAME padding" in {hint.cause for hint in report.hints}


def test_options_that_do_not_fit_are_all_named():
    model = make_torch_port("CNN")
    with pytest.raises(ConversionError, match=r"allow is(.|\n)*both are torch(.|\n)*steps"):
        compare(model, model, IMAGES, allow="dropout", copy_weights="flax", steps=-1)  # pyright: ignore
    with pytest.raises(ConversionError, match=r'"path", "order" or a map'):
        compare(model, model, IMAGES, names="kind")  # pyright: ignore
    other = nnx.eval_shape(lambda: nnx.Linear(3, 5, rngs=nnx.Rngs(0)))
    with pytest.raises(ConversionError, match="has no layer nowhere"):
        compare(model, other, IMAGES, names={"head": "nowhere"})


def test_an_assertion_fails_with_the_table_and_ignores_counters(tmp_path):
    one, other = make_torch_port("CNN"), make_torch_port("CNN")
    other.get_buffer("bn1.num_batches_tracked").fill_(7)
    assert_same(one, other, IMAGES, precision="f64")
    other.get_submodule("bn2").eps = 1e-3  # pyright: ignore
    with pytest.raises(ParityError, match="verdict: they differ, first at bn2") as raised:
        assert_same(one, other, IMAGES, precision="f64")
    assert "epsilon: with epsilon 0.001 in A, bn2 no longer differs" in str(raised.value)
    raised.value.report.html(tmp_path / "page.html")
    assert "with epsilon 0.001 in A" in (tmp_path / "page.html").read_text()
