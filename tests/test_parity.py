"""Both twins compute the same: logits, gradients, statistics and steps of SGD.

Run with `-s` to see what is reached; the bounds are far above it, and far below any mistake.
"""

import collections
import copy
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import convert
import flax_resnet
import torch_resnet
from convert import leaves
from flax_resnet.layers import no_values
from flax_resnet.variables import named_variables
from resnet_spec import MODELS, ResNetSpec, find_spec
from tests.twins import (
    NUM_CLASSES,
    image_size,
    make_twins,
    random_images,
    randomise,
    relative_error,
    run_torch,
    to_nchw,
)
from train.config import Config
from train.step.functional import Network
from train.step.optimizer import make_optimizer
from train.step.train_step import cross_entropy

SHORTCUTS = ["projection", "identity", "full_projection", "convolution"]
OTHER_SHORTCUTS = SHORTCUTS[1:]
QUICK = ["ResNet20", "PreActResNet20", "ResNet18", "PreActResNet50", "WideResNet16-4"]
VERY_DEEP = ("1001", "1202")

LOGITS_64 = 1e-13
GRADIENTS_64 = 1e-10
STATISTICS_64 = 1e-13
STEPS_64 = 1e-10
LOGITS_32 = 1e-5

_reached: dict[str, dict[str, float]] = collections.defaultdict(dict)


@pytest.fixture(scope="module", autouse=True)
def _print_what_was_reached() -> Iterator[None]:
    yield
    columns = sorted({column for row in _reached.values() for column in row})
    print("\n\nlargest relative error of a family's models and shortcuts")
    print("".join(f"{text:>24}" for text in ("family", *columns)))
    for family, row in _reached.items():
        cells = (f"{row[c]:.1e}" if c in row else "" for c in columns)
        print("".join(f"{text:>24}" for text in (family, *cells)))


def reach(name: str, what: str, error: float) -> float:
    """Notes a family's largest error for the table."""
    base = name.partition("-")[0].rstrip("0123456789")
    depth = "1001, 1202" if any(deep in name for deep in VERY_DEEP) else ""
    kind = "small" if find_spec(name).small_images else "ImageNet"
    row = _reached[f"{base} {depth or kind}"]
    row[what] = max(row.get(what, 0.0), error)
    return error


def cases(shortcuts: list[str], *, quick: list[str], only: list[str] | None = None) -> list[Any]:
    """Other shortcuts of the models that are not quick run in `make parity` alone."""
    found = []
    for name in only or MODELS:
        for shortcut in shortcuts:
            is_rest = shortcut in OTHER_SHORTCUTS and name not in quick
            full = [pytest.mark.full] if is_rest else []
            pair, marked = _same_pair(name, shortcut), [*marks(name, quick), *full]
            found.append(pytest.param(pair, id=f"{name}-{shortcut}", marks=marked))
    return found


@functools.cache
def _same_pair(name: str, shortcut: str) -> tuple[str, str]:
    """One object for all tests of a pair: pytest shares a fixture by its parameter's identity."""
    return name, shortcut


def marks(name: str, quick: list[str]) -> list[Any]:
    """Slow or not; models whose operations have the same shapes share a worker, which compiles
    each operation once. The very deep ones go to whichever worker is free: they take longest.
    """
    spec = find_spec(name)
    slow = [] if name in quick else [pytest.mark.slow]
    if any(deep in name for deep in VERY_DEEP):
        return slow
    widths = "-".join(map(str, spec.stage_planes))
    return [pytest.mark.xdist_group(f"{spec.block}-{widths}x{spec.width}"), *slow]


@pytest.fixture(scope="module")
def twins(request: pytest.FixtureRequest) -> tuple[str, Any, Any]:
    """A name and its two twins in float64, without dropout, which the frameworks draw apart."""
    name, shortcut = request.param
    return name, *make_twins(name, shortcut=shortcut, drop_rate=0.0)


@pytest.mark.parametrize("twins", cases(SHORTCUTS, quick=QUICK), indirect=True)
def test_twins_agree_on_logits_in_float64(twins):
    name, flax_model, torch_model = twins
    images = random_images(2, image_size(name))
    flax_model.eval()
    torch_model.eval()
    logits = flax_model(jnp.asarray(images))  # eagerly: nothing to compile, however deep
    error = relative_error(logits, run_torch(torch_model, images))
    assert reach(name, "logits f64", error) <= LOGITS_64


@pytest.mark.parametrize(
    "twins",
    [*cases(["projection"], quick=QUICK), *cases(OTHER_SHORTCUTS, quick=QUICK, only=QUICK)],
    indirect=True,
)
def test_twins_agree_on_gradients_and_statistics_in_float64(twins):
    name, flax_model, torch_model = twins
    images = random_images(3, image_size(name))
    weights = random_images(3, 1, channels=NUM_CLASSES)[:, 0, 0]  # of the logits in the loss
    torch_model = copy.deepcopy(torch_model).train()  # its statistics move, and others use it
    (torch_model(to_nchw(images)) * torch.from_numpy(weights)).sum().backward()

    network = Network(flax_model)

    def loss(params: Any) -> Any:
        outputs = network.train(params, network.statistics, jnp.asarray(images), jax.random.key(0))
        return jnp.sum(outputs.logits * weights), outputs.statistics

    gradients, statistics = jax.grad(loss, has_aux=True)(network.params)
    state = torch_model.state_dict()
    torch_gradients = {n: p.grad for n, p in torch_model.named_parameters()}
    for flax_name, gradient in gradients.items():
        torch_name = leaves.torch_name(flax_name)
        actual = leaves.to_torch(flax_name, np.asarray(gradient))
        error = relative_error(actual, torch_gradients[torch_name].numpy())
        assert reach(name, "gradients f64", error) <= GRADIENTS_64, torch_name
    assert len(gradients) == len(torch_gradients)
    for flax_name, statistic in statistics.items():
        torch_name = leaves.torch_name(flax_name)
        error = relative_error(np.asarray(statistic), state[torch_name].numpy())
        assert reach(name, "statistics f64", error) <= STATISTICS_64, torch_name


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name, QUICK)) for name in MODELS])
def test_twins_agree_on_logits_in_float32(name):
    flax_model, torch_model = make_twins(name, dtype="float32")
    images = random_images(2, image_size(name), "float32")
    flax_model.eval()
    torch_model.eval()
    error = relative_error(flax_model(jnp.asarray(images)), run_torch(torch_model, images))
    assert reach(name, "logits f32", error) <= LOGITS_32


@pytest.mark.parametrize(
    ("name", "nesterov"),
    [
        ("ResNet20", False),
        ("PreActResNet20", True),
        pytest.param("WideResNet16-2-0.0", False, marks=pytest.mark.slow),
        pytest.param("PreActResNet50-small", False, marks=pytest.mark.slow),
    ],
)
def test_ten_steps_of_sgd_are_the_same_in_optax_and_torch(name, nesterov):
    flax_model, torch_model = make_twins(name)
    torch_model.train()
    decayed = [p for n, p in torch_model.named_parameters() if p.ndim > 1]
    others = [p for n, p in torch_model.named_parameters() if p.ndim == 1]
    sgd = torch.optim.SGD(
        [{"params": decayed, "weight_decay": 1e-2}, {"params": others, "weight_decay": 0}],
        lr=0.05,
        momentum=0.9,
        nesterov=nesterov,
    )
    network = Network(flax_model)
    config = dataclasses.replace(Config(), momentum=0.9, nesterov=nesterov, weight_decay=1e-2)
    optimizer = make_optimizer(config, lambda step: 0.05)

    @jax.jit
    def step(params: Any, statistics: Any, state: Any, images: Any, labels: Any) -> Any:
        def loss(params: Any) -> Any:
            outputs = network.train(params, statistics, images, jax.random.key(0))
            return cross_entropy(outputs.logits, labels).mean(), outputs.statistics

        gradients, statistics = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        return jax.tree.map(jnp.add, params, updates), statistics, state

    generator = np.random.default_rng(1)
    params, statistics = network.params, network.statistics
    state = optimizer.init(params)
    for _ in range(10):
        images = generator.standard_normal((8, 16, 16, 3))
        labels = generator.integers(0, NUM_CLASSES, 8)
        params, statistics, state = step(params, statistics, state, images, labels)
        sgd.zero_grad()
        logits = torch_model(to_nchw(images))
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()
        sgd.step()

    expected = torch_model.state_dict()
    parameters = dict(torch_model.named_parameters())
    traces = [s for s in jax.tree.leaves(state, is_leaf=_is_trace) if _is_trace(s)]
    (momentum,) = (trace.trace for trace in traces)
    buffers = {n: sgd.state[p]["momentum_buffer"] for n, p in parameters.items()}
    for arrays, others in (({**params, **statistics}, expected), (momentum, buffers)):
        assert len(arrays) == len(others)
        for flax_name, array in arrays.items():
            torch_name = leaves.torch_name(flax_name)
            actual = leaves.to_torch(flax_name, np.asarray(array))
            error = relative_error(actual, others[torch_name].detach().numpy())
            assert reach(name, "10 steps f64", error) <= STEPS_64, torch_name


def _is_trace(state: Any) -> bool:
    return isinstance(state, optax.TraceState)


def test_every_parameter_and_statistic_is_compared():
    """The variables that the comparisons above go through are all that there are."""
    flax_model, torch_model = make_twins("ResNet20")
    names = {leaves.torch_name(name) for name in named_variables(flax_model)}
    assert names == set(torch_model.state_dict())


DIALECTS: list[dict[str, Any]] = [
    {"padding": "same", "stem_padding": "same"},
    {"running_variance": "biased"},
    {"shortcut": "centred_identity"},
    {"block": "bottleneck", "bottleneck_stride": "1x1", "padding": "same"},
    {
        "block": "bottleneck",
        "preact": True,
        "bottleneck_stride": "1x1",
        "padding": "same",
        "stem_padding": "same",
        "running_variance": "biased",
    },
]


@pytest.mark.parametrize("scan_blocks", [False, True], ids=["", "scan"])
@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: "-".join(dialect))
def test_twins_agree_in_every_dialect_in_evaluation_and_in_training(dialect, scan_blocks):
    """And compute something else than without it, but for what only training adds up."""
    spec = ResNetSpec(**{"block": "basic", **dialect}, stage_depths=(3, 1), **_SMALL)
    flax_model, torch_model = _tiny_twins(spec, scan_blocks=scan_blocks)
    images = random_images(2, 36)
    flax_model.eval()
    torch_model.eval()
    logits = flax_model(jnp.asarray(images))
    assert relative_error(logits, run_torch(torch_model, images)) <= LOGITS_64
    _compare_two_steps(Network(flax_model), torch_model.train(), images)
    usual = {name: getattr(ResNetSpec, name) for name in dialect if name not in ("block", "preact")}
    other = torch_resnet.from_spec(dataclasses.replace(spec, **usual), NUM_CLASSES).double()
    if "shortcut" not in dialect:  # the usual one has weights of its own
        one = _tiny_twins(spec)[1].train()
        other.load_state_dict(dict(one.state_dict()))
        run_torch(one, images)
        run_torch(other.train(), images)
        expected = one.state_dict()
        parts = [n for n, t in other.state_dict().items() if not torch.equal(t, expected[n])]
        assert parts, "the dialect makes no difference"


def _compare_two_steps(network: Network, torch_model: Any, images: np.ndarray) -> None:
    """Logits, all gradients, the images' too, and statistics, of two steps of gradient descent."""
    share = 1e-3

    @jax.jit
    def step(params: Any, statistics: Any, images: Any) -> Any:
        def loss(params: Any, images: Any) -> Any:
            outputs = network.train(params, statistics, images, jax.random.key(0))
            return jnp.sum(outputs.logits**2), outputs

        (of_params, of_images), outputs = jax.grad(loss, (0, 1), has_aux=True)(params, images)
        params = jax.tree.map(lambda value, gradient: value - share * gradient, params, of_params)
        return params, outputs.statistics, outputs.logits, of_params, of_images

    sgd = torch.optim.SGD(torch_model.parameters(), lr=share)
    params, statistics = network.params, network.statistics
    for _ in range(2):
        params, statistics, logits, gradients, of_images = step(params, statistics, images)
        torch_images = to_nchw(images).requires_grad_()
        torch_logits = torch_model(torch_images)
        sgd.zero_grad()
        torch_logits.square().sum().backward()
        sgd.step()
        assert torch_images.grad is not None
        assert relative_error(logits, torch_logits.detach()) <= LOGITS_64
        expected = torch_images.grad.numpy().transpose(0, 2, 3, 1)
        assert relative_error(of_images, expected) <= GRADIENTS_64
        torch_gradients = {n: p.grad for n, p in torch_model.named_parameters()}
        state = torch_model.state_dict()
        for arrays, others, bound in (
            (gradients, torch_gradients, GRADIENTS_64),
            (statistics, {n: state[n] for n in state if n not in torch_gradients}, STATISTICS_64),
        ):
            assert len(arrays) == len(others)
            for name, array in arrays.items():
                torch_name = leaves.torch_name(name)
                actual = leaves.to_torch(name, np.asarray(array))
                assert relative_error(actual, others[torch_name]) <= bound, torch_name


_SMALL: dict[str, Any] = {"stage_planes": (4, 8), "stem_planes": 4}


def _tiny_twins(spec: ResNetSpec, **options: Any) -> tuple[Any, Any]:
    torch_model = torch_resnet.from_spec(spec, NUM_CLASSES).double()
    randomise(torch_model)
    with no_values():
        flax_model = flax_resnet.from_spec(
            spec, NUM_CLASSES, rngs=nnx.Rngs(0), param_dtype=jnp.float64, **options
        )
    convert.torch_to_flax(torch_model.state_dict(), flax_model)
    return flax_model, torch_model
