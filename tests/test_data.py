"""The data sets: digits, and CIFAR-10 where its files are."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from train.config.recipes import RECIPES
from train.data.dataset import normalise
from train.data.load import load_dataset
from train.errors import UserError

CIFAR10 = Path(os.environ.get("TFDS_DATA_DIR", "nowhere")) / "cifar10"
CIFAR100 = CIFAR10.parent / "cifar100"
needs_cifar10 = pytest.mark.skipif(not CIFAR10.is_dir(), reason="TFDS_DATA_DIR holds no cifar10")
needs_cifar100 = pytest.mark.skipif(not CIFAR100.is_dir(), reason="TFDS_DATA_DIR holds no cifar100")


def link_a_part(name: str, data_dir: Path) -> dict[str, int]:
    """Makes a tensorflow-datasets folder of links to the first file of each split.

    Returns how many images each split has there.
    """
    (version,) = (CIFAR10.parent / name).iterdir()
    folder = data_dir / name / version.name
    folder.mkdir(parents=True)
    info = json.loads((version / "dataset_info.json").read_text())
    for split in info["splits"]:
        whole = len(split["shardLengths"])
        split["shardLengths"] = split["shardLengths"][:1]
        file = f"{name}-{split['name']}.array_record-00000-of-"
        (folder / f"{file}00001").symlink_to(version / f"{file}{whole:05d}")
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for path in (version / "features.json", *version.glob("*.labels.txt")):
        (folder / path.name).symlink_to(path)
    return {split["name"]: int(split["shardLengths"][0]) for split in info["splits"]}


def test_digits_are_normalised_and_split_without_overlap():
    dataset = load_dataset(RECIPES["digits"].config)
    assert len(dataset.train) == 1437
    assert len(dataset.test) == 360
    assert dataset.train.images.dtype == np.uint8
    assert dataset.train.images.shape[1:] == (8, 8, 1)
    assert dataset.train.images.max() == 255
    normal = normalise(dataset.train.images, dataset)
    assert abs(normal.mean()) < 1e-3
    assert abs(normal.std() - 1) < 1e-3
    assert set(dataset.test.labels) == set(range(10))
    train = {image.tobytes() for image in dataset.train.images}
    assert not any(image.tobytes() in train for image in dataset.test.images)


def test_a_held_out_part_is_the_end_of_the_training_set():
    config = RECIPES["digits"].config
    whole = load_dataset(config)
    dataset = load_dataset(dataclasses.replace(config, validation_size=37))
    assert dataset.test_name == "train[1400:]"
    np.testing.assert_array_equal(dataset.train.images, whole.train.images[:1400])
    np.testing.assert_array_equal(dataset.test.labels, whole.train.labels[1400:])
    with pytest.raises(UserError, match="1437"):
        load_dataset(dataclasses.replace(config, validation_size=1437))


@needs_cifar10
def test_the_images_of_cifar10_are_read_from_its_files(tmp_path):
    counts = link_a_part("cifar10", tmp_path)
    dataset = load_dataset(dataclasses.replace(RECIPES["cifar10"].config, data_dir=tmp_path))
    assert (len(dataset.train), len(dataset.test)) == (counts["train"], counts["test"])
    for split in (dataset.train, dataset.test):
        assert split.images.shape == (len(split), 32, 32, 3)
        assert split.images.dtype == np.uint8
        assert set(split.labels) == set(range(10))


@pytest.mark.slow
@needs_cifar10
def test_cifar10_is_read_whole_and_in_order():
    dataset = load_dataset(RECIPES["cifar10-45k"].config)
    assert len(dataset.train) == 45_000
    assert len(dataset.test) == 5_000
    assert dataset.train.images.shape[1:] == (32, 32, 3)
    counts = np.bincount(np.concatenate([dataset.train.labels, dataset.test.labels]))
    np.testing.assert_array_equal(counts, [5_000] * 10)
    images = np.concatenate([dataset.train.images, dataset.test.images])
    for channel in range(3):  # by how often each value is there: as floats they are 1.2 GB
        times = np.bincount(images[..., channel].ravel(), minlength=256)
        values = np.arange(256) / 255
        mean = np.average(values, weights=times)
        std = np.average((values - mean) ** 2, weights=times) ** 0.5
        np.testing.assert_allclose(mean, dataset.mean[channel], atol=1e-4)
        np.testing.assert_allclose(std, dataset.std[channel], atol=1e-4)


@needs_cifar100
def test_the_test_set_of_cifar100_is_whole_and_its_names_are_the_fine_ones():
    dataset = load_dataset(RECIPES["cifar100"].config)
    assert (len(dataset.test), dataset.num_classes, dataset.missing()) == (10_000, 100, "")
    np.testing.assert_array_equal(np.bincount(dataset.test.labels), [100] * 100)
    assert dataset.class_names is not None
    assert dataset.class_names[:2] == ("apple", "aquarium_fish")
    images = normalise(dataset.test.images, dataset)
    assert np.abs(images.mean((0, 1, 2))).max() < 0.02  # of the training images
    assert np.abs(images.std((0, 1, 2)) - 1).max() < 0.02


def test_a_data_set_that_is_not_there_says_where_it_was_looked_for(tmp_path):
    config = dataclasses.replace(RECIPES["cifar100"].config, data_dir=tmp_path)
    with pytest.raises(UserError, match=str(tmp_path)) as caught:
        load_dataset(config)
    assert "--data-dir" in str(caught.value)
    assert "\n" not in str(caught.value)
