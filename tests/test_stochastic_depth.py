"""Stochastic depth in both twins: off, at its extremes, its masks and its mean."""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import convert
import flax_resnet
import torch_resnet
from convert.models import build_flax, build_torch
from convert.parity import compare
from resnet_spec import ClassifierSpec, ResNetSpec, branch_drop_rates
from resnet_spec.classifier import encode
from tests.twins import (
    NUM_CLASSES,
    random_images,
    randomise,
    relative_error,
    run_torch,
    to_nchw,
)
from train.step.functional import Network

KINDS = [("basic", False), ("bottleneck", False), ("basic", True), ("bottleneck", True)]
PACKAGES = [flax_resnet, torch_resnet]


def small(block: str = "basic", preact: bool = False, **changes: Any) -> ResNetSpec:
    fields: dict[str, Any] = {"stage_depths": (3, 2), "stage_planes": (4, 8), "stem_planes": 4}
    return ResNetSpec(
        **{**fields, "block": block, "preact": preact, "small_images": True} | changes
    )


def twins(spec: ResNetSpec, **options: Any) -> tuple[Any, Any]:
    torch_model = torch_resnet.from_spec(spec, NUM_CLASSES).double()
    randomise(torch_model)
    flax_model = flax_resnet.from_spec(
        spec, NUM_CLASSES, rngs=nnx.Rngs(0), param_dtype=jnp.float64, **options
    )
    convert.torch_to_flax(torch_model.state_dict(), flax_model)
    return flax_model, torch_model


def outputs(models: tuple[Any, Any], images: np.ndarray, mode: str) -> list[np.ndarray]:
    flax_model, torch_model = models
    getattr(flax_model, mode)()
    getattr(torch_model, mode)()
    return [np.asarray(flax_model(jnp.asarray(images))), run_torch(torch_model, images)]


def layer(package: ModuleType, rate: float, seed: int = 0) -> Any:
    if package is flax_resnet:
        drop = flax_resnet.StochasticDepth(rate, rngs=nnx.Rngs(seed))
        return lambda y: np.asarray(drop(jnp.asarray(y)))
    torch.manual_seed(seed)
    drop = torch_resnet.StochasticDepth(rate)
    return lambda y: drop(torch.from_numpy(y)).numpy()


def test_rates_grow_in_proportion_to_the_number_of_the_block_through_all_stages():
    """Huang et al. 2016, figure 2: of 54 blocks, the last is dropped with probability 0.5."""
    rates = branch_drop_rates(0.5, 54)
    assert rates[-1] == 0.5
    np.testing.assert_allclose(rates, 0.5 * np.arange(1, 55) / 54, rtol=1e-15)
    spec = small(stochastic_depth=0.4)
    flax_model, torch_model = twins(spec)
    blocks = [block for stage in torch_model.stages for block in stage]
    assert [b.stochastic_depth.rate for b in blocks] == pytest.approx([0.08, 0.16, 0.24, 0.32, 0.4])
    rates = [b.stochastic_depth.rate for stage in flax_model.stages for b in stage]
    assert rates == [b.stochastic_depth.rate for b in blocks]


@pytest.mark.parametrize(("block", "preact"), KINDS)
def test_evaluation_is_bit_for_bit_what_it_is_without(block, preact):
    images = random_images(3, 8)
    expected = outputs(twins(small(block, preact)), images, "eval")
    actual = outputs(twins(small(block, preact, stochastic_depth=0.9)), images, "eval")
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("rate", [0, 0.0])
def test_a_rate_of_zero_trains_as_without_and_the_twins_agree(rate):
    images = random_images(3, 8)
    expected = outputs(twins(small()), images, "train")
    actual = outputs(twins(small(stochastic_depth=rate)), images, "train")
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert relative_error(actual[0], actual[1]) <= 1e-12


@pytest.mark.parametrize(("block", "preact"), KINDS)
def test_at_one_the_last_block_is_its_shortcut_alone(block, preact):
    flax_model, torch_model = twins(small(block, preact, stochastic_depth=1.0))
    images = random_images(3, 8)
    planes = torch_model.out_planes
    x = random_images(3, 4, channels=planes)
    expected = x if preact else np.maximum(x, 0)
    flax_block, torch_block = flax_model.stages[-1][-1], torch_model.stages[-1][-1]
    np.testing.assert_array_equal(np.asarray(flax_block(jnp.asarray(x))), expected)
    torch_y = torch_block(to_nchw(x)).detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(torch_y, expected)
    network = Network(flax_model)

    def loss(params: Any) -> Any:
        key = jax.random.key(0)
        return network.train(params, network.statistics, jnp.asarray(images), key).logits.sum()

    gradients = jax.grad(loss)(network.params)
    torch_model(to_nchw(images)).sum().backward()
    for name in ("conv1", "conv2"):
        assert not gradients[f"stages.1.1.{name}.kernel"].any()  # nor NaN
        assert not torch_block.get_parameter(f"{name}.weight").grad.any()


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_each_image_has_a_mask_of_its_own_and_is_kept_whole_or_not_at_all(package):
    y = np.random.default_rng(0).standard_normal((400, 3, 3, 2))
    dropped = layer(package, 0.3)(y)
    is_kept = np.any(dropped != 0, (1, 2, 3))
    np.testing.assert_allclose(dropped[is_kept], y[is_kept] / 0.7, rtol=1e-15)
    assert not dropped[~is_kept].any()
    assert abs(is_kept.mean() - 0.7) < 4 * (0.3 * 0.7 / 400) ** 0.5


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
@pytest.mark.parametrize("rate", [0.2, 0.8])
def test_the_mean_over_many_draws_is_the_branch_itself(package, rate):
    draw = layer(package, rate, seed=1)
    y = np.random.default_rng(0).standard_normal((1000, 1, 1, 2))
    mean = np.mean([draw(y) / y for _ in range(50)])
    deviation = (rate / (1 - rate) / 50_000) ** 0.5  # of the mean of 50,000 masks
    assert abs(mean - 1) < 4 * deviation


@pytest.mark.parametrize("options", [{}, {"scan_blocks": True}, {"remat": True}], ids=str)
def test_draws_follow_from_the_key(options):
    spec = small(preact=True, stage_depths=(4, 1), stochastic_depth=0.7)
    model, _ = twins(spec, **options)
    network = Network(model)
    images = jnp.asarray(random_images(64, 8))

    @jax.jit
    def logits(key: Any) -> Any:
        return network.train(network.params, network.statistics, images, key).logits

    one, again, other = (np.asarray(logits(jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)
    assert set(network.params) | set(network.statistics) == set(
        named(small(preact=True, stage_depths=(4, 1)))
    )


def named(spec: ResNetSpec) -> Any:
    from flax_resnet.variables import named_variables

    return named_variables(flax_resnet.from_spec(spec, NUM_CLASSES, rngs=nnx.Rngs(0)))


def test_blocks_that_differ_only_in_their_rate_are_scanned_as_one_and_draw_the_same():
    spec = small(stage_depths=(5, 1), stochastic_depth=0.6)
    plain, _ = twins(spec)
    scanned, _ = twins(spec, scan_blocks=True)
    images = jnp.asarray(random_images(16, 8))
    results, programs = [], []
    for model in (plain, scanned):
        network = Network(model)

        def train(images: Any, key: Any, network: Network = network) -> Any:
            return network.train(network.params, network.statistics, images, key)

        results.append(jax.jit(train)(images, jax.random.key(3)))
        programs.append(str(jax.make_jaxpr(train)(images, jax.random.key(3))))
    assert relative_error(results[1].logits, results[0].logits) <= 1e-12
    layers = [  # a 1x1 convolution may be a product of matrices
        program.count("conv_general_dilated[") + program.count("dot_general[")
        for program in programs
    ]
    assert layers == [1 + 2 * 6 + 1 + 1, 1 + 2 + 2 + 1 + 1]  # five equal blocks are one
    assert "scan[" in programs[1]


@pytest.mark.parametrize("options", [{}, {"scan_blocks": True}, {"remat": True}], ids=str)
def test_a_rate_is_no_state_of_a_model(options):
    """The state of one at another rate is restored and leaves it."""
    states = {}
    for rate in (0.3, 0.6):
        model, _ = twins(small(stage_depths=(3, 1), stochastic_depth=rate), **options)
        graph, params, statistics, streams = nnx.split(
            model, nnx.Param, nnx.BatchStat, nnx.RngState
        )
        states[rate] = params, statistics, streams
    images = jnp.asarray(random_images(8, 8))
    expected = nnx.merge(graph, *states[0.6])(images)
    nnx.update(model, *states[0.3])
    np.testing.assert_array_equal(model(images), expected)
    assert model.stages[0][2].stochastic_depth.rate == 0.6 * 3 / 4


def test_weights_and_files_do_not_differ_by_it(tmp_path):
    spec = small(stochastic_depth=0.5)
    flax_model, torch_model = twins(spec)
    assert set(torch_model.state_dict()) == set(twins(small())[1].state_dict())
    assert set(convert.flax_to_torch(flax_model)) == set(torch_model.state_dict())
    twins(small())[1].load_state_dict(torch_model.state_dict())  # no other network
    assert small().differences(spec) == []
    convert.save(tmp_path / "model.safetensors", flax_model)
    loaded = convert.load(tmp_path / "model.safetensors", backend="flax")
    assert loaded.spec.stochastic_depth == 0.5
    rates = [b.stochastic_depth.rate for stage in loaded.stages for b in stage]
    assert tuple(rates) == spec.branch_drop_rates()
    assert convert.load(tmp_path / "model.safetensors", backend="torch").spec == spec
    theirs = convert.to_layout(make_named(0.2).state_dict(), "ResNet18", "torchvision")
    assert set(theirs) == set(
        convert.to_layout(make_named(0.0).state_dict(), "ResNet18", "torchvision")
    )


def test_twins_are_compared_without_it():
    flax_model, torch_model = twins(small(stage_depths=(1, 1), stochastic_depth=0.9))
    comparison = compare(torch_model, flax_model, random_images(3, 8))
    assert comparison.verdict.same, comparison.verdict.reasons
    names = [row.name for row in comparison.sections["train"]]
    assert "stages.1.0.bn2" in names
    assert not [name for name in names if "stochastic" in name]
    assert torch_model.stages[1][0].stochastic_depth.rate == 0.9  # the models are as they were
    assert flax_model.stages[1][0].stochastic_depth.rate == 0.9


def make_named(rate: float) -> Any:
    return torch_resnet.create("ResNet18", NUM_CLASSES, stochastic_depth=rate)


def test_descriptions_without_it_are_as_older_versions_wrote_and_read_them():
    assert "stochastic_depth" not in encode(ClassifierSpec(small()))
    old = small().to_json()
    assert ResNetSpec.from_json(old).stochastic_depth == 0
    new = small(stochastic_depth=0.25)
    assert new.to_json()["stochastic_depth"] == 0.25
    assert ResNetSpec.from_json(new.to_json()) == new


def test_models_built_to_be_filled_have_their_rates():
    classifier = ClassifierSpec(small(stage_depths=(4, 2), stochastic_depth=0.5), 3)
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.random(shape).astype(np.float32) if shape else np.array(7)
        for name, shape in classifier.tensors().items()
    }
    for build in (build_flax, build_torch):
        model: Any = build(classifier, arrays)
        rates = [b.stochastic_depth.rate for stage in model.stages for b in stage]
        assert rates == pytest.approx([0.5 * n / 6 for n in range(1, 7)])
        assert model.spec == classifier.network


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_what_is_no_probability_or_has_no_layer_for_it_is_refused(package):
    options: dict[str, Any] = {"rngs": nnx.Rngs(0)} if package is flax_resnet else {}
    for value in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="stochastic_depth is a probability"):
            package.create("ResNet20", stochastic_depth=value, **options)
    for value in ("0.1", True):
        with pytest.raises(ValueError, match="stochastic_depth must be a number"):
            package.create("ResNet20", stochastic_depth=value, **options)

    class Bare(package.BasicBlock):
        """A block of one's own from before there was stochastic depth."""

        def __init__(self, *arguments: Any, **keywords: Any):
            super().__init__(*arguments, **keywords)
            del self.stochastic_depth

    dimensions = [(1, 4), (2, 4)]
    with pytest.raises(ValueError, match="Bare has none"):
        package.ResNet(dimensions, Bare, stochastic_depth=0.1, **options)
    package.ResNet(dimensions, Bare, **options)

    class Own(package.BasicBlock):
        """One that has the layer."""

    model = package.ResNet(dimensions, Own, stochastic_depth=0.1, **options)
    assert model.spec is None
    assert model.stages[0][1].stochastic_depth.rate == pytest.approx(0.1)


@pytest.mark.parametrize("rate", [-1.0, 1.5, float("nan")])
def test_a_rate_that_is_no_probability_is_refused(rate):
    for make in (torch_resnet.StochasticDepth, flax_resnet.StochasticDepth):
        with pytest.raises(ValueError, match="rate is a probability"):
            make(rate)


def test_numbers_of_numpy_are_numbers():
    spec = small(stochastic_depth=np.float32(0.5))
    assert spec == small(stochastic_depth=0.5)
    assert ResNetSpec.from_json(spec.to_json()) == spec
