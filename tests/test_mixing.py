"""Mixup, CutMix and label smoothing: shares, areas, draws, and torch's own loss."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.torch_or_none import torch
from tests.twins import relative_error
from train.config import Config
from train.data.dataset import Dataset, Split
from train.errors import UserError
from train.step import parallel
from train.step.augment import Augment, Mixing
from train.step.train_step import cross_entropy

CLASSES = 5
BOTH: dict[str, Any] = {"mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1}


def make(**fields: Any) -> Mixing:
    return Mixing(dataclasses.replace(Config(), **fields), CLASSES)


def mix(count: int = 16, seed: int = 0, size: tuple[int, int] = (6, 8), **fields: Any) -> Any:
    """Images that are all 0 or all 1 in turn, so that a pixel says whose it is; their labels."""
    images = np.zeros((count, *size, 2), np.float32)
    images[1::2] = 1
    labels = np.arange(count, dtype=np.int32) % 2
    keys = jax.random.split(jax.random.key(seed), count)
    mixed = jax.jit(make(**fields))(images, labels, keys, jax.random.key(seed + 100))
    return mixed, images, labels


@pytest.mark.parametrize(
    "fields", [{"mixup": 0.2}, {"cutmix": 1.0}, {"label_smoothing": 0.3}, BOTH], ids=str
)
def test_the_labels_of_an_image_sum_to_one(fields):
    for seed in range(4):
        (_, targets), *_ = mix(seed=seed, **fields)
        assert targets.dtype == jnp.float32
        np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
        assert (np.asarray(targets) >= 0).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fields", [{"mixup": 0.2}, {"cutmix": 1.0}], ids=["mixup", "cutmix"])
def test_pixels_and_labels_have_the_same_share_of_the_partner(fields, seed):
    (mixed, targets), *_ = mix(count=64, seed=seed, **fields)
    ones = np.asarray(mixed, np.float64).mean((1, 2, 3))  # of the one whose class is 1
    np.testing.assert_allclose(targets[:, 1], ones, rtol=1e-6, atol=1e-7)
    own = np.where(np.arange(64) % 2, ones, 1 - ones)
    assert own.std() > 0.1  # each image has a share of its own
    values = np.unique(np.asarray(mixed))
    if "cutmix" in fields:
        assert set(values) <= {0, 1}
    else:
        flat = np.asarray(mixed).reshape(64, -1)
        np.testing.assert_array_equal(flat, np.repeat(flat[:, :1], flat.shape[1], 1))


def test_what_is_cut_is_a_box_within_the_image():
    (mixed, _), *_ = mix(count=400, size=(32, 32), cutmix=1.0)
    areas = []
    for number, image in enumerate(np.asarray(mixed)):
        foreign = image[..., 0] != number % 2
        rows, columns = np.where(foreign.any(1))[0], np.where(foreign.any(0))[0]
        areas.append(foreign.mean())
        assert foreign.sum() == len(rows) * len(columns)
        assert list(rows) == [*range(rows[0], rows[-1] + 1)] if len(rows) else not foreign.any()
    assert min(areas) == 0
    assert max(areas) > 0.7


def test_an_image_is_blended_with_its_neighbour_and_no_other():
    images = jnp.zeros((6, 4, 4, 1)).at[2].set(1)
    keys = jax.random.split(jax.random.key(0), 6)
    mixed, targets = make(mixup=1.0)(images, jnp.array([0, 0, 1, 0, 0, 0]), keys, keys[0])
    assert [bool(image.any()) for image in mixed] == [False, False, True, True, False, False]
    assert [bool(target[1] > 0) for target in targets] == [False, False, True, True, False, False]


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_lambda_has_the_moments_of_the_beta_distribution(alpha):
    (_, targets), _, labels = mix(count=20_000, size=(1, 1), mixup=alpha)
    share = np.take_along_axis(np.asarray(targets, np.float64), np.asarray(labels)[:, None], 1)
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(share.mean() - 0.5) < 4 * (variance / 20_000) ** 0.5
    assert abs(share.var() / variance - 1) < 0.03


def test_half_of_the_batches_draw_the_one_and_half_the_other():
    images = jnp.zeros((2, 6, 8, 1)).at[1].set(1)
    keys, labels = jax.random.split(jax.random.key(0), 2), jnp.arange(2)
    mixing = make(**BOTH)
    draw = jax.vmap(lambda batch_key: mixing(images, labels, keys, batch_key)[0])
    mixed = np.asarray(jax.jit(draw)(jax.random.split(jax.random.key(1), 1000)))
    is_cut = np.isin(mixed, (0, 1)).all((1, 2, 3, 4))
    assert abs(is_cut.mean() - 0.5) < 0.05


def test_a_box_may_have_its_centre_in_any_row_and_column():
    """Of sides 0 to 4 in 4 pixels, 3/4 are 2 to 3: two pixels, the centre's and the one before."""
    (mixed, _), images, _ = mix(count=8000, size=(4, 4), cutmix=1.0)
    foreign = (np.asarray(mixed) != images)[..., 0].mean(0)
    along = np.array([2, 2, 2, 1]) / 4
    np.testing.assert_allclose(foreign, 3 / 4 * np.outer(along, along), atol=0.02)


@pytest.mark.torch
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_smoothing_is_torchs(smoothing):
    generator = np.random.default_rng(0)
    logits, labels = generator.standard_normal((7, CLASSES)), generator.integers(0, CLASSES, 7)
    mixing = make(label_smoothing=smoothing)
    images = jnp.zeros((7, 2, 2, 1), jnp.float64)  # an odd number: nothing is blended
    keys = jax.random.split(jax.random.key(0), 7)
    same, targets = mixing(images, jnp.asarray(labels), keys, keys[0])
    assert same is images
    loss = torch.nn.CrossEntropyLoss(label_smoothing=smoothing, reduction="none")
    expected = loss(torch.from_numpy(logits), torch.from_numpy(labels)).numpy()
    assert relative_error(cross_entropy(jnp.asarray(logits), targets), expected) < 1e-15


@pytest.mark.torch
def test_the_loss_of_mixed_labels_is_torchs_and_float32_for_bfloat16_logits():
    (_, targets), *_ = mix(**BOTH)
    logits = np.random.default_rng(0).standard_normal((16, CLASSES)).astype(np.float32)
    loss = torch.nn.CrossEntropyLoss(reduction="none")
    expected = loss(torch.from_numpy(logits), torch.tensor(np.asarray(targets))).numpy()
    assert relative_error(cross_entropy(jnp.asarray(logits), targets), expected) < 1e-6
    half = cross_entropy(jnp.asarray(logits, jnp.bfloat16), targets)
    assert half.dtype == jnp.float32
    exact = cross_entropy(jnp.asarray(logits, jnp.bfloat16).astype(jnp.float32), targets)
    np.testing.assert_array_equal(half, exact)


def test_nothing_is_needed_where_nothing_is_on():
    assert not make().is_needed
    assert all(make(**{name: 0.1}).is_needed for name in ("mixup", "cutmix", "label_smoothing"))


def test_an_odd_share_is_refused_where_images_are_blended():
    make(label_smoothing=0.1).check_share(3)
    make(mixup=0.1).check_share(4)
    for fields in ({"mixup": 0.1}, {"cutmix": 1.0}):
        with pytest.raises(UserError, match="3 on each device is odd"):
            make(**fields).check_share(3)


def test_eight_devices_blend_as_one():
    images = jax.random.normal(jax.random.key(1), (16, 6, 6, 2), jnp.float32)
    labels = jnp.arange(16) % CLASSES
    keys = jax.random.split(jax.random.key(0), 16)
    for seed in range(3):
        key = jax.random.key(seed)
        mixing = make(**BOTH)
        one = jax.jit(mixing)(images, labels, keys, key)
        shares = jax.tree.map(lambda a: a.reshape(8, 2, *a.shape[1:]), (images, labels, keys))
        many = jax.pmap(mixing, parallel.AXIS, in_axes=(0, 0, 0, None))(*shares, key)
        for whole, parts in zip(one, many, strict=True):
            np.testing.assert_allclose(parts.reshape(whole.shape), whole, rtol=1e-6, atol=1e-7)


def test_float64_draws_the_same_and_computes_in_float64():
    generator = np.random.default_rng(0)
    images = generator.standard_normal((16, 6, 6, 2))
    results = {}
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype == np.float64):
            keys = jax.random.split(jax.random.key(0), 16)
            labels = jnp.arange(16, dtype=jnp.int32) % CLASSES
            for seed in range(4):
                mixed = make(**BOTH)(jnp.asarray(images, dtype), labels, keys, jax.random.key(seed))
                results[dtype, seed] = [np.asarray(array) for array in mixed]
    for seed in range(4):
        for single, double in zip(
            results[np.float32, seed], results[np.float64, seed], strict=True
        ):
            assert (single.dtype, double.dtype) == (np.float32, np.float64)
            assert relative_error(single, double) < 1e-6


def test_crops_and_shares_are_drawn_apart():
    """From one key; they would be tied to each other if they drew from the same bits."""
    split = Split(np.zeros((2, 6, 6, 1), np.uint8), np.zeros(2, np.int32))
    split.images[:, 3, 3] = 255
    dataset = Dataset(split, split, "test", CLASSES, (0.0,), (1.0,))
    augment = Augment(dataclasses.replace(Config(), crop_padding=2, flip=True), dataset)
    keys = jax.random.split(jax.random.key(0), 4000)
    pixels = jnp.asarray(np.repeat(split.images[:1], 4000, 0))
    columns = np.asarray(augment(pixels, keys)).sum((1, 3)).argmax(1)
    labels = jnp.arange(4000) % 2
    _, targets = make(mixup=1.0)(jnp.zeros((4000, 1, 1, 1)), labels, keys, keys[0])
    share = np.take_along_axis(np.asarray(targets), np.asarray(labels)[:, None], 1)[:, 0]
    for column in np.unique(columns):
        chosen = share[columns == column]
        assert abs(chosen.mean() - 0.5) < 4 * (1 / 12 / len(chosen)) ** 0.5
