"""Live networks of strangers: their code says which row they are, and their logits prove it."""

import copy
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from torch import nn
from torch.nn.utils import prune

import convert
import flax_resnet
import torch_resnet
from convert.arrays import same_bits, to_numpy
from convert.errors import ConversionError
from tests import strangers
from tests.peers import import_keras, make_peer
from tests.twins import fill_randomly, random_images, randomise, relative_error

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class InPlace(nn.Sequential):
    """Changes the images that it is given."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.sub_(0.5))


def filled(module: nn.Module) -> Any:
    """Random in every leaf, in training mode, as a stranger may hand it over."""
    randomise(module)
    for network in module.modules():
        if isinstance(network, strangers.Functional):
            network.fill()
    return module


def check(module: Any, images: Any = IMAGES, **fields: Any) -> Any:
    """Adopted with these fields; the logits of the torch twin are compared here once more."""
    adopted = convert.adopt(module, images)
    for name, value in fields.items():
        assert getattr(adopted.spec, name) == value, name
    for errors in adopted.errors.values():
        assert errors["float32"] <= 1e-5
        assert errors["float64"] <= 1e-12
    return adopted


def assert_same_bits(adopted: Any, module: nn.Module) -> None:
    """Every tensor is there, and bit for bit the module's."""
    state, ours = module.state_dict(), adopted.torch_model.state_dict()
    assert set(adopted.names) == set(ours)
    for name, theirs in adopted.names.items():
        assert same_bits(to_numpy(ours[name]), to_numpy(state[theirs])), name


def logits(module: nn.Module, images: torch.Tensor = IMAGES) -> np.ndarray:
    module = copy.deepcopy(module).double().eval()
    with torch.no_grad():
        return module(images.double()).numpy()


def assert_same_logits(adopted: convert.Adopted, module: nn.Module) -> None:
    """In float64; to float32's rounding where something was folded in float32."""
    assert relative_error(logits(adopted.torch_model), logits(module)) < 1e-5


@pytest.mark.parametrize(
    ("module", "fields"),
    [
        (strangers.OutOfOrder(), {"stage_depths": (1, 1)}),
        (strangers.Lists(), {"stage_depths": (1, 1)}),
        (strangers.SlicedSum(), {"preact": True, "shortcut": "identity"}),
        (strangers.Usual(), {"stage_depths": (1, 2), "shortcut": "projection"}),
        (strangers.Usual(shortcut="identity"), {"shortcut": "identity"}),
        (strangers.Usual(shortcut="centred_identity"), {"shortcut": "centred_identity"}),
        (strangers.Usual(shortcut="cat"), {"shortcut": "identity"}),
        (strangers.Usual(shortcut="convolution"), {"shortcut": "convolution"}),
        (strangers.Usual(shortcut="full"), {"shortcut": "full_projection"}),
    ],
    ids=lambda value: ", ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_any_style_of_code_is_its_row_bit_for_bit(module, fields):
    adopted = check(filled(module), **fields)
    if isinstance(module, strangers.Lists):  # whose head is a convolution
        assert adopted.names["head.weight"] == "out.weight"
    else:
        assert_same_bits(adopted, module)
    assert_same_logits(adopted, module)
    assert not adopted.notes


@pytest.mark.parametrize("stride", ["1x1", "3x3"])
def test_the_stride_of_bottlenecks_is_where_the_code_has_it(stride):
    module = filled(strangers.Deep(stride == "1x1"))
    images = torch.randn(2, 3, 32, 32)
    adopted = check(module, images, block="bottleneck", bottleneck_stride=stride)
    assert_same_bits(adopted, module)


def test_biases_and_another_epsilon_are_folded():
    module = filled(strangers.Deep(True, epsilon=1e-3, bias=True))
    adopted = check(module, torch.randn(2, 3, 32, 32), bottleneck_stride="1x1")
    assert "the biases of 9 convolutions" in adopted.notes[0]
    assert "epsilon 0.001" in adopted.notes[1]
    assert "further training is not" in adopted.notes[2]


@pytest.mark.parametrize("epsilon", [1e-5, 1e-3])
def test_functional_code_of_bare_parameters_is_read_too(epsilon):
    """Its head multiplies from the right: the tensor is turned, and keeps no name."""
    module = filled(strangers.Functional(epsilon))
    adopted = check(module, preact=True, width=2, stage_depths=(1, 1))
    assert_same_logits(adopted, module)
    assert adopted.names["stages.1.0.shortcut.conv.weight"] == "p.s1"
    assert adopted.names["stages.0.0.bn2.running_var"] == "var_m0"
    assert "head.weight" not in adopted.names
    assert ("epsilon" in str(adopted.notes)) == (epsilon != 1e-5)


def test_same_padding_is_told_from_torchs_by_images_of_even_size():
    module = filled(strangers.Same())
    adopted = check(module, padding="same")
    assert_same_logits(adopted, module)
    adopted = check(module, torch.randn(2, 3, 15, 15))
    assert any("even" in note for note in adopted.notes)


def test_a_branch_whose_last_scales_are_zero_is_seen_all_the_same():
    module = filled(strangers.Usual(shortcut="centred_identity"))
    for block in module.layers:
        nn.init.zeros_(block.bn2.weight)
        nn.init.zeros_(block.bn2.bias)
    nn.init.zeros_(module.conv.weight)
    check(module, shortcut="centred_identity")


CHANGES = {
    "dict": lambda x: {"aux": x.sum(), "scores": x},
    "tuple": lambda x: (x, x.argmax(1)),
    "list": lambda x: [x],
    "log_softmax": lambda x: x.log_softmax(1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_surrounds_a_network_is_left_out_and_named(change):
    module = filled(strangers.Around(strangers.Usual(), CHANGES[change]))
    adopted = check(nn.DataParallel(module) if change == "dict" else module)
    assert adopted.names["stem.conv.weight"] == "model.conv.weight"
    assert "projector.0.weight" in str(adopted.notes)
    assert ("softmax" in str(adopted.notes)) == (change == "log_softmax")
    assert_same_logits(adopted, module.model)


def test_a_network_without_a_head_has_features():
    network = filled(strangers.Usual())
    network.fc = nn.Identity()
    adopted = check(network)
    assert adopted.torch_model.head(IMAGES) is IMAGES
    assert_same_logits(adopted, network)


def test_a_network_that_normalises_its_images_is_adopted_behind_that():
    module = strangers.Normalising(filled(strangers.Usual()))
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    adopted = check(module, images)
    assert "prepares its images" in str(adopted.notes)
    with torch.no_grad():
        expected = module.eval()(images)
        given = adopted.torch_model(images / 255 - module.mean)
    before = IMAGES.clone()
    check(InPlace(module.network))
    assert torch.equal(IMAGES, before)
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5)


def test_computed_weights_and_scales_that_are_not_there_become_values():
    module: Any = strangers.Usual(norm=lambda planes: nn.BatchNorm2d(planes, affine=False))
    torch.nn.utils.parametrizations.weight_norm(module.conv)
    for norm in (m for m in module.modules() if hasattr(m, "running_var")):
        nn.init.uniform_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
    adopted = check(module)
    assert_same_logits(adopted, module)
    assert "stem.conv.weight" not in adopted.names
    assert torch.equal(adopted.torch_model.stem.conv.weight, module.conv.weight)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_weights_that_hooks_compute_are_copied_as_they_are():
    module = filled(strangers.Usual())
    prune.l1_unstructured(module.layers[0].conv1, "weight", 0.3)
    torch.nn.utils.weight_norm(module.layers[1].conv1)
    adopted = check(module)
    assert torch.equal(adopted.torch_model.stages[0][0].conv1.weight, module.layers[0].conv1.weight)
    assert "layers.0.conv1, layers.1.conv1" in str(adopted.notes)


def test_values_that_no_weights_have_are_refused():
    module = filled(strangers.Usual())
    module.bn.running_var.fill_(float("nan"))
    module.layers[1].conv1.weight.data[0, 0, 0, 0] = float("inf")
    with pytest.raises(ConversionError, match=r"(?s)bn.running_var.*layers.1.conv1.weight"):
        convert.adopt(module, IMAGES)


def test_what_runs_behind_the_head_is_named():
    module = filled(strangers.Around(strangers.Usual(), lambda x: x * 0.125))
    with pytest.raises(ConversionError, match=r"all layers agree.*behind the last runs mul"):
        convert.adopt(module, IMAGES)


def test_a_head_of_zeros_proves_nothing_and_is_filled_at_random():
    module = filled(strangers.Functional())
    nn.init.zeros_(module.w1)
    check(module)


def test_the_module_stays_as_it_is():
    module = filled(strangers.Usual()).half()
    module.bn.eval()
    module.fc.requires_grad_(False)
    hook = module.fc.register_forward_hook(lambda *_: None)
    before = copy.deepcopy(module.state_dict())
    modes = [m.training for m in module.modules()]
    adopted = check(module)
    assert all(same_bits(to_numpy(a), to_numpy(before[n])) for n, a in module.state_dict().items())
    assert [m.training for m in module.modules()] == modes
    assert [p.requires_grad for p in module.parameters()].count(False) == 2
    assert all(p.grad is None and p.dtype == torch.float16 for p in module.parameters())
    assert list(module.fc._forward_hooks) == [hook.id]
    assert_same_bits(adopted, module)  # in float16
    with torch.no_grad():  # and what the twins have is their own
        module.conv.weight.add_(1)
    assert not torch.equal(adopted.torch_model.stem.conv.weight, module.conv.weight)


def test_dropout_of_wide_networks_is_taken_over():
    module = filled(strangers.Usual())
    for block in module.layers:
        block.act = nn.Sequential(nn.ReLU(), nn.Dropout(0.3))
    adopted = check(module, drop_rate=0.3)
    assert "drop_rate=0.3" in str(adopted.notes)
    module.layers[0].act = nn.ReLU()
    assert "left out: dropout (0.3)" in str(check(module, drop_rate=0.0).notes)


def test_what_functions_drop_in_training_is_found_too():
    """Evaluation shows nothing of it; and torch's own random numbers go on as before."""
    dropping, skipping = (
        filled(strangers.Usual(**how)) for how in ({"drop": 0.25}, {"drop_path": 0.5})
    )
    state = torch.get_rng_state()
    adopted = convert.adopt(dropping, IMAGES)
    assert adopted.spec.drop_rate == 0.25
    assert "drop_rate=0.25" in str(adopted.notes)
    (note,) = convert.adopt(skipping, IMAGES).notes
    assert note == "left out: what it draws at random in training (bernoulli)"
    assert torch.equal(torch.get_rng_state(), state)


def test_another_momentum_is_said():
    module = filled(strangers.Usual())
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    norms[0].momentum, norms[1].momentum = 0.01, None
    (note,) = check(module).notes
    assert "(0.01, mean of all batches); a new batch counts 0.1" in note


def test_a_file_of_it_keeps_the_authors_names(tmp_path):
    module = filled(strangers.OutOfOrder())
    adopted = check(module)
    adopted.save(tmp_path / "adopted.safetensors", preprocessing="inception")
    again = convert.load(tmp_path / "adopted.safetensors", backend="torch")
    assert again.spec == adopted.spec
    from convert.files import read_weights
    from convert.names import under_original_names

    theirs, _ = under_original_names(read_weights(tmp_path / "adopted.safetensors"))
    state = module.state_dict()
    assert list(theirs) == list(state)
    assert all(same_bits(array, to_numpy(state[name])) for name, array in theirs.items())


def test_a_module_of_nnx_is_read_by_its_layers_calls():
    module = strangers.FlaxStranger(nnx.Rngs(0))
    fill_randomly(module)
    images = IMAGES.numpy().transpose(0, 2, 3, 1)
    adopted = check(module, images, padding="same", running_variance="biased")
    assert adopted.names["stages.1.0.conv1.weight"] == "c4.kernel"
    assert adopted.names["stages.1.0.shortcut_bn.running_mean"] == "norms.0.mean"
    module.eval()
    expected = module(images)["logits"]
    assert relative_error(adopted.flax_model(images), expected) < 1e-5
    with pytest.raises(ConversionError, match=r"norms.5.bias.*used by group normalisation"):
        convert.adopt(strangers.FlaxStranger(nnx.Rngs(0), normalise=strangers.Groups), images)
    with pytest.raises(TypeError, match="linen module with its variables"):
        convert.adopt(linen.Dense(1), images)
    with pytest.raises(ConversionError, match=r"(?s)c2, here stages.0.0.conv1.*computes silu"):
        convert.adopt(strangers.FlaxStranger(nnx.Rngs(0), activation=nnx.silu), images)


def test_what_linens_layers_do_in_training_is_told_too():
    module, images = strangers.LinenStranger(), IMAGES.numpy().transpose(0, 2, 3, 1)
    variables = jax.tree.map(
        lambda leaf: leaf + 0.1 * np.arange(leaf.size).reshape(leaf.shape) / leaf.size,
        module.init(jax.random.key(0), images),
    )
    notes = str(check((module, variables), images, running_variance="biased").notes)
    assert "drop_rate=0.3" in notes
    assert "the momentum of its BatchNorm (0.01); a new batch counts 0.1" in notes


@pytest.mark.parametrize("variance", ["biased", "unbiased"])
@pytest.mark.parametrize("package", [flax_resnet, torch_resnet])
def test_our_own_norms_keep_the_variance_that_they_were_made_with(package, variance):
    rngs = {"rngs": nnx.Rngs(0)} if package is flax_resnet else {}
    model = package.create("WideResNet16-1-0.0", num_classes=5, running_variance=variance, **rngs)
    images = random_images(2, 16)
    given = images if rngs else torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    adopted = convert.adopt(model, given)
    assert adopted.spec.running_variance == variance


REFUSED = {
    "plain": ({"residual": False}, ["no residual connections", "plain network"]),
    "gated": ({"gated": True}, ["multiplies what it computed", "squeeze and excitation"]),
    "group norm": (
        {"norm": lambda planes: nn.GroupNorm(4, planes)},
        ["bn.weight, bn.bias", "used by a group normalisation"],
    ),
    "batch statistics": (
        {"norm": lambda planes: nn.InstanceNorm2d(planes, affine=True)},
        ["statistics of the batch itself"],
    ),
    "groups": ({"groups": 4}, ["4 groups", "layers.0.conv1, layers.0.conv2"]),
    "dilation": ({"dilation": 2}, ["dilation (2, 2): layers.0.conv1"]),
    "SiLU": (
        {"activation": nn.SiLU},
        ["layers.0.conv1, here stages.0.0.conv1", "computes silu", "twin computes relu"],
    ),
    "biased SiLU": (
        {"activation": nn.SiLU, "bias": True},
        ["layers.0.conv1, here stages.0.0.conv1", "computes silu"],
    ),
    "leaky": ({"activation": lambda: nn.LeakyReLU(0.1)}, ["computes leaky_relu(0.1)"]),
    "bound": ({"activation": nn.ReLU6}, ["layers.0.conv1, here", "hardtanh(0.0, 6.0)"]),
    "PReLU": ({"activation": nn.PReLU}, ["act.weight", "learned activation"]),
    "pooling": ({"pool": lambda: nn.AdaptiveMaxPool2d(1)}, ["fc, here head", "max_pool2d"]),
    "stem pool": (
        {"stem_pool": lambda: nn.MaxPool2d(3, 2, 1)},
        ["layers.0.conv1, here stages.0.0.conv1", "max_pool2d([3, 3], [2, 2], [1, 1])"],
    ),
    "dropout": ({"drop": 0.5, "drop_always": True}, ["draws at random in evaluation"]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_another_network_is_refused_with_the_layer_where_it_differs(what):
    options, said = REFUSED[what]
    with pytest.raises(ConversionError) as refusal:
        convert.adopt(filled(strangers.Usual(**options)), IMAGES)
    for text in ["Usual", *said]:
        assert text in str(refusal.value)


def test_layers_of_no_row_are_refused_with_the_nearest_row():
    module = filled(strangers.Usual(shortcut="full", depths=(3, 3)))
    module.layers[1].shortcut = nn.Identity()
    with pytest.raises(
        ConversionError,
        match=r"(?s)layers of no row of the table.*full_projection shortcuts"
        r".*missing: 1 of convolutions",
    ):
        convert.adopt(module, IMAGES)


def test_shared_weights_are_refused_by_name():
    module = filled(strangers.Usual())
    module.layers[2].conv2 = module.layers[2].conv1
    with pytest.raises(ConversionError, match=r"run more than once.*layers.2.conv1"):
        convert.adopt(module, IMAGES)


def test_what_cannot_be_run_or_copied_is_said():
    module = filled(strangers.Usual())
    with pytest.raises(ConversionError, match=r"does not run on images .2, 5, 16, 16. in float64"):
        convert.adopt(module, torch.randn(2, 5, 16, 16))
    with pytest.raises(ConversionError, match="images are a batch"):
        convert.adopt(module, torch.randn(3, 16, 16))
    with pytest.raises(ConversionError, match="images are finite"):
        convert.adopt(module, IMAGES / 0)
    module.lock = threading.Lock()
    with pytest.raises(ConversionError, match="cannot be copied"):
        convert.adopt(module, IMAGES)
    with pytest.raises(TypeError, match="a module of torch, Flax or Keras, not a dict"):
        convert.adopt({}, IMAGES)


REAL = [
    ("cifar", "ResNet20", 16),
    ("torchvision", "ResNet50", 64),
    ("timm", "PreActResNet50", 64),
    ("transformers", "ResNet50", 64),
    ("flax-imagenet", "ResNet18", 64),
    ("bonsai", "ResNet50", 64),
]


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "name", "size"), REAL)
def test_networks_of_real_packages_are_adopted_as_their_layout_imports_them(layout, name, size):
    peer = make_peer(layout, name)
    is_linen = layout == "flax-imagenet"
    adopted = check((peer.model, peer.tensors) if is_linen else peer.model, random_images(2, size))
    state = convert.from_layout(peer.tensors, name, layout)
    assert not adopted.spec.differences(convert.layout_spec(name, layout))
    ours = adopted.torch_model.state_dict()
    assert set(ours) == set(state)
    assert all(same_bits(to_numpy(ours[n]), to_numpy(tensor)) for n, tensor in state.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("resnet18d", "layers of no row"),
        ("seresnet50", "multiplies what it computed"),
        ("resnetblur18", "maxpool.1.filt"),
        ("resnext50_32x4d", "32 groups"),
    ],
)
def test_networks_of_timm_that_no_row_has_are_refused(name, says, timm):
    with pytest.raises(ConversionError, match=says):
        convert.adopt(timm.create_model(name), torch.randn(2, 3, 64, 64))


@pytest.mark.slow
@pytest.mark.xdist_group("keras")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own
def test_a_model_of_keras_is_adopted_or_refused():
    """Activations inside of layers, biases, an epsilon of 1e-3, SAME padding; and in float64."""
    keras = import_keras()
    model, images = strangers.keras_model(keras), random_images(2, 16)
    values, call = [np.array(v) for v in model.get_weights()], keras.layers.Conv2D.call
    adopted = check(model, images, padding="same", running_variance="biased")
    assert adopted.names["stem.conv.weight"] == "first.kernel"
    assert adopted.names["stages.1.0.shortcut_bn.running_var"] == "skip32_bn.moving_variance"
    for note in ("softmax", "biases of 9 convolutions", "epsilon 0.001", "momentum"):
        assert note in str(adopted.notes)
    ours = jax.nn.softmax(adopted.flax_model(jnp.asarray(images)))
    assert relative_error(ours, np.asarray(model(images))) <= 1e-5
    assert all(map(np.array_equal, model.get_weights(), values))
    assert keras.layers.Conv2D.call is call
    with pytest.raises(ConversionError, match=r"not .*relu|relu|silu|swish"):
        convert.adopt(strangers.keras_model(keras, activation="silu"), images)
