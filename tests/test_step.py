"""The training step: data order, augmentation, schedule, decay, devices, and lowering for TPU."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import flax_resnet
from flax_resnet.variables import named_variables
from resnet_spec import ResNetSpec
from tests.twins import relative_error
from train.config import Config
from train.config.recipes import RECIPES
from train.data.dataset import Dataset, Split, batch_indices, normalise
from train.errors import UserError
from train.run.saved_state import named_state
from train.run.trainer import Trainer, describe
from train.step import parallel
from train.step.augment import Augment, choose_part, draw_keys, slice_part
from train.step.functional import Network, Outputs
from train.step.optimizer import make_optimizer, make_schedule
from train.step.parallel import Spread
from train.step.train_step import (
    Images,
    TrainState,
    average,
    averaged,
    cross_entropy,
    make_eval_step,
    make_train_step,
)

SMALL = "WideResNet16-1-0.0"
DEVICES = tuple(jax.devices())
# Another order would change every run that is resumed.
FIRST_BATCH_OF_111 = [7, 15, 1, 32, 6, 11, 46, 34]


def random_dataset(count: int = 64, size: int = 8, seed: int = 0) -> Dataset:
    generator = np.random.default_rng(seed)
    split = Split(
        generator.integers(0, 256, (count, size, size, 3), np.uint8),
        generator.integers(0, 10, count).astype(np.int32),
    )
    return Dataset(split, split, "test", 10, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def on_device(split: Split) -> Images:
    return Images(jnp.asarray(split.images), jnp.asarray(split.labels))


@pytest.mark.parametrize(("num_images", "batch_size"), [(100, 32), (7, 5), (5, 12), (64, 64)])
def test_every_epoch_shows_every_image_once_and_none_is_dropped(num_images, batch_size):
    epochs = batch_size  # after which batches and epochs end together
    stream = np.concatenate(
        [batch_indices(3, step, batch_size, num_images) for step in range(num_images)]
    )
    assert stream.dtype == np.int32
    orders = stream.reshape(epochs, num_images)
    for order in orders:
        assert sorted(order) == list(range(num_images))
    assert len({tuple(order) for order in orders}) > 1


def test_the_order_is_a_function_of_seed_and_step():
    one = [batch_indices(1, step, 8, 50) for step in range(20)]
    for step in reversed(range(20)):
        np.testing.assert_array_equal(batch_indices(1, step, 8, 50), one[step])
    assert not np.array_equal(batch_indices(2, 0, 8, 50), one[0])


def test_a_tpus_choice_among_all_crops_is_the_crop():
    padded = jax.random.normal(jax.random.key(0), (12, 14, 3))
    for row, column in ((0, 0), (4, 6), (1, 5)):
        places = (padded, jnp.int32(row), jnp.int32(column))
        chosen, cut = choose_part(*places, size=(8, 8)), slice_part(*places, size=(8, 8))
        np.testing.assert_array_equal(chosen, cut)
        np.testing.assert_array_equal(cut, padded[row : row + 8, column : column + 8])


def test_an_augmented_image_is_a_crop_of_the_padded_image_or_its_mirror():
    dataset = random_dataset(size=6)
    config = dataclasses.replace(Config(), crop_padding=2, flip=True)
    keys = jax.random.split(jax.random.key(0), 64)
    images = np.asarray(Augment(config, dataset)(jnp.asarray(dataset.train.images), keys))
    normal = normalise(dataset.train.images, dataset)
    padded = np.pad(normal, ((0, 0), (2, 2), (2, 2), (0, 0)))
    seen = set()
    for number, image in enumerate(images):
        found = [
            (row, column, mirror)
            for row in range(5)
            for column in range(5)
            for mirror in (1, -1)
            if np.allclose(
                padded[number, row : row + 6, column : column + 6][:, ::mirror], image, atol=1e-6
            )
        ]
        assert len(found) == 1
        seen.update(found)
    assert {row for row, _, _ in seen} == {column for _, column, _ in seen} == set(range(5))
    assert {mirror for _, _, mirror in seen} == {1, -1}


def test_without_padding_and_flip_an_image_is_only_normalised():
    dataset = random_dataset()
    config = dataclasses.replace(Config(), crop_padding=0, flip=False)
    augment = Augment(config, dataset)
    images, keys = jnp.asarray(dataset.train.images), jax.random.split(jax.random.key(0), 64)
    np.testing.assert_array_equal(augment(images, keys), augment.normalise(images))
    np.testing.assert_allclose(
        augment.normalise(images), normalise(dataset.train.images, dataset), atol=1e-6
    )


def test_cutout_erases_one_square_with_its_centre_anywhere_in_the_image():
    dataset = random_dataset(size=6)
    images, keys = jnp.asarray(dataset.train.images), jax.random.split(jax.random.key(0), 64)
    config = dataclasses.replace(Config(), crop_padding=2, cutout=4)
    whole = np.asarray(Augment(dataclasses.replace(config, cutout=0), dataset)(images, keys))
    seen = set()
    for before, after in zip(
        whole, np.asarray(Augment(config, dataset)(images, keys)), strict=True
    ):
        centres = [(row, column) for row in range(6) for column in range(6)]
        expected = {(row, column): before.copy() for row, column in centres}
        for (row, column), image in expected.items():
            image[max(row - 2, 0) : row + 2, max(column - 2, 0) : column + 2] = 0
        found = [centre for centre, image in expected.items() if np.array_equal(image, after)]
        assert found  # two centres erase the same where the padding is zero, too
        seen.add(found[0])
    assert {row for row, _ in seen} == {column for _, column in seen} == set(range(6))


def test_the_papers_schedule():
    rate: Any = make_schedule(RECIPES["cifar10"].config, 62_500)
    expected = {0: 0.01, 399: 0.01, 400: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 1e-3}
    for step, value in expected.items():
        assert float(rate(step)) == pytest.approx(value), step


def test_a_cosine_ends_at_zero():
    config = dataclasses.replace(RECIPES["digits"].config, warmup_steps=10)
    rate: Any = make_schedule(config, 110)
    assert float(rate(9)) == pytest.approx(config.warmup_learning_rate)
    assert float(rate(10)) == pytest.approx(config.learning_rate)
    assert float(rate(60)) == pytest.approx(config.learning_rate / 2)
    assert float(rate(110)) == pytest.approx(0, abs=1e-9)


def test_only_convolution_and_linear_weights_decay():
    network = Network(flax_resnet.create("ResNet20", 10, rngs=nnx.Rngs(0)))
    ones = jax.tree.map(jnp.ones_like, network.params)
    config = dataclasses.replace(Config(), weight_decay=0.25)
    optimizer = make_optimizer(config, optax.constant_schedule(1.0))
    zeros = jax.tree.map(jnp.zeros_like, ones)
    updates: Any = optimizer.update(zeros, optimizer.init(ones), ones)[0]
    for name, update in updates.items():
        decays = "conv" in name or name == "head.kernel"
        np.testing.assert_array_equal(update, -0.25 if decays else 0.0, err_msg=name)


def test_the_loss_is_float32_for_bfloat16_logits():
    logits = jnp.array([[20.0, 20.0625]], jnp.bfloat16)
    loss = cross_entropy(logits, jnp.array([0]))
    assert loss.dtype == jnp.float32
    exact = np.log1p(np.exp(np.float64(logits[0, 1]) - np.float64(logits[0, 0])))
    np.testing.assert_allclose(loss, exact, rtol=1e-6)


def make_step(
    name: str | ResNetSpec,
    dataset: Dataset,
    *,
    axis_name: str | None = parallel.AXIS,
    group_images: int | None = None,
    frozen_stages: int | None = None,
    ema_decay: float | None = None,
    skips_nonfinite: bool = False,
    is_augmented: bool = True,
    streamed: bool = False,
    **options: Any,
) -> tuple[Any, TrainState, Any, Network]:
    """A step of SGD at 0.1, and a state that is random in every leaf."""
    make: Any = flax_resnet.create if isinstance(name, str) else flax_resnet.from_spec
    model = randomise(make(name, 10, rngs=nnx.Rngs(0), **options))
    network = Network(
        model, axis_name=axis_name, group_images=group_images, frozen_stages=frozen_stages
    )
    optimizer = make_optimizer(Config(), optax.constant_schedule(0.1))
    trained = {name: network.params[name] for name in network.trained}
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.uint32(5),
        skipped=jnp.zeros((), jnp.int32),
        params=network.params,
        statistics=network.statistics,
        optimizer=optimizer.init(trained),
        ema=None if ema_decay is None else {**network.params, **network.statistics},
    )
    config = Config() if is_augmented else Config(crop_padding=0, flip=False)
    augment = Augment(config, dataset)
    step = make_train_step(
        network,
        optimizer,
        augment,
        axis_name=axis_name,
        ema_decay=ema_decay,
        skips_nonfinite=skips_nonfinite,
        streamed=streamed,
    )
    return step, state, augment, network


def randomise(model: Any) -> Any:
    generator = np.random.default_rng(3)
    for name, variable in named_variables(model).items():
        value = variable.get_value()
        if not jnp.issubdtype(value.dtype, jnp.floating) or name.endswith("kernel"):
            continue
        positive = name.endswith(("scale", "var"))
        noise = (
            generator.uniform(0.5, 1.5, value.shape)
            if positive
            else generator.normal(size=value.shape) / 4
        )
        variable.set_value(jnp.asarray(noise, value.dtype))
    return model


@pytest.mark.parametrize("parts", [1, 2])
def test_a_streamed_batch_is_trained_on_like_one_that_is_picked(parts):
    """And nothing is picked of it: a TPU moves each image for that, 3.4 GB in ResNet50's step."""
    dataset = random_dataset()
    options: Any = {"axis_name": None, "ema_decay": 0.9}
    step, state, _, _ = make_step(SMALL, dataset, **options)
    data, indices = on_device(dataset.train), batch_indices(0, 3, 32, 64).reshape(parts, -1)
    streaming, _, _, _ = make_step(SMALL, dataset, streamed=True, **options)
    batch = Images(*(a[indices.reshape(-1)] for a in data))
    local = np.arange(32, dtype=np.int32).reshape(parts, -1)
    picks = jax.jit(step).lower(state, data, indices)
    takes = jax.jit(streaming).lower(state, batch, local)
    assert re.search("gather.*ui8", picks.as_text())
    assert not re.search("gather.*ui8", takes.as_text())
    results = takes.compile()(state, batch, local), picks.compile()(state, data, indices)
    jax.tree.map(np.testing.assert_array_equal, *results)


@pytest.mark.parametrize("parts", [1, 2])
def test_eight_devices_train_as_one(parts):
    assert jax.local_device_count() == 8
    dataset = random_dataset()
    options: Any = {"param_dtype": jnp.float64, "ema_decay": 0.9}
    step, state, _, _ = make_step(SMALL, dataset, **options)
    alone, _, _, _ = make_step(SMALL, dataset, axis_name=None, **options)
    data, spread = on_device(dataset.train), Spread(DEVICES)
    eight, one = spread.train(step), jax.jit(alone)
    many, single = spread.place_state(parallel.to_host(state)), state
    many_data = spread.place_data(data)
    for number in range(3):
        indices = batch_indices(0, number, 32, 64).reshape(parts, -1)
        many, many_metrics = eight(many, many_data, spread.place_batch(spread.split(indices)))
        single, metrics = one(single, data, indices)
        assert relative_error(many_metrics.loss, metrics.loss) <= 1e-12
    assert int(many.step) == 3
    for arrays, others in (
        (many.params, single.params),
        (many.statistics, single.statistics),
        (many.ema, single.ema),
    ):
        assert arrays is not None
        assert others is not None
        for name, array in arrays.items():
            assert relative_error(array, others[name]) <= 1e-12, name


def test_jit_and_pmap_are_the_same_step_to_the_bit():
    dataset = random_dataset()
    step, state, _, _ = make_step(SMALL, dataset, ema_decay=0.9)
    host = parallel.to_host(state)
    indices = batch_indices(0, 0, 32, 64).reshape(2, -1)
    moved = []
    for spread in (Spread(DEVICES, "pmap"), Spread(DEVICES, "jit")):
        data = spread.place_data(on_device(dataset.train))
        batch = spread.place_batch(spread.split(indices))
        moved.append(parallel.to_host(spread.train(step)(spread.place_state(host), data, batch)))
    jax.tree.map(np.testing.assert_array_equal, *moved)


def test_a_batch_in_parts_moves_by_the_mean_of_what_each_part_alone_would():
    dataset = random_dataset()
    options: Any = {"param_dtype": jnp.float64, "axis_name": None, "is_augmented": False}
    step, state, _, _ = make_step(SMALL, dataset, **options)
    step, data = jax.jit(step), on_device(dataset.train)
    indices = batch_indices(0, 0, 32, 64).reshape(2, 16)
    whole, metrics = step(state, data, indices)
    halves = [step(state, data, half[None]) for half in indices]
    assert relative_error(metrics.loss, np.mean([m.loss for _, m in halves])) < 1e-12
    for part in ("params", "statistics"):
        for name, array in getattr(whole, part).items():
            first, second = (getattr(half, part)[name] for half, _ in halves)
            if name.endswith("num_batches_tracked"):
                assert int(array) == int(first) == int(state.statistics[name]) + 1
            else:
                assert relative_error(array, (first + second) / 2) < 1e-12, name


def test_frozen_stages_stay_bit_for_bit_and_normalise_with_what_they_have():
    dataset = random_dataset()
    step, state, _, network = make_step(SMALL, dataset, axis_name=None, frozen_stages=1)
    moved, _ = jax.jit(step)(state, on_device(dataset.train), batch_indices(0, 0, 32, 64)[None])
    before = {**state.params, **state.statistics}
    for name, array in {**moved.params, **moved.statistics}.items():
        is_frozen = name.startswith(("stem.", "stages.0."))
        assert np.array_equal(array, before[name]) == is_frozen, name
    buffers = named_state(moved.optimizer)
    assert {n.removeprefix("momentum.") for n in buffers} - {"schedule_step"} == set(
        network.trained
    )


def test_a_step_that_is_not_finite_moves_only_its_counters():
    dataset = random_dataset()
    step, state, _, _ = make_step(
        SMALL, dataset, axis_name=None, skips_nonfinite=True, ema_decay=0.5
    )
    step, data, indices = jax.jit(step), on_device(dataset.train), batch_indices(0, 0, 32, 64)[None]
    poisoned = {**state.params, "head.bias": state.params["head.bias"].at[0].set(jnp.nan)}
    moved, metrics = step(state._replace(params=poisoned), data, indices)
    assert (int(moved.step), int(moved.skipped), int(metrics.skipped)) == (1, 1, 1)
    assert int(named_state(moved.optimizer)["schedule_step"]) == 1
    for name, array in {**moved.params, **moved.statistics}.items():
        np.testing.assert_array_equal(array, {**poisoned, **state.statistics}[name])
    good, metrics = step(state, data, indices)
    assert int(metrics.skipped) == 0
    assert not np.array_equal(good.params["head.bias"], state.params["head.bias"])


def test_an_average_weighs_the_old_one_by_its_decay_and_takes_counters_as_they_are():
    old = {"conv.kernel": jnp.array([1.0, -2.0]), "bn.num_batches_tracked": jnp.array(3)}
    new = {"conv.kernel": jnp.array([5.0, 2.0]), "bn.num_batches_tracked": jnp.array(4)}
    moved = average(old, new, 0.75)
    np.testing.assert_array_equal(moved["conv.kernel"], [2.0, -1.0])
    assert int(moved["bn.num_batches_tracked"]) == 4
    assert moved["bn.num_batches_tracked"].dtype == new["bn.num_batches_tracked"].dtype
    zero = jnp.zeros((), jnp.int32)
    statistics = {"bn.num_batches_tracked": jnp.array(9)}
    params = {"conv.kernel": jnp.zeros(2)}
    state = TrainState(zero, jnp.uint32(0), zero, params, statistics, None, moved)
    assert averaged(state).params["conv.kernel"] is moved["conv.kernel"]
    assert int(averaged(state).statistics["bn.num_batches_tracked"]) == 4
    without = state._replace(ema=None)
    assert averaged(without) is without


def test_no_two_draws_of_a_run_nor_of_two_runs_have_the_same_key():
    found = [draw_keys(jnp.uint32(seed), step, jnp.arange(4)) for seed in (1, 2) for step in (0, 1)]
    data = [jax.random.key_data(array).reshape(-1, 2).tolist() for keys in found for array in keys]
    keys = [tuple(key) for part in data for key in part]
    assert len(set(keys)) == len(keys) == 2 * 2 * (4 + 1 + 1)


def test_float64_draws_the_same_crops_and_mirrors():
    dataset = random_dataset(size=6)
    images, places = jnp.asarray(dataset.train.images), jnp.arange(64, dtype=jnp.int32)
    augmented = {}
    for precision in ("f32", "f64"):
        config = dataclasses.replace(Config(), crop_padding=2, precision=precision)
        with jax.enable_x64(precision == "f64"):
            keys = draw_keys(jnp.uint32(2**32 - 1), 7, places).images
            augmented[precision] = np.asarray(Augment(config, dataset)(images, keys))
    assert augmented["f64"].dtype == np.float64
    assert augmented["f32"].dtype == np.float32
    assert relative_error(augmented["f32"], augmented["f64"]) < 1e-6


def test_evaluation_counts_every_image_once():
    dataset = random_dataset(count=50)
    _, state, augment, network = make_step("ResNet20", dataset)
    network = Network(flax_resnet.create("ResNet20", 10, rngs=nnx.Rngs(0)))
    logits = network.evaluate(
        state.params, state.statistics, augment.normalise(jnp.asarray(dataset.test.images))
    )
    expected = int(jnp.sum(jnp.argmax(logits, -1) != dataset.test.labels))
    step = Spread(DEVICES).evaluate(make_eval_step(network, augment, axis_name=parallel.AXIS))
    padded = np.full(64, -1, np.int32)
    padded[:50] = np.arange(50)
    sums = step(state.params, state.statistics, on_device(dataset.test), padded.reshape(8, 8))
    assert (int(sums.errors), int(sums.images)) == (expected, 50)
    loss = float(jnp.sum(cross_entropy(logits, jnp.asarray(dataset.test.labels))))
    assert float(sums.loss) == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mixup": 0.2, "global_batch_size": 8}, "blend images in pairs"),  # one on each device
        ({"model": "ResNet18", "global_batch_size": 1}, "shrinks these images to one pixel"),
    ],
)
def test_what_only_training_needs_does_not_keep_a_network_from_being_tested(fields, said):
    config = Config(model=SMALL, warmup_steps=0)
    config = dataclasses.replace(config, init_from=Path("w.pth"), **fields)
    dataset = random_dataset(count=8)
    with pytest.raises(UserError, match=said):
        Trainer(config, dataset)
    Trainer(dataclasses.replace(config, eval_only=True), dataset)


def test_dropout_has_a_key_of_its_own_on_every_device_in_every_part_and_step(monkeypatch):
    dataset, spread = random_dataset(), Spread(DEVICES)
    step, state, _, network = make_step("WideResNet16-1", dataset)
    keys = list[tuple[int, ...]]()

    def spied(params: Any, statistics: Any, images: Any, key: Any) -> Any:
        jax.debug.callback(lambda data: keys.append(tuple(data.tolist())), jax.random.key_data(key))
        # not the network: a program with a callback is compiled anew each time
        return Outputs(jnp.zeros((len(images), 10)) + params["head.bias"], statistics)

    monkeypatch.setattr(network, "train", spied)
    many, data = spread.place_state(parallel.to_host(state)), on_device(dataset.train)
    many_data, eight = spread.place_data(data), spread.train(step)
    for number in range(2):
        indices = batch_indices(0, number, 32, 64).reshape(2, -1)
        many, _ = eight(many, many_data, spread.place_batch(spread.split(indices)))
    jax.effects_barrier()
    assert len(set(keys)) == len(keys) == 8 * 2 * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "scan_blocks"), [("ResNet50", 224, False), ("ResNet1202", 32, True)]
)
def test_the_bfloat16_step_lowers_for_tpu(name, size, scan_blocks):
    dataset = random_dataset(count=2, size=size)
    step, state, _, _ = make_step(name, dataset, dtype=jnp.bfloat16, scan_blocks=scan_blocks)
    data = jax.eval_shape(
        lambda: Images(jnp.zeros((1_000, size, size, 3), jnp.uint8), jnp.zeros(1_000, jnp.int32))
    )
    abstract_state = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), state)
    indices = jax.ShapeDtypeStruct((8, 1, 16), jnp.int32)
    mapped = jax.jit(Spread(DEVICES).train(step))
    exported = jax.export.export(mapped, platforms=["tpu"])(abstract_state, data, indices)
    module = exported.mlir_module()
    assert exported.platforms == ("tpu",)
    assert exported.nr_devices == 8
    assert "stablehlo.all_reduce" in module
    convolutions = [line for line in module.splitlines() if "stablehlo.convolution" in line]
    assert convolutions
    assert all("bf16" in line for line in convolutions)
    assert ("stablehlo.while" in module) or not scan_blocks
    if scan_blocks:  # three stages of 199 equal blocks, forward and backward
        assert len(convolutions) < 60


def test_no_epoch_of_any_seed_has_the_order_of_another():
    orders = {
        tuple(batch_indices(seed, epoch, 50, 50).tolist())
        for seed in range(5)
        for epoch in range(5)
    }
    assert len(orders) == 25
    assert batch_indices(111, 0, 8, 50).tolist() == FIRST_BATCH_OF_111


@pytest.mark.parametrize(
    ("every", "expected"), [(1, [4, 7, 10, 13, 16, 19, 20]), (3, [10, 19, 20])]
)
def test_tests_fall_where_epochs_end_and_at_the_end_of_the_run(every, expected):
    """100 images in batches of 32: the epochs end within steps 4, 7, 10, ..."""
    config = Config(model=SMALL, global_batch_size=32, max_steps=20, eval_every_epochs=every)
    trainer = Trainer(config, random_dataset(100))
    assert [step for step in range(1, 21) if trainer.ends_period(step)] == expected


def test_a_network_says_how_many_images_its_variances_were_taken_over():
    config = Config(model=SMALL, global_batch_size=32, accumulate_steps=2)
    assert describe(config, random_dataset()).statistics_batch_size == 16
