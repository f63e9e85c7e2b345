"""`compare` for modules of any shape: tied weights, outputs of all kinds, and what is refused."""

import copy
import re
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from torch import nn

from convert import ConversionError
from convert.parity import Report, assert_same, compare
from tests.twins import random_images

WORDS = np.random.default_rng(0).integers(0, 20, (3, 6))
BATCH = np.random.default_rng(0).standard_normal((5, 4))


class TorchWords(nn.Module):
    """A language model of one norm, whose last layer has the weights of its first."""

    def __init__(self):
        super().__init__()
        self.words, self.norm = nn.Embedding(20, 8), nn.LayerNorm(8)
        self.out = nn.Linear(8, 20, bias=False)
        self.out.weight = self.words.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(self.words(x)))


class LinenWords(linen.Module):
    is_tied: bool

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        words = linen.Embed(20, 8, name="words")
        x = linen.LayerNorm(epsilon=1e-5, name="norm")(words(x))
        if self.is_tied:
            return words.attend(x)
        return linen.Dense(20, use_bias=False, name="out")(x)


def words(is_tied: bool) -> Any:
    module = LinenWords(is_tied)
    return module, module.init(jax.random.key(1), jnp.asarray(WORDS))


@pytest.mark.parametrize("source", ["torch", "flax"])
def test_tied_weights_are_one_array_in_both(source):
    torch.manual_seed(0)
    report = assert_same(
        TorchWords(), words(True), WORDS, copy_weights=source, precision="f64", steps=2
    )
    assert report.only == ((), ())
    assert report.unpaired == (("out",), ())
    assert "words.weight" in {row.name for row in report.sections["gradients"]}


def test_weights_that_are_tied_in_one_alone_have_other_gradients():
    torch.manual_seed(0)
    report = compare(TorchWords(), words(False), WORDS, copy_weights="torch", precision="f64")
    assert not any(row.differs for row in report.sections["eval"])
    differing = [row.name for row in report.sections["gradients"] if row.differs]
    assert differing == ["words.weight", "out.weight"]


class Heads(NamedTuple):
    logits: Any
    value: Any


RETURNS: dict[str, Any] = {
    "two heads": lambda y: Heads(y, 2 * y),
    "one wrong head": lambda y: Heads(y, 3 * y),
    "column": lambda y: y[:, :1],
    "row": lambda y: y[:, 0],
    "logits": lambda y: SimpleNamespace(logits=y, boxes=2 * y, loss=None),
    "array": lambda y: y,
    "pair": lambda y: (y, 2 * y),
    "dict": lambda y: {"b": y, "a": 2 * y},
    "sorted dict": lambda y: {"a": 2 * y, "b": y},
    "dict of one": lambda y: {"logits": y},
    "with none": lambda y: (y, None),
    "sum": lambda y: y.sum(),
    "classes": lambda y: y.argmax(-1),
    "nan": lambda y: y * np.nan,
}


class TorchReturning(nn.Module):
    def __init__(self, what: str):
        super().__init__()
        self.fc, self.what = nn.Linear(4, 3), what

    def forward(self, x: torch.Tensor) -> Any:
        return RETURNS[self.what](self.fc(x))


class NNXReturning(nnx.Module):
    def __init__(self, what: str):
        self.fc, self.what = nnx.Linear(4, 3, rngs=nnx.Rngs(0)), what

    def __call__(self, x: jax.Array) -> Any:
        return RETURNS[self.what](self.fc(x))


def compare_returned(in_torch: str, in_flax: str) -> Report:
    modules = TorchReturning(in_torch), NNXReturning(in_flax)
    return compare(*modules, BATCH, copy_weights="torch", precision="f64")


@pytest.mark.parametrize(
    ("in_torch", "in_flax"),
    [
        ("dict", "sorted dict"),
        ("dict of one", "array"),
        ("with none", "array"),
        ("sum", "sum"),
    ],
)
def test_outputs_are_compared_however_they_are_returned(in_torch, in_flax):
    report = compare_returned(in_torch, in_flax)
    assert report.verdict.same, report.table()
    assert report.sections["eval"][-1].name.startswith("output")


@pytest.mark.parametrize(("in_torch", "in_flax"), [("pair", "array"), ("dict", "pair")])
def test_outputs_without_a_partner_are_a_difference(in_torch, in_flax):
    report = compare_returned(in_torch, in_flax)
    assert not report.verdict.same_function
    first = report.first_difference
    assert first is not None
    assert first.startswith("output")
    assert any(f"only A has {first}" in reason for reason in report.verdict.reasons)


def test_every_entry_of_a_named_tuple_is_compared_also_beside_logits():
    assert compare_returned("two heads", "two heads").verdict.same
    report = compare_returned("two heads", "one wrong head")
    assert report.first_difference == "output.1"


@pytest.mark.parametrize(("in_torch", "in_flax"), [("column", "row"), ("row", "column")])
def test_an_output_of_another_shape_is_a_difference(in_torch, in_flax):
    """(n, 1) - (n,) has n times n differences: a loss of the two is not the same."""
    report = compare_returned(in_torch, in_flax)
    assert report.first_difference == "output"
    assert "shape (5" in report.first_in("eval").note  # pyright: ignore
    assert compare_returned(in_torch, in_torch).verdict.same


def test_what_is_returned_beside_logits_is_said_to_be_left_out():
    report = compare_returned("logits", "array")
    assert report.verdict.same
    assert "not compared: A also returns boxes, beside logits" in report.verdict.lines


def test_values_that_are_not_finite_have_no_hint():
    report = compare_returned("nan", "nan")
    assert report.first_difference == "output"
    assert report.first_in("eval").note == "not finite in both"  # pyright: ignore
    assert not report.hints


class TorchNorm(nn.Module):
    """A bias before a BatchNorm has no gradient but rounding."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.leaky_relu(self.norm(self.conv(x)), 0.2)
        return self.fc(x.mean((2, 3)))


class LinenNorm(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array, is_train: bool = False) -> jax.Array:
        return run_norm(x, is_train)


class LinenNormInAnotherWord(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array, phase: bool = False) -> jax.Array:
        return run_norm(x, phase)


def run_norm(x: jax.Array, train: bool) -> jax.Array:
    x = linen.Conv(8, (3, 3), padding=1, name="conv")(x)
    x = linen.BatchNorm(not train, momentum=0.9, name="norm")(x)
    return linen.Dense(5, name="fc")(jax.nn.leaky_relu(x, 0.2).mean((1, 2)))


def compare_norms(module: linen.Module) -> Report:
    torch.manual_seed(0)
    images = random_images(4, 8)
    pair: Any = module, module.init(jax.random.key(0), jnp.asarray(images))
    return compare(
        TorchNorm(),
        pair,
        images,
        copy_weights="torch",
        allow="biased running variance",
        precision="f64",
    )


def test_a_bias_before_a_batch_norm_of_flax_is_no_difference():
    report = compare_norms(LinenNorm())
    assert report.verdict.same, report.table()


def test_a_network_that_is_never_told_to_train_is_named():
    report = compare_norms(LinenNormInAnotherWord())
    assert report.first_difference == "norm"
    (reason,) = (text for text in report.verdict.reasons if text.startswith("statistics"))
    assert "not moved in the second: does it train? its call takes one of train," in reason


class TorchAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x)[0]


class NNXAttention(nnx.Module):
    def __init__(self, heads: int):
        self.attention = nnx.MultiHeadAttention(heads, 8, 8, decode=False, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.attention(x)


@pytest.mark.parametrize("heads", [2, 4])
def test_attention_of_nnx_is_compared_in_float64(heads):
    torch.manual_seed(0)
    images = np.random.default_rng(0).standard_normal((3, 6, 8))
    modules = TorchAttention(), NNXAttention(heads)
    report = compare(*modules, images, copy_weights="torch", precision="f64")
    assert report.verdict.same == (heads == 2), report.table()


class TorchTwice(nn.Module):
    """One ReLU, called twice, around a norm; a parameter called `scale`, and dropout."""

    def __init__(self, epsilon: float = 1e-5):
        super().__init__()
        self.fc1, self.fc2, self.relu = nn.Linear(4, 8), nn.Linear(8, 8), nn.ReLU()
        self.norm = nn.LayerNorm(8, eps=epsilon)
        self.scale = nn.Parameter(torch.full((8,), 0.7))
        self.output = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.fc1(x))
        y = nn.functional.dropout(y, 0.5, self.training)
        y = self.norm(self.fc2(y)) * self.scale
        return self.output(self.relu(y + x.sum(1, keepdim=True)))


class NNXTwice(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.fc1 = nnx.Linear(4, 8, rngs=rngs)
        self.fc2 = nnx.Linear(8, 8, rngs=rngs)
        self.norm = nnx.LayerNorm(8, epsilon=1e-5, rngs=rngs)
        self.scale = nnx.Param(jnp.ones(8))
        last = nnx.Linear(6, 2, rngs=rngs)
        self.output = nnx.Sequential(nnx.Linear(8, 6, rngs=rngs), nnx.relu, last)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.fc1(x))
        y = self.norm(jax.checkpoint(self.fc2)(y)) * self.scale
        return self.output(nnx.relu(y + x.sum(1, keepdims=True)))


@pytest.mark.parametrize("names", ["path", "order"])
def test_the_networks_own_words_for_layers_and_weights_are_theirs(names):
    """A parameter `scale`, a layer `output`, dropout by a function, a checkpoint of JAX."""
    torch.manual_seed(0)
    modules = TorchTwice(), NNXTwice()
    report = compare(*modules, BATCH, copy_weights="torch", precision="f64", names=names, steps=2)
    assert report.verdict.same, report.table()
    assert "scale" in {row.name for row in report.sections["gradients"]}
    modules[0].scale.data[3] = 0.6
    own = compare(*modules, BATCH, precision="f64", names=names)
    assert "scale" in {row.name for row in own.sections["weights"] if row.differs}


def test_a_layer_that_is_called_twice_does_not_hide_what_is_wrong_between_its_calls():
    torch.manual_seed(0)
    one = TorchTwice()
    other = copy.deepcopy(one)
    other.norm.eps = 1e-3
    report = compare(one, other, BATCH, precision="f64")
    assert report.first_difference == "norm"
    (hint,) = report.hints
    assert (hint.layer, hint.cause) == ("norm", "epsilon")
    other.norm.eps = 1e-5
    other.get_parameter("output.2.weight").data.mul_(2)
    assert compare(one, other, BATCH, precision="f64").first_difference == "output.2"


class TorchShuffled(nn.Module):
    """Its first convolution takes more channels than the images have, and `spec` is its own."""

    def __init__(self):
        super().__init__()
        self.spec = nn.PixelUnshuffle(2)
        self.conv = nn.Conv2d(12, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.spec(x))


def test_images_need_not_have_the_channels_of_the_first_convolution():
    one = TorchShuffled()
    images = random_images(2, 8)
    for given in (images, torch.from_numpy(images.transpose(0, 3, 1, 2).copy())):
        assert compare(one, copy.deepcopy(one), given, precision="f64").verdict.same


class TwoInputs(nn.Module):
    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return image + text


def test_what_cannot_be_compared_is_said_before_it_runs():
    with pytest.raises(ConversionError, match="returns no floating-point array"):
        compare_returned("classes", "classes")
    message = re.escape("A takes 2 inputs (image, text), and gets one batch: wrap TwoInputs")
    unbound = re.escape("B is a linen module without its variables: give module.bind(variables)")
    with pytest.raises(ConversionError, match=rf"{message}(.|\n)*{unbound}"):
        compare(TwoInputs(), LinenWords(True), BATCH)
    with pytest.raises(ConversionError, match="B is a module of torch, NNX or linen, not of type"):
        compare(TorchReturning("array"), BATCH, NNXReturning("array"))
