"""The torch twin in torch's own tools: traced by `torch.fx`, exported, averaged."""

import copy
import pickle
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.fx
import torch.utils.checkpoint
from torch import nn

import flax_resnet
import torch_resnet
from convert.inference import _quiet
from resnet_spec import ResNetSpec
from tests.twins import assert_same_state, random_images, randomise, relative_error, to_nchw
from torch_resnet.dialect import BiasedBatchNorm2d

DIALECT: Any = {"padding": "same", "stem_padding": "same", "running_variance": "biased"}


def small(**fields: Any) -> Any:
    """A network of two blocks with a head, random in every leaf."""
    values: Any = {"block": "basic", "stage_depths": (1, 1), "stage_planes": (4, 8)}
    model = torch_resnet.from_spec(ResNetSpec(stem_planes=4, **{**values, **fields}), 5)
    randomise(model)
    return model


@pytest.mark.slow
def test_padding_as_tensorflow_has_it_holds_at_any_size_in_onnx(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = small(**DIALECT).eval()
    axes: Any = ({0: "batch", 2: "height", 3: "width"},)
    with _quiet():
        program = torch.onnx.export(
            model, (torch.randn(2, 3, 32, 32),), dynamo=True, dynamic_shapes=axes, verbose=False
        )
    assert program is not None
    program.save(tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for height, width in ((33, 35), (34, 37), (40, 39)):
        images = to_nchw(random_images(3, 40, "float32"))[:, :, :height, :width].contiguous()
        (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        assert relative_error(logits, model(images).detach()) <= 1e-5


@pytest.mark.parametrize(
    ("fields", "mode"),
    [
        ({}, "eval"),
        ({"block": "bottleneck", "shortcut": "identity", **DIALECT}, "eval"),
        ({"preact": True, "stochastic_depth": 0.5}, "eval"),
        ({"stochastic_depth": 0.5}, "train"),
        ({"stochastic_depth": 0.5, **DIALECT}, "train"),
    ],
    ids=str,
)
def test_a_traced_network_is_pickled_and_computes_the_same_at_other_sizes(fields, mode):
    model = getattr(small(**fields), mode)()
    traced = pickle.loads(pickle.dumps(torch.fx.symbolic_trace(model)))
    for shape in ((2, 3, 32, 32), (5, 3, 21, 38)):
        images, logits = torch.randn(shape), []
        for network in (traced, model):
            torch.manual_seed(1)
            logits.append(network(images))
        assert torch.equal(*logits)
        state = model.state_dict()  # in evaluation a trace has no counters
        assert_same_state(traced.state_dict(), {n: state[n] for n in traced.state_dict()})


def test_a_network_with_stochastic_depth_is_exported_in_training_for_any_batch():
    model = small(stochastic_depth=0.5).train()
    batch = torch.export.Dim("batch")
    images = torch.randn(2, 3, 16, 16)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
    assert program.module()(torch.randn(7, 3, 16, 16)).shape == (7, 5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_biased_running_variance_is_taken_in_the_precision_of_torchs_own(dtype):
    images = (3 * torch.randn(8, 4, 5, 5, generator=torch.Generator().manual_seed(0))).to(dtype)
    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    biased, stock = (
        kind(4, momentum=0.25).to(statistics) for kind in (BiasedBatchNorm2d, nn.BatchNorm2d)
    )
    assert torch.equal(biased(images), stock(images))
    exact = 0.75 + 0.25 * images.double().var((0, 2, 3), correction=0)
    bound = 1e-14 if dtype == torch.float64 else 3e-7
    assert biased.running_var is not None
    assert relative_error(biased.running_var, exact) <= bound
    assert torch.equal(biased.running_mean, stock.running_mean)  # pyright: ignore


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_network_with_biased_running_variances_has_torchs_gradients(dtype):
    """Of two passes at once, one computed again for the backward pass, and under autocast, too."""
    biased, stock = small(running_variance="biased"), small()
    images = torch.randn(4, 3, 16, 16)

    def gradients(model: Any) -> list[Any]:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            again = torch.utils.checkpoint.checkpoint(model, images, use_reentrant=False)
            (again + model(2 * images)).float().square().sum().backward()
        return [parameter.grad for parameter in model.parameters()]

    for one, other in zip(gradients(copy.deepcopy(biased)), gradients(stock), strict=True):
        assert torch.equal(one, other)


def test_a_biased_running_variance_can_be_an_average_of_all_batches_or_absent():
    """As `torch.optim.swa_utils.update_bn` asks for it, and as layers without statistics are."""
    model = small(running_variance="biased")
    batches = [torch.randn(4, 3, 16, 16) for _ in range(3)]
    average: Any = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    torch.optim.swa_utils.update_bn(batches, average)
    convolution = model.stem.conv
    variances = [convolution(batch).var((0, 2, 3), correction=0) for batch in batches]
    expected = torch.stack(variances).mean(0)
    assert relative_error(average.module.stem.bn.running_var, expected.detach()) <= 1e-6
    layer = BiasedBatchNorm2d(3, track_running_stats=False)
    stock = nn.BatchNorm2d(3, track_running_stats=False)
    assert torch.equal(layer(batches[0]), stock(batches[0]))
    frozen = BiasedBatchNorm2d(3)
    frozen.track_running_stats = False
    frozen(batches[0])
    assert torch.equal(frozen.running_var, torch.ones(3))  # pyright: ignore


def test_biased_running_variances_are_those_of_flax_in_float64():
    generator = np.random.default_rng(0)
    torch_norm, flax_norm = (
        BiasedBatchNorm2d(5).double(),
        flax_resnet.BatchNorm(5, param_dtype="f8"),
    )
    flax_norm.running_variance = "biased"
    for mean, std, shape in (
        (0, 1e-4, (2, 1, 1, 5)),
        (-3, 2, (1, 2, 1, 5)),
        (1e3, 1, (8, 4, 4, 5)),
    ):
        x = mean + std * generator.standard_normal(shape)
        torch_norm(to_nchw(x))
        flax_norm(jnp.asarray(x))
        assert relative_error(flax_norm.var.get_value(), torch_norm.running_var) <= 1e-13


@pytest.mark.parametrize("training", [True, False])
def test_images_without_a_batch_are_refused_by_every_batch_norm(training):
    """Of a biased one, too: as many pixels as channels would else be taken for them."""
    for variance in ("unbiased", "biased"):
        model = small(running_variance=variance).train(training)
        with pytest.raises(ValueError, match="expected 4D input"):
            model(torch.randn(3, 4, 16))
