"""Whole data sets as uint8 arrays: scikit-learn's digits, CIFAR-10 and CIFAR-100."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from train.config import Config
from train.errors import UserError


@dataclass(frozen=True)
class Split:
    """images (n, h, w, c) uint8, labels (n,) int32."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Dataset:
    """Images to train and to test on; mean and standard deviation of a channel, in 0 to 1."""

    train: Split
    test: Split
    test_name: str
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_dataset(config: Config) -> Dataset:
    """The data set of a configuration.

    Raises:
        UserError: it is not where it was looked for, or cannot hold out so many images.
    """
    return _LOADERS[config.data](config)


def normalise(images: np.ndarray, dataset: Dataset) -> np.ndarray:
    """uint8 (n, h, w, c) -> float32, as the network sees them."""
    mean, std = np.array(dataset.mean, np.float32), np.array(dataset.std, np.float32)
    return (images.astype(np.float32) / np.float32(255) - mean) / std


def batch_indices(seed: int, step: int, batch_size: int, num_images: int) -> np.ndarray:
    """The images of one step, (batch_size,) int32: a function of its arguments alone.

    All epochs form one stream, each a permutation of its own, cut into equal batches: no image is
    dropped, and a batch may reach over the end of an epoch.
    """
    start = step * batch_size
    epochs = range(start // num_images, (start + batch_size - 1) // num_images + 1)
    stream = np.concatenate([_permutation(seed, epoch, num_images) for epoch in epochs])
    offset = start - epochs.start * num_images
    return stream[offset : offset + batch_size]


_permutations: dict[tuple[int, int, int], np.ndarray] = {}


def _permutation(seed: int, epoch: int, num_images: int) -> np.ndarray:
    key = (seed, epoch, num_images)
    if key not in _permutations:
        while len(_permutations) > 1:  # an epoch's order serves all of its steps
            _permutations.pop(next(iter(_permutations)))
        order = np.random.default_rng((seed, epoch)).permutation(num_images)
        _permutations[key] = order.astype(np.int32)
    return _permutations[key]


def _digits(config: Config) -> Dataset:
    from sklearn.datasets import load_digits

    pixels, target = load_digits(return_X_y=True)  # (n, 64) in 0 to 16
    images = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = target.astype(np.int32)
    is_test = np.arange(len(images)) % 5 == 0
    return _hold_out(
        config,
        train=Split(images[~is_test], labels[~is_test]),
        test=Split(images[is_test], labels[is_test]),
        num_classes=10,
        mean=(0.3053,),
        std=(0.3762,),
    )


def _cifar10(config: Config) -> Dataset:
    return _hold_out(
        config,
        train=_read_tfds(config, "train", "label"),
        test=None if config.validation_size else _read_tfds(config, "test", "label"),
        num_classes=10,
        mean=(0.49140, 0.48216, 0.44653),
        std=(0.24703, 0.24349, 0.26159),
    )


def _cifar100(config: Config) -> Dataset:
    return _hold_out(
        config,
        train=_read_tfds(config, "train", "label"),
        test=None if config.validation_size else _read_tfds(config, "test", "label"),
        num_classes=100,
        mean=(0.50707, 0.48655, 0.44092),
        std=(0.26733, 0.25644, 0.27615),
    )


_LOADERS: dict[str, Callable[[Config], Dataset]] = {
    "digits": _digits,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
}


def _hold_out(
    config: Config,
    *,
    train: Split,
    test: Split | None,
    num_classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Dataset:
    size, test_name = config.validation_size, "test"
    if size is not None:
        if size >= len(train):
            raise UserError(
                f"--validation-size {size} leaves none of the {len(train)} training images"
            )
        test_name = f"train[{len(train) - size}:]"
        test = Split(train.images[-size:], train.labels[-size:])
        train = Split(train.images[:-size], train.labels[:-size])
    assert test is not None
    if config.global_batch_size > len(train):
        raise UserError(
            f"--global-batch-size {config.global_batch_size} is more than the {len(train)} "
            "training images"
        )
    return Dataset(train, test, test_name, num_classes, mean, std)


def _read_tfds(config: Config, split: str, label: str) -> Split:
    """A whole split of a prepared data set, in its original order, without TensorFlow."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow_datasets as tfds

    place = config.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    place = os.path.expanduser(place)
    try:
        source: Any = tfds.data_source(
            config.data, split=split, data_dir=place, download=False, try_gcs=False
        )
        records = source.__getitems__(range(len(source)))
        images = np.stack([record["image"] for record in records])
        labels = np.array([record[label] for record in records], np.int32)
    except Exception as error:  # tfds raises a dozen kinds for what is not there
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{config.data} ({split}) cannot be read from {place}: prepare it there with "
            "tensorflow-datasets in the array_record format, or name its folder by --data-dir or "
            f"TFDS_DATA_DIR ({type(error).__name__}: {reason})"
        ) from error
    return Split(images, labels)
