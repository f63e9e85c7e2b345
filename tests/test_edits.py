"""A network that was edited after it was built never passes for its row of the table."""

import pickle
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import pytest
import torch
from flax import nnx
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import convert
import flax_resnet
import torch_resnet
from convert.models import describe
from flax_resnet.layers import Identity
from resnet_spec import MODELS, find_spec
from resnet_spec.classifier import DESCRIPTION_KEY
from tests.twins import make_twins, random_images, relative_error, run_torch
from torch_resnet.edits import differences_from_row


def keep_size(model: Any) -> None:
    block = model.stages[3][0]
    block.conv1.stride = block.shortcut.conv.stride = (1, 1)


def keep_size_in_flax(model: Any) -> None:
    block = model.stages[3][0]
    block.conv1.strides = block.shortcut.conv.strides = 1


def of_torch(path: str, **settings: Any) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        for name, value in settings.items():
            setattr(model.get_submodule(path), name, value)

    return edit


class Doubled(torch_resnet.ResNet18):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class FlaxDoubled(flax_resnet.ResNet18):
    def __call__(self, x: Any) -> Any:
        return 2 * super().__call__(x)


class Rounded(nn.Conv2d):
    def _conv_forward(self, input: Any, weight: Any, bias: Any) -> torch.Tensor:
        return super()._conv_forward(input, weight, bias).round()


TORCH_EDITS: dict[str, tuple[Callable[[Any], Any], tuple[str, ...]]] = {
    "stride": (keep_size, ("stages.3.0.conv1: stride", "stages.3.0.shortcut.conv: stride")),
    "pool": (of_torch("stem", pool=nn.Identity()), ("stem.pool: Identity",)),
    "ceil": (of_torch("stem.pool", ceil_mode=True), ("stem.pool: ceil_mode",)),
    "eps": (of_torch("stages.1.1.bn2", eps=0.1), ("stages.1.1.bn2: eps",)),
    "padding": (of_torch("stages.0.1.conv1", padding_mode="circular"), ("stages.0.1.conv1",)),
    "avgpool": (of_torch("", avgpool=nn.Flatten()), ("avgpool: Flatten",)),
    "activation": (of_torch("stages.2.1", dropout=nn.ReLU()), ("stages.2.1.dropout: ReLU",)),
    "appended": (lambda model: model.stages[1].append(nn.ReLU()), ("stages.1: 3 blocks, not 2",)),
    "method": (of_torch("stages.2.0", forward=torch.relu), ("stages.2.0: BasicBlock has its own",)),
    "convolution": (
        lambda m: setattr(m.stem, "conv", Rounded(3, 64, 7, 2, 3, bias=False)),
        ("stem.conv: Rounded has its own _conv_forward",),
    ),
}


@pytest.mark.parametrize("edit", TORCH_EDITS)
def test_an_edited_torch_network_is_refused_by_the_names_of_what_differs(edit, tmp_path):
    change, names = TORCH_EDITS[edit]
    model: Any = torch_resnet.create("ResNet18", 10)
    assert DESCRIPTION_KEY in model.state_dict()._metadata[""]
    change(model)
    for write, file in ((convert.save, "m.pt"), (convert.export_onnx, "m.onnx")):
        with pytest.raises(convert.ConversionError) as caught:
            write(tmp_path / file, model) if write is convert.save else write(
                model, tmp_path / file
            )
        assert all(name in str(caught.value) for name in names)
        assert len(caught.value.problems) == len(names)
    assert DESCRIPTION_KEY not in model.state_dict()._metadata[""]
    model.spec = None
    with pytest.raises(convert.ConversionError, match="no row in the table"):
        describe(model)


FLAX_EDITS: dict[str, tuple[Callable[[Any], Any], tuple[str, ...]]] = {
    "strides": (keep_size_in_flax, ("stages.3.0.conv1: strides", "stages.3.0.shortcut.conv: str")),
    "dilation": (lambda m: setattr(m.stages[0][1].conv2, "kernel_dilation", 2), ("0.1.conv2: ke",)),
    "pool": (lambda m: setattr(m.stem, "pool_padding", "SAME"), ("stem: pool_padding SAME",)),
    "avgpool": (lambda m: setattr(m, "avgpool", Identity()), ("avgpool: Ide",)),
    "epsilon": (
        lambda m: m.set_attributes(flax_resnet.BatchNorm, epsilon=0.1),
        ("stem.bn: epsilon 0.1, not 1e-05", "stages.3.1.bn2: epsilon", "stages.1.0.shortcut_bn"),
    ),
    "mask": (
        lambda m: setattr(m.stem.conv, "mask", nnx.data(jnp.zeros((7, 7, 3, 64)))),
        ("conv: mask",),
    ),
    "variance": (
        lambda m: m.set_attributes(flax_resnet.BatchNorm, running_variance="biased"),
        ("stages.0.0.bn1: running_variance biased, not unbiased",),
    ),
}


@pytest.mark.parametrize("edit", FLAX_EDITS)
def test_an_edited_flax_network_is_refused_by_the_names_of_what_differs(edit, tmp_path):
    change, names = FLAX_EDITS[edit]
    model, _ = make_twins("ResNet18", dtype="float32")
    change(model)
    with pytest.raises(convert.ConversionError) as caught:
        convert.save(tmp_path / "m.npz", model)
    assert all(name in str(caught.value) for name in names)
    assert not list(tmp_path.iterdir())
    model.spec = None
    with pytest.raises(convert.ConversionError, match="no row in the table"):
        describe(model)


def test_a_subclass_with_a_forward_of_its_own_is_another_network(tmp_path):
    with pytest.raises(convert.ConversionError, match="the network: Doubled has its own forward"):
        convert.save(tmp_path / "m.pt", Doubled())
    with pytest.raises(convert.ConversionError, match="FlaxDoubled has its own __call__"):
        describe(FlaxDoubled(rngs=nnx.Rngs(0)))


def test_weights_go_between_twins_that_are_edited_alike():
    flax_model, torch_model = make_twins("ResNet18")
    other = torch_resnet.create("ResNet18", 10).double()
    keep_size_in_flax(flax_model)
    flax_model.set_attributes(flax_resnet.BatchNorm, epsilon=0.1)
    for model in (torch_model, other):
        keep_size(model)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.1
    state: Any = convert.flax_to_torch(flax_model)
    assert not hasattr(state, "_metadata")
    other.load_state_dict(state)
    convert.torch_to_flax(torch_model.state_dict(), flax_model)
    images = random_images(2, 48)
    flax_model.eval()
    expected = run_torch(torch_model.eval(), images)
    for actual in (run_torch(other.eval(), images), flax_model(jnp.asarray(images))):
        assert relative_error(actual, expected) <= 1e-12


@pytest.mark.parametrize("name", MODELS)
def test_every_row_is_its_own(name):
    with torch.device("meta"):
        assert describe(torch_resnet.create(name, 10)).network == find_spec(name)


DIALECT: Any = {"padding": "same", "stem_padding": "same", "running_variance": "biased"}


@pytest.mark.parametrize("name", ["ResNet20", "PreActResNet50", "WideResNet16-1"])
@pytest.mark.parametrize("options", [{}, {"stochastic_depth": 0.3, **DIALECT}], ids=str)
def test_what_does_not_change_the_function_is_no_edit(name, options):
    flax_model, torch_model = make_twins(name, dtype="float32", **options)
    for model in (torch_model, pickle.loads(pickle.dumps(torch_model)), torch_model.half()):
        assert describe(model).network == torch_model.spec
    for module in torch_model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.01
        if isinstance(module, nn.Dropout):
            module.p = 0.9
    torch_model.stages[0][0].dropout = nn.Identity()
    torch_model.stages[0][0].conv1.padding = torch_model.stages[0][0].conv1.padding[0]
    torch_model.forward = torch.compile(torch_model.forward, backend="eager")
    assert not differences_from_row(torch_model)
    flax_model.set_attributes(flax_resnet.BatchNorm, axis_name="devices", momentum=0.01)
    flax_model.stages[0][0].conv1.strides = (1, 1)
    describe(flax_model)
    describe(nnx.merge(*nnx.split(flax_model)))


def test_a_batch_norm_over_devices_is_its_row_but_where_that_has_biased_variances():
    convert_all = nn.SyncBatchNorm.convert_sync_batchnorm
    model = torch_resnet.create("ResNet20", 10)
    assert describe(convert_all(model)).network == find_spec("ResNet20")
    model = convert_all(torch_resnet.create("ResNet20", 10, running_variance="biased"))
    with pytest.raises(convert.ConversionError, match="SyncBatchNorm, not BiasedBatchNorm2d"):
        describe(model)


def test_a_state_dict_draws_no_random_number():
    model = torch_resnet.create("ResNet20", 10, width=3)  # a row that was not looked at before
    before = torch.get_rng_state()
    model.state_dict()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_state_dict_can_be_asked_for_where_all_tensors_are_fake():
    with FakeTensorMode():
        state: Any = torch_resnet.create("ResNet20", 10, width=5).state_dict()
    assert DESCRIPTION_KEY in state._metadata[""]
