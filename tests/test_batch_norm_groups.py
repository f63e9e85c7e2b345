"""BatchNorm over a part of the batch: the same step on any devices, and what a run is told."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_spec import ResNetSpec
from tests.test_run import train
from tests.test_step import make_step, on_device, random_dataset
from tests.twins import relative_error
from train.__main__ import parse
from train.config import Config
from train.config.recipes import RECIPES
from train.data.dataset import batch_indices
from train.errors import UserError
from train.run.trainer import Trainer, describe
from train.step import parallel
from train.step.batch_norm_groups import begun_with, group_images
from train.step.parallel import Spread

SMALL = "WideResNet16-1-0.0"
TINY = ResNetSpec("basic", (1, 1), (8, 16), stem_planes=8, small_images=True)


def test_equal_groups_are_an_equal_step_on_any_number_of_devices():
    """Of 8 images: four groups on one device, two on each of two, one on four, half of one on 8."""
    dataset = random_dataset()
    options: Any = {"param_dtype": jnp.float64, "group_images": 8, "ema_decay": 0.9}
    step, state, _, _ = make_step(TINY, dataset, **options)
    indices, moved = batch_indices(0, 0, 32, 64), []
    for devices in (1, 2, 4, 8):
        mapped = jax.pmap(
            step,
            parallel.AXIS,
            in_axes=(None, None, 0),
            out_axes=None,
            devices=jax.devices()[:devices],
        )
        new, metrics = mapped(state, on_device(dataset.train), indices.reshape(devices, 1, -1))
        moved.append(parallel.to_host((new.params, new.statistics, new.ema, metrics.loss)))
    spread = Spread(tuple(jax.devices()), "jit")
    placed = spread.place_batch(spread.split(indices.reshape(1, -1)))
    data = spread.place_data(on_device(dataset.train))
    new, metrics = spread.train(step)(spread.place_state(parallel.to_host(state)), data, placed)
    moved.append(parallel.to_host((new.params, new.statistics, new.ema, metrics.loss)))
    for others in moved[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_array_less(relative_error(a, b), 1e-12), moved[0], others
        )


def test_groups_of_a_batch_and_its_parts_are_the_same_step():
    dataset = random_dataset()
    options: Any = {"param_dtype": jnp.float64, "axis_name": None, "ema_decay": 0.9}
    indices = batch_indices(0, 0, 32, 64)
    moved = []
    for images, parts in ((16, 1), (None, 2)):
        step, state, _, _ = make_step(TINY, dataset, group_images=images, **options)
        new, _ = jax.jit(step)(state, on_device(dataset.train), indices.reshape(parts, -1))
        moved.append((new.params, new.statistics, new.ema))
    jax.tree.map(lambda a, b: np.testing.assert_array_less(relative_error(a, b), 1e-12), *moved)


@pytest.mark.parametrize(
    ("images", "devices", "groups", "recorded"),
    [
        ("batch", 8, None, "batch"),
        ("device", 8, 4, 4),
        ("device", 1, None, "batch"),
        (16, 8, 16, 16),
        (32, 8, None, 32),
        (64, 8, None, 64),  # a batch that has fewer is one group
    ],
)
def test_a_run_keeps_the_number_that_a_device_had(images, devices, groups, recorded):
    config = Config(global_batch_size=64, accumulate_steps=2, batch_norm_images=images)
    assert group_images(config, devices) == groups
    assert begun_with(config, devices).batch_norm_images == recorded
    assert group_images(begun_with(config, devices), 2 * devices) == groups


def test_groups_that_the_batch_or_the_devices_cannot_form_are_refused():
    for arguments, said in (
        (("--batch-norm-images", "48"), "48 does not divide the 128 images of a batch: 32 or "),
        (
            ("--batch-norm-images", "24", "--accumulate-steps", "2"),
            "24 does not divide the 64 images of each part of a batch: 16 or batch does",
        ),
        (("--batch-norm-images", "0"), "--batch-norm-images must be at least 1, not 0"),
    ):
        with pytest.raises(UserError, match=said):
            parse(["digits", *arguments])
    with pytest.raises(UserError, match="device: 12 images do not divide by the 8 devices"):
        begun_with(Config(global_batch_size=12, batch_norm_images="device"), 8)
    config = dataclasses.replace(Config(model=SMALL, global_batch_size=48), batch_norm_images=8)
    with pytest.raises(UserError, match="8: each device has 6 images, neither a multiple nor a"):
        Trainer(config.resolved(64), random_dataset())
    config = Config(model="ResNet18", global_batch_size=16, batch_norm_images=1)
    with pytest.raises(UserError, match="--batch-norm-images 1: ResNet18 shrinks these images to"):
        Trainer(config.resolved(64), random_dataset())


def test_an_export_says_over_how_many_images_its_variances_are():
    config = Config(model=SMALL, global_batch_size=32, batch_norm_images="device")
    assert describe(config, random_dataset()).statistics_batch_size == 4


def test_recipes_of_published_errors_normalise_as_was_published():
    """By the batch and the number of GPUs, or of TPU cores."""
    numbers = {
        name: recipe.config.batch_norm_images
        for name, recipe in RECIPES.items()
        if recipe.config.batch_norm_images != "batch"
    }
    assert numbers == {
        **{"imagenet-he2015": 256 // 8, "imagenet": 32, "imagenet-modern": 1024 // 8},
        "imagenet-lars": 32_768 // 512,
    }
    for name, number in numbers.items():
        assert f"BatchNorm over {number} images" in RECIPES[name].reason.replace("the ", "")


@pytest.mark.slow
def test_a_run_of_each_devices_groups_goes_on_on_more_devices(tmp_path):
    """Eight images each at first, then two devices that normalise eight together."""
    small = ("digits", "--model", SMALL, "--global-batch-size", "16", "--precision", "f64")
    # as the cosine of digits ends with the run
    steps = ("--schedule", "drops", "--checkpoint-every-steps", "2", "--max-steps")
    train(
        tmp_path, *small, "--batch-norm-images", "device", *steps, "2", "--run-dir", "a", devices=2
    )
    train(tmp_path, "--resume", "--run-dir", "a", "--max-steps", "4", devices=4)
    train(tmp_path, *small, "--batch-norm-images", "8", *steps, "4", "--run-dir", "b", devices=1)
    results = [json.loads((tmp_path / run / "result.json").read_text()) for run in ("a", "b")]
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-9)
    assert results[0]["parity"]["different_predictions"] == 0
    config = json.loads((tmp_path / "a" / "config.json").read_text())["config"]
    assert config["batch_norm_images"] == 8
