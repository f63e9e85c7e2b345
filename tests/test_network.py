"""What a network does in training: statistics, dropout, scanned and rematerialised blocks."""

from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import convert
import flax_resnet
from convert import leaves
from convert.twins import flax_to_arrays
from flax_resnet import BatchNorm
from flax_resnet.layers import no_values
from resnet_spec import ResNetSpec, count_multiplications, find_spec
from tests.torch_or_none import torch, torch_resnet
from tests.twins import (
    NUM_CLASSES,
    make_flax,
    make_twins,
    random_images,
    relative_error,
    run_torch,
    to_nchw,
)
from train.step.functional import Network


@pytest.mark.parametrize(
    "name", ["ResNet20", pytest.param("PreActResNet164", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "options", [{"scan_blocks": True}, {"remat": True}, {"scan_blocks": True, "remat": True}]
)
@pytest.mark.parametrize("stacked", [False, True], ids=["", "stacked"])
def test_scan_and_remat_keep_outputs_statistics_and_gradients(name, options, stacked):
    plain = make_flax(name)
    with no_values():
        other = flax_resnet.create(
            name, NUM_CLASSES, rngs=nnx.Rngs(0), param_dtype="float64", **options
        )
    convert.torch_to_flax(flax_to_arrays(plain), other)
    images = jnp.asarray(random_images(2, 16))

    def run(model: Any, stacked: bool = False) -> Any:
        network = Network(model, stacked=stacked)

        def loss(params: Any) -> Any:
            outputs = network.train(params, network.statistics, images, jax.random.key(0))
            return jnp.sum(outputs.logits**2), outputs

        gradients, outputs = jax.jit(jax.grad(loss, has_aux=True))(network.params)
        return network.unpack({"logits": outputs.logits, **outputs.statistics}), network.unpack(
            gradients
        )

    for expected, actual in zip(run(plain), run(other, stacked), strict=True):
        assert expected.keys() == actual.keys()
        for key in expected:
            assert relative_error(actual[key], expected[key]) <= 1e-10, key


@pytest.mark.parametrize("options", [{"scan_blocks": True}, {"remat": True}], ids=str)
def test_a_network_can_be_a_constant_of_compiled_functions_in_evaluation(options):
    plain = make_flax("ResNet20")
    with no_values():
        other = flax_resnet.create(
            "ResNet20", NUM_CLASSES, rngs=nnx.Rngs(0), param_dtype="float64", **options
        )
    convert.torch_to_flax(flax_to_arrays(plain), other)
    images = jnp.asarray(random_images(2, 16))

    def results(model: Any) -> list[Any]:
        model.eval()
        assert jax.eval_shape(model, images).shape == (2, NUM_CLASSES)
        gradient = jax.jit(jax.grad(lambda x: jnp.sum(model(x) ** 2)))(images)
        return [jax.jit(model)(images), gradient, jax.vmap(model)(images[:, None])]

    for actual, expected in zip(results(other), results(plain), strict=True):
        assert relative_error(actual, expected) <= 1e-12


@pytest.mark.parametrize("options", [{"scan_blocks": True}, {"remat": True}], ids=str)
def test_what_a_block_of_ones_own_notes_down_is_in_the_model(options):
    class Note(nnx.Variable):
        pass

    class Noting(flax_resnet.BasicBlock):
        def __call__(self, x: Any) -> Any:
            y = super().__call__(x)
            self.seen = Note(jnp.mean(y))
            return y

    dimensions = [(1, 4), (3, 4)]
    model = flax_resnet.ResNet(dimensions, Noting, small_images=True, rngs=nnx.Rngs(0), **options)
    model(jnp.asarray(random_images(2, 8, "float32")))
    assert len(jax.tree.leaves(nnx.state(model, Note))) == 3


def test_what_is_no_batch_of_images_is_refused():
    model = flax_resnet.create("ResNet20", 10, rngs=nnx.Rngs(0))
    for shape in ((), (16, 16, 3), (1, 2, 16, 16, 3), (2, 3, 16, 16)):
        with pytest.raises(ValueError, match=r"images are \(n, h, w, c\) with 3 channels"):
            model(jnp.ones(shape))
    for shape in ((1, 0, 8, 3), (1, 8, 0, 3)):
        with pytest.raises(ValueError, match="no pixels"):
            model(jnp.ones(shape))
    for dtype in ("uint8", "int32", "bool", "complex64"):
        with pytest.raises(TypeError, match=f"real floating numbers.* not {dtype}"):
            model(jnp.ones((1, 8, 8, 3), dtype))


@pytest.mark.parametrize(
    "options",
    [{}, {"scan_blocks": True}, {"remat": True}, {"scan_blocks": True, "remat": True}],
    ids=str,
)
def test_a_function_among_the_blocks_is_run_as_it_is(options):
    model = flax_resnet.ResNet([(1, 4), (3, 4)], small_images=True, rngs=nnx.Rngs(0), **options)
    model.eval()
    images = jnp.asarray(random_images(2, 8, "float32"))
    expected = model(images)
    functions = (lambda x: 2 * x), (lambda x: x / 2)
    model.stages[0] = nnx.List([*functions, *model.stages[0], jnp.abs])  # what relu leaves stays
    assert relative_error(model(images), expected) <= 1e-6


@pytest.mark.torch
def test_a_batch_without_images_has_no_logits_in_either_twin():
    flax_model, torch_model = make_twins("ResNet20")
    flax_model.eval()
    torch_model.eval()
    images = np.zeros((0, 16, 16, 3))
    assert flax_model(jnp.asarray(images)).shape == (0, NUM_CLASSES)
    assert run_torch(torch_model, images).shape == (0, NUM_CLASSES)


SAME: Any = {"padding": "same", "stem_padding": "same"}


@pytest.mark.parametrize(
    ("name", "options", "shape", "size"),
    [
        ("ResNet20", {}, "b, h, w, 3", 15),
        ("ResNet20", {"shortcut": "identity"}, "b, h, w, 3", 15),
        ("ResNet20", {"shortcut": "centred_identity"}, "b, h, w, 3", 18),
        ("ResNet20", SAME, "b, 4*h, 4*w, 3", 20),  # multiples of the strides' product
        ("ResNet18", SAME, "b, 32*h, 32*w, 3", 64),
    ],
    ids=str,
)
def test_a_program_can_be_exported_for_images_of_any_size(name, options, shape, size):
    model = make_flax(name, dtype="float32", **options)
    model.eval()
    symbols = jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape), jnp.float32)
    exported = jax.export.export(jax.jit(lambda x: model(x)))(symbols)
    images = jnp.asarray(random_images(2, size, "float32"))
    assert relative_error(exported.call(images), model(images)) <= 1e-5


@pytest.mark.parametrize(
    "options", [{}, {"shortcut": "identity", "stochastic_depth": 0.5}], ids=str
)
def test_no_array_is_given_axes_that_are_not_said(options):
    """`jax.numpy_rank_promotion("raise")` holds for a step of training, and for evaluation."""
    model = make_flax("ResNet20", dtype="float32", **options)
    network = Network(model)
    images = jnp.asarray(random_images(4, 16, "float32"))

    def loss(params: Any) -> Any:
        key = jax.random.key(0)
        return jnp.sum(network.train(params, network.statistics, images, key).logits ** 2)

    with jax.numpy_rank_promotion("raise"):
        gradients = jax.grad(loss)(network.params)
        model.eval()
        assert model(images).shape == (4, NUM_CLASSES)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


def test_no_dtype_is_promoted_that_is_not_said():
    """`jax.numpy_dtype_promotion("strict")` holds for a step of training, and for evaluation."""
    fields: Any = {"stage_depths": (1,), "stage_planes": (8,), "stem_planes": 4}
    spec = ResNetSpec(block="basic", **fields, drop_rate=0.3, stochastic_depth=0.5)
    images = jnp.asarray(random_images(2, 32, "float32"))
    with jax.numpy_dtype_promotion("strict"):
        model = flax_resnet.from_spec(spec, NUM_CLASSES, rngs=nnx.Rngs(0), dtype="bfloat16")
        gradients = nnx.grad(lambda model: jnp.sum(model(images) ** 2))(model)
        model.eval()
        assert model(images).dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize(
    "options", [{}, {"scan_blocks": True}, {"scan_blocks": True, "stacked": True}], ids=str
)
@pytest.mark.parametrize("stochastic_depth", [0.0, 0.5])
def test_every_block_and_layer_of_it_has_a_key_of_its_own(options, stochastic_depth):
    network = make_drawing(stochastic_depth=stochastic_depth, **options)
    model = network.model(network.params, network.statistics)
    streams = [stream for _, stream in nnx.to_flat_state(nnx.state(model, nnx.RngKey))]
    data = [jax.random.key_data(stream.get_value()).reshape(-1, 2) for stream in streams]
    keys = [tuple(key) for key in np.concatenate(data).tolist()]
    blocks = 12  # of this network, each with dropout
    assert len(set(keys)) == len(keys) == blocks * (2 if stochastic_depth else 1)


def make_drawing(*, stacked: bool = False, **options: Any) -> Network:
    model = flax_resnet.create("WideResNet28-1", 10, rngs=nnx.Rngs(0), **options)
    return Network(model, stacked=stacked)


@pytest.mark.parametrize("scan_blocks", [False, True])
def test_dropout_is_drawn_anew_in_every_step(scan_blocks):
    model = flax_resnet.create("WideResNet16-1", 10, rngs=nnx.Rngs(0), scan_blocks=scan_blocks)
    network = Network(model)
    images = jnp.asarray(random_images(2, 16, "float32"))
    keys = jax.random.split(jax.random.key(0), 2)
    runs = [network.train(network.params, network.statistics, images, k).logits for k in keys]
    again = network.train(network.params, network.statistics, images, keys[0]).logits
    assert not np.allclose(runs[0], runs[1])
    np.testing.assert_array_equal(runs[0], again)


@pytest.mark.parametrize("options", [{}, {"stochastic_depth": 0.5}], ids=str)
def test_stacked_blocks_draw_what_each_would_draw(options):
    """Dropout (which this network has by default) and stochastic depth."""
    models = [
        flax_resnet.create("WideResNet28-1", 10, rngs=nnx.Rngs(0), scan_blocks=scan, **options)
        for scan in (False, True)
    ]
    plain, stacked = Network(models[0]), Network(models[1], stacked=True)
    images = jnp.asarray(random_images(2, 16, "float32"))
    assert len(stacked.params) < len(plain.params)
    for seed in range(2):
        key = jax.random.key(seed)
        expected = plain.train(plain.params, plain.statistics, images, key)
        actual = stacked.train(
            stacked.pack(plain.params), stacked.pack(plain.statistics), images, key
        )
        np.testing.assert_allclose(actual.logits, expected.logits, rtol=1e-4, atol=1e-4)
        assert stacked.unpack(actual.statistics).keys() == expected.statistics.keys()


@pytest.mark.torch
@pytest.mark.parametrize(
    ("mean", "std", "shape"),
    [(0.0, 1e-4, (2, 1, 1, 5)), (-3.0, 2.0, (1, 2, 1, 5)), (1e3, 1.0, (8, 4, 4, 5))],
)
def test_batch_norm_is_torchs_on_hard_inputs_in_float32(mean, std, shape):
    """Tiny variances, two values, and a mean at which E[x^2] - E[x]^2 is wrong by 0.1."""
    generator = np.random.default_rng(0)
    torch_norm, norm = torch.nn.BatchNorm2d(5), BatchNorm(5)
    for _ in range(3):
        x = (mean + std * generator.standard_normal(shape)).astype(np.float32)
        exact = x.astype(np.float64)
        exact -= exact.mean((0, 1, 2))
        exact /= np.sqrt(np.mean(exact**2, (0, 1, 2)) + 1e-5)
        torch_norm(to_nchw(x))
        np.testing.assert_allclose(norm(jnp.asarray(x)), exact, rtol=1e-5, atol=5e-4)
    assert torch_norm.running_mean is not None
    assert torch_norm.running_var is not None
    np.testing.assert_allclose(norm.mean.get_value(), torch_norm.running_mean, rtol=1e-5)
    np.testing.assert_allclose(norm.var.get_value(), torch_norm.running_var, rtol=1e-5)
    assert int(norm.num_batches_tracked.get_value()) == 3


def test_batch_norm_of_half_precision_weights_computes_in_float32():
    half, exact = BatchNorm(5), BatchNorm(5)
    generator = np.random.default_rng(0)
    for name in ("scale", "bias", "mean", "var"):
        values = jnp.asarray(generator.uniform(0.5, 1.5, 5), jnp.bfloat16)
        getattr(half, name).set_value(values)
        getattr(exact, name).set_value(values.astype(jnp.float32))
    half.use_running_average = exact.use_running_average = True
    x = jnp.asarray(generator.standard_normal((2, 4, 4, 5)), jnp.float32)
    np.testing.assert_array_equal(half(x), exact(x))


def test_batch_norm_refuses_to_train_on_one_value_as_torch_does():
    with pytest.raises(ValueError, match="one value per channel"):
        BatchNorm(5)(jnp.ones((1, 1, 1, 5)))


@pytest.mark.torch
def test_statistics_over_devices_are_those_of_the_global_batch():
    """Eight devices with their shares against torch with the whole batch."""
    flax_model, torch_model = make_twins("ResNet20")
    network = Network(flax_model, axis_name="devices")
    images = random_images(16, 16)

    def forward(shard: Any) -> Any:
        outputs = network.train(network.params, network.statistics, shard, jax.random.key(0))
        return jax.lax.all_gather(outputs.logits, "devices", tiled=True), outputs.statistics

    logits, statistics = jax.pmap(forward, "devices", out_axes=None)(
        images.reshape(8, 2, 16, 16, 3)
    )
    torch_model.train()
    assert relative_error(logits, run_torch(torch_model, images)) <= 1e-12
    state = torch_model.state_dict()
    for name, statistic in statistics.items():
        expected = state[leaves.torch_name(name)].numpy()
        assert relative_error(statistic, expected) <= 1e-12, name


@pytest.mark.torch
@pytest.mark.parametrize("name", ["ResNet20", "PreActResNet20", "ResNet50-small"])
def test_what_a_torch_layer_returned_is_not_changed_behind_its_hooks(name):
    """Recorders of activations, attribution and patching hold what a layer has returned."""
    model = torch_resnet.create(name, 10).eval()
    outputs, copies = [], []

    def record(module: Any, inputs: Any, output: Any) -> None:
        outputs.append(output)
        copies.append(output.detach().clone())

    for module in model.modules():
        module.register_forward_hook(record)
        module.register_full_backward_hook(lambda *_: None)
    model(torch.randn(2, 3, 16, 16, requires_grad=True)).sum().backward()
    assert len(outputs) > 50
    assert all(torch.equal(a, b) for a, b in zip(outputs, copies, strict=True))


@pytest.mark.torch
@pytest.mark.parametrize("size", [33, 225])
@pytest.mark.parametrize("name", ["ResNet18", "PreActResNet20", "ResNet34-small"])
def test_odd_images_cost_what_the_twin_multiplies(name, size):
    with torch.device("meta"):
        model = torch_resnet.create(name).eval()
        seen = []
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                weights = module.weight.numel()
                module.register_forward_hook(
                    lambda *args, weights=weights: seen.append(weights * args[2][0, 0].numel())
                )
        last: list[int] = []
        model.stages[-1].register_forward_hook(lambda *args: last.append(args[2].shape[-1]))
        model(torch.empty(1, 3, size, size))
    spec = find_spec(name)
    assert count_multiplications(spec, size) == sum(seen)
    assert last == [spec.final_size(size)]
