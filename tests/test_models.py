"""The public classes of both packages: names, arguments, attributes and counts."""

import importlib
import inspect
import pickle
import pkgutil
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flax_resnet
from flax_resnet.layers import no_values
from resnet_spec import MODELS, find_spec
from tests.torch_or_none import torch, torch_resnet

IMAGENET = (18, 34, 50, 101, 152, 200)
CIFAR = (20, 32, 44, 56, 110, 164, 1001, 1202)
PUBLIC_MODELS = [
    f"{preact}{name}"
    for preact in ("", "PreAct")
    for name in (
        *(f"ResNet{depth}" for depth in IMAGENET + CIFAR),
        *(f"WideResNet{depth}" for depth in (16, 28, 40)),
    )
]
OTHER_NAMES = [
    *("ResNet", "PreActResNet", "BasicBlock", "Bottleneck", "PreActBlock", "PreActBottleneck"),
    *("IdentityShortcut", "ProjectionShortcut", "FullProjectionShortcut", "ConvolutionShortcut"),
    *("create", "list_models", "utils"),
]
PACKAGES = [flax_resnet, pytest.param(torch_resnet, marks=pytest.mark.torch)]
SHORTCUTS = ["identity", "projection", "full_projection", "convolution"]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_seeds_public_names_are_there(package):
    assert len(PUBLIC_MODELS) + 2 == 36  # torch-resnet 0.0.4 exports 36 models
    for name in PUBLIC_MODELS + OTHER_NAMES:
        assert name in package.__all__
        assert hasattr(package, name)


# What one framework has of its own, and the other needs: files and classes of one twin alone.
FLAX_ALONE = (
    *("convolution", "depth", "depth.StackedBlocks", "variables"),
    *(
        "layers.BatchNorm",
        "layers.Context",
        "layers.Conv",
        "layers.Identity",
        "layers.NoKeys",
        "network.Options",
    ),
    "stochastic_depth.BranchDropRate",
)
TORCH_ALONE = (*("dialect.BiasedBatchNorm2d", "dialect.SameConv2d", "dialect.SameMaxPool2d"),)


@pytest.mark.torch
def test_the_twins_have_the_same_files_and_classes():
    flax_parts, torch_parts = parts_of(flax_resnet), parts_of(torch_resnet)
    assert {f"resnet.{name}" for name in ("ResNet", "ResNet50")} <= flax_parts
    assert flax_parts - torch_parts == set(FLAX_ALONE)
    assert torch_parts - flax_parts == set(TORCH_ALONE)


def parts_of(package: ModuleType) -> set[str]:
    """Names of its files, and of the classes in each."""
    parts = set[str]()
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        classes = [c for c in vars(module).values() if inspect.isclass(c)]
        own = [c.__name__ for c in classes if c.__module__ == module.__name__]
        parts |= {info.name, *(f"{info.name}.{name}" for name in own if not name.startswith("_"))}
    return parts


def build_torch(name: str, num_classes: int | None = 10, **options: Any) -> "torch.nn.Module":
    with torch.device("meta"):
        return torch_resnet.create(name, num_classes, **options)


@pytest.mark.torch
@pytest.mark.parametrize("name", list(MODELS))
def test_the_torch_twin_has_the_tables_layers(name):
    model = build_torch(name)
    spec = find_spec(name)
    assert torch_resnet.utils.count_parameters(model) == spec.count_parameters(10)
    assert torch_resnet.utils.count_layers(model) == spec.count_layers(10)
    assert model.out_planes == spec.out_planes
    assert model.spec == spec


# The deep ones take seconds each to build; their blocks are those of the others.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if find_spec(name).count_layers() > 60 else name
        for name in MODELS
    ],
)
def test_the_flax_twin_has_the_tables_layers(name):
    with no_values():  # for speed
        model = flax_resnet.create(name, 10, rngs=nnx.Rngs(0))
    spec = find_spec(name)
    assert flax_resnet.utils.count_parameters(model) == spec.count_parameters(10)
    assert flax_resnet.utils.count_layers(model) == spec.count_layers(10)
    assert model.out_planes == spec.out_planes
    assert model.spec == spec


@pytest.mark.torch
@pytest.mark.parametrize("name", PUBLIC_MODELS)
def test_a_named_class_is_its_row_of_the_table(name):
    cls: Any = getattr(torch_resnet, name)
    with torch.device("meta"):
        assert cls().spec == find_spec(name)
    assert issubclass(cls, torch_resnet.PreActResNet if "PreAct" in name else torch_resnet.ResNet)
    assert getattr(flax_resnet, name).__name__ == name


@pytest.mark.parametrize("package", PACKAGES)
def test_a_generic_class_makes_resnet20_from_dimensions(package):
    options: Any = {"rngs": nnx.Rngs(0)} if package is flax_resnet else {}
    dimensions = [(1, 16), (3, 16), (3, 32), (3, 64)]
    model = package.ResNet(dimensions, package.BasicBlock, small_images=True, **options)
    assert model.spec == find_spec("ResNet20")


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("cls", ["BasicBlock", "Bottleneck", "PreActBlock", "PreActBottleneck"])
def test_blocks_have_the_seeds_constructor(package, cls):
    options: Any = {"rngs": nnx.Rngs(0)} if package is flax_resnet else {}
    block = getattr(package, cls)(
        8, 16, shortcut=package.IdentityShortcut, stride=2, width=2, drop_rate=0.0, **options
    )
    assert block.out_planes == (64 if "Bottleneck" in cls else 32)
    assert not block.shortcut.requires_activation


@pytest.mark.parametrize("package", PACKAGES)
def test_a_bottleneck_refuses_dropout(package):
    options: Any = {"rngs": nnx.Rngs(0)} if package is flax_resnet else {}
    for cls in (package.Bottleneck, package.PreActBottleneck):
        with pytest.raises(ValueError, match="no dropout"):
            cls(8, 16, drop_rate=0.1, **options)
    with pytest.raises(ValueError, match="no dropout"):
        package.ResNet50(drop_rate=0.1, **options)


@pytest.mark.parametrize("package", PACKAGES)
def test_bad_arguments_are_value_errors(package):
    options: Any = {"rngs": nnx.Rngs(0)} if package is flax_resnet else {}
    for bad, match in (
        ({"dimensions": [(1, 16)]}, "at least one stage"),
        ({"dimensions": [(1, 16), (0, 16)]}, "positive"),
        ({"dimensions": [(2, 16), (1, 16)]}, "the stem, which is one block"),
        ({"dimensions": [(1, 16), (1, 16, 3)]}, r"blocks, planes\).* not .*16, 3"),
        ({"dimensions": [16, 16]}, r"blocks, planes\).* not \[16, 16\]"),
        ({"dimensions": ["16", "1x"]}, r"blocks, planes\).* not .*1x"),
        ({"dimensions": None}, r"blocks, planes\).* not None"),
        ({"in_planes": 0}, "in_planes"),
        ({"width": 0}, "width"),
        ({"drop_rate": 1.5}, "drop_rate"),
    ):
        arguments: Any = {"dimensions": [(1, 16), (1, 16)], **bad, **options}
        with pytest.raises(ValueError, match=match):
            package.ResNet(**arguments)
    with pytest.raises(ValueError, match="cannot shrink"):
        package.ResNet([(1, 16), (1, 8)], shortcut=package.IdentityShortcut, **options)
    with pytest.raises(ValueError, match="did you mean ResNet50"):
        package.create("ResNet50x", **options)
    for num_classes in (0, -1, "10", 2.0):
        with pytest.raises(ValueError, match="num_classes must be a positive integer"):
            package.create("ResNet20", num_classes, **options)
    with pytest.raises(ValueError, match="did you mean identity"):
        package.create("ResNet20", shortcut="Identity", **options)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_wrong_keyword_is_answered_by_the_right_one(package):
    options: Any = {"rngs": nnx.Rngs(0)} if package is flax_resnet else {}
    dimensions = [(1, 4), (1, 4)]
    for function, arguments, wrong, hint in (
        (package.ResNet20, (), {"num_classes": 10}, r"ResNet20 takes no num_classes .*set_head"),
        (package.ResNet20, (), {"with": 10}, r"ResNet20 takes no with \(did you mean width"),
        (package.ResNet20, (), {"x": 10}, r"ResNet20 takes no x \(known: .*shortcut, in_planes"),
        (package.PreActResNet, (dimensions,), {"drop": 1}, r"PreActResNet takes no drop \(.*_rate"),
        (package.create, ("ResNet20",), {"droprate": 0.1}, r"create takes no .* mean drop_rate"),
        (package.create, ("ResNet20",), {"preact": True}, r"takes no preact \(.*PreActResNet20"),
        (package.from_spec, (MODELS["ResNet20"],), {"a": 0, "b": 0}, r"from_spec .* a .* no b "),
    ):
        with pytest.raises(TypeError, match=hint):
            function(*arguments, **wrong, **options)
    if package is torch_resnet:
        with pytest.raises(TypeError, match=r"no rngs .*only the Flax.* no dtype"):
            package.create("ResNet20", rngs=nnx.Rngs(0), dtype="f4")


@pytest.mark.torch
@pytest.mark.parametrize("package", PACKAGES)
def test_blocks_and_shortcuts_are_classes_of_the_twin_or_names_of_the_table(package):
    options: Any = {"rngs": nnx.Rngs(0)} if package is flax_resnet else {}
    dimensions = [(1, 4), (1, 4)]
    model = package.ResNet(dimensions, "basic", shortcut="identity", **options)
    classes = {"block": package.BasicBlock, "shortcut": package.IdentityShortcut}
    assert model.spec == package.ResNet(dimensions, **classes, **options).spec
    assert package.ResNet20(shortcut="identity", **options).spec.shortcut == "identity"
    other: Any = torch_resnet if package is flax_resnet else flax_resnet
    for wrong, match in (
        ({"shortcut": None}, "shortcut is a class or one of identity, .*, not None"),
        ({"block": 3}, "block is a class or one of basic, bottleneck, not 3"),
        ({"shortcut": other.IdentityShortcut}, "shortcut .*IdentityShortcut is a module of"),
        ({"block": other.BasicBlock}, "block .*BasicBlock is a module of"),
    ):
        with pytest.raises(TypeError, match=match):
            package.ResNet(dimensions, **wrong, **options)
    with pytest.raises(ValueError, match="no block called 'basics': did you mean basic"):
        package.ResNet(dimensions, "basics", **options)


@pytest.mark.torch
def test_a_head_follows_the_pooling():
    model = torch_resnet.ResNet20()
    images = torch.randn(2, 3, 32, 32)
    assert model(images).shape == (2, model.out_planes)
    model.set_head(torch.nn.Linear(model.out_planes, 7))
    assert model(images).shape == (2, 7)
    twin = flax_resnet.ResNet20(rngs=nnx.Rngs(0))
    assert twin(jnp.ones((2, 32, 32, 3))).shape == (2, twin.out_planes)
    twin.set_head(nnx.Linear(twin.out_planes, 7, rngs=nnx.Rngs(0)))
    assert twin(jnp.ones((2, 32, 32, 3))).shape == (2, 7)


@pytest.mark.torch
def test_torch_models_survive_pickling_and_subclassing():
    class Mine(torch_resnet.ResNet20):
        pass

    model = torch_resnet.ResNet20(width=2)
    again = pickle.loads(pickle.dumps(model))
    assert type(again) is torch_resnet.ResNet20
    assert Mine(width=2).spec == again.spec == model.spec


@pytest.mark.torch
def test_the_seeds_ways_of_calling_and_its_attributes_still_work():
    """torch-resnet 0.0.4 takes these arguments without their names."""
    assert torch_resnet.ResNet20(False).spec == torch_resnet.ResNet20(small_images=False).spec
    wide = torch_resnet.WideResNet16(0.0, False)
    assert wide.spec == torch_resnet.WideResNet16(drop_rate=0.0, small_images=False).spec
    package: Any = torch_resnet
    sizes = np.array([[1, 16], [2, 16]])
    assert package.ResNet(sizes, in_planes=np.int64(1)).spec.in_planes == 1
    for wrong in (lambda: package.ResNet50(True), lambda: package.ResNet20(True, 1)):
        with pytest.raises(TypeError, match="keyword"):
            wrong()
    with pytest.raises(TypeError, match="block"):
        package.ResNet20(block=torch_resnet.BasicBlock)

    with pytest.raises(TypeError, match="twice"):
        package.ResNet20(True, small_images=False)

    replaced = package.ResNet20()
    replaced.avgpool = torch.nn.Identity()
    replaced.init_layer = torch.nn.Conv2d(1, 16, 1)
    assert replaced(torch.zeros(1, 1, 8, 8)).shape == (1, 64, 2, 2)
    assert not any("init_layer" in name for name in replaced.state_dict())

    class Mine(torch_resnet.PreActResNet20):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.norm(self.layers(self.init_layer(x))))
            return self.head(self.avgpool(x))

    torch.manual_seed(0)
    mine = Mine().eval()
    torch.manual_seed(0)
    ours = torch_resnet.PreActResNet20().eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(mine(images), ours(images))


def test_flax_needs_rngs():
    package: Any = flax_resnet
    with pytest.raises(TypeError, match="rngs"):
        package.ResNet20()
    for wrong in (0, jax.random.key(0), None):
        with pytest.raises(TypeError, match=r"random streams, nnx.Rngs\(0\) say, not"):
            package.create("ResNet20", rngs=wrong)
    for name, options, match in (
        ("WideResNet16", {}, "drop_rate 0.3 needs the random stream 'dropout'"),
        ("ResNet20", {"stochastic_depth": 0.1}, "stochastic_depth 0.1 needs .* 'dropout'"),
    ):
        with pytest.raises(ValueError, match=match):
            package.create(name, rngs=nnx.Rngs(params=0), **options)
    with pytest.raises(ValueError, match="'params'"):
        package.create("ResNet20", rngs=nnx.Rngs(dropout=0))


def kernels(model: Any) -> dict[str, np.ndarray]:
    from flax_resnet.variables import named_variables

    named = named_variables(model).items()
    return {n: np.asarray(v.get_value()) for n, v in named if n.endswith("kernel")}


@pytest.mark.torch
def test_convolutions_are_kaiming_normal_over_the_fan_out():
    twin = flax_resnet.ResNet50(rngs=nnx.Rngs(0))
    torch_model = torch_resnet.ResNet50()
    for name, kernel in kernels(twin).items():
        if kernel.size < 50_000:
            continue
        height, width, _, out = kernel.shape
        expected = (2 / (height * width * out)) ** 0.5
        weight = torch_model.get_parameter(name.replace("kernel", "weight")).detach().numpy()
        for values in (kernel, weight):
            z = values.ravel() / expected
            assert abs(z.mean()) < 0.02
            assert abs(z.std() - 1) < 0.01
            assert abs(np.mean(z**4) - 3) < 0.15  # a normal's; one cut at 2 sigma has 2.06
            assert abs(z).max() > 3.5


@pytest.mark.torch
@pytest.mark.parametrize("name", ["ResNet20", "PreActResNet20", "ResNet164", "PreActResNet164"])
def test_zero_init_makes_every_identity_block_an_identity(name):
    twin = flax_resnet.create(name, rngs=nnx.Rngs(0), zero_init_residual=True)
    torch_model = torch_resnet.create(name, zero_init_residual=True)
    block, torch_block = twin.stages[1][2], torch_model.get_submodule("stages.1.2")
    x = np.abs(np.random.default_rng(0).standard_normal((2, 8, 8, twin.stages[1][2].out_planes)))
    x = x.astype(np.float32)
    np.testing.assert_array_equal(block(jnp.asarray(x)), x)
    torch_x = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    torch.testing.assert_close(torch_block(torch_x), torch_x, rtol=0, atol=0)


def test_the_head_of_create_is_drawn_as_torch_draws_it():
    twin: Any = flax_resnet.create("ResNet50", 1000, rngs=nnx.Rngs(0))
    bound = twin.out_planes**-0.5
    for values in (twin.head.kernel.get_value(), twin.head.bias.get_value()):
        assert float(jnp.abs(values).max()) <= bound
        assert abs(float(values.std()) - bound / 3**0.5) < 0.03 * bound


@pytest.mark.torch
@pytest.mark.parametrize("name", ["WideResNet16-4", "PreActWideResNet16-4"])
def test_dropout_keeps_rate_and_scale_in_both_twins(name):
    rate = 0.3
    twin = flax_resnet.create(name, rngs=nnx.Rngs(0))
    torch_model = torch_resnet.create(name)
    ones = np.ones((64, 16, 16, 8), np.float32)
    dropped = np.asarray(twin.stages[0][0].dropout(jnp.asarray(ones)))
    torch_dropped = torch_model.get_submodule("stages.0.0.dropout")(torch.from_numpy(ones)).numpy()
    for values in (dropped, torch_dropped):
        assert abs(np.mean(values == 0) - rate) < 0.005
        np.testing.assert_allclose(values[values != 0], 1 / (1 - rate), rtol=1e-6)
    other = np.asarray(twin.stages[0][1].dropout(jnp.asarray(ones)))
    assert np.mean((other == 0) != (dropped == 0)) > 0.3  # each block draws for itself
    twin.eval()
    np.testing.assert_array_equal(twin.stages[0][0].dropout(jnp.asarray(ones)), ones)


def test_bfloat16_computes_in_bfloat16_and_keeps_the_rest_in_float32():
    model = flax_resnet.create("ResNet20", 10, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    images = jnp.ones((4, 32, 32, 3), jnp.float32)
    assert model.stem(images).dtype == jnp.bfloat16
    assert model(images).dtype == jnp.float32
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        expected = jnp.int32 if path[-1] == "num_batches_tracked" else jnp.float32
        assert leaf.get_value().dtype == expected


@pytest.mark.torch
def test_signatures_say_what_can_be_given():
    parameters = inspect.signature(torch_resnet.create).parameters
    assert list(parameters) == ["name", "num_classes", "overrides"]
    parameters = inspect.signature(flax_resnet.create).parameters
    assert list(parameters) == ["name", "num_classes", "rngs", "overrides"]


def test_flax_initial_values_depend_on_the_seed_alone():
    one, same, other = (kernels(flax_resnet.ResNet20(rngs=nnx.Rngs(seed))) for seed in (1, 1, 2))
    for name in one:
        np.testing.assert_array_equal(one[name], same[name])
        assert not np.array_equal(one[name], other[name])
    assert len({k.tobytes() for k in one.values()}) == len(one)
    assert jax.tree.structure(one) == jax.tree.structure(other)
