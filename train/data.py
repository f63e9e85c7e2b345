"""Whole data sets as uint8 arrays: scikit-learn's digits, CIFAR-10 and CIFAR-100."""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from resnet_spec import PREPROCESSINGS, Preprocessing
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
    """Images to train and to test on.

    Attributes:
        mean, std: of a channel's values in 0 to 1, over the training set.
        whole_test_size: images that `test` has where the data set is complete.
        class_names: in the order of the labels, where the data set says them.
    """

    train: Split
    test: Split
    test_name: str
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    whole_test_size: int | None = None
    class_names: tuple[str, ...] | None = None

    @property
    def preprocessing(self) -> Preprocessing:
        """What `normalise` and the trainer do to every image: whole, of one size."""
        size = self.train.images.shape[1]
        return Preprocessing(self.mean, self.std, size, class_names=self.class_names)

    def missing(self) -> str:
        """A remark if the test set is only a part of the published one, else nothing."""
        if self.test_name != "test" or self.whole_test_size in (None, len(self.test)):
            return ""
        return (
            f" (a part: the whole test set has {self.whole_test_size}, errors are not comparable)"
        )


def load_dataset(config: Config) -> Dataset:
    """The data set of a configuration.

    Raises:
        UserError: it is not where it was looked for, or cannot hold out so many images.
    """
    dataset = _LOADERS[config.data](config)
    if config.validation_size is not None:
        dataset = _hold_out(dataset, config.validation_size)
    if config.global_batch_size > len(dataset.train):
        raise UserError(
            f"--global-batch-size {config.global_batch_size} is more than the "
            f"{len(dataset.train)} training images"
        )
    return dataset


def image_dtype(config: Config) -> Any:
    """Of normalised images, and of parameters and statistics: float32 but for f64."""
    return np.float64 if config.precision == "f64" else np.float32


def normalise(images: np.ndarray, dataset: Dataset, dtype: Any = np.float32) -> np.ndarray:
    """uint8 (n, h, w, c) -> floating-point numbers, as the network sees them."""
    mean, std = np.array(dataset.mean, dtype), np.array(dataset.std, dtype)
    return (images.astype(dtype) / dtype(255) - mean) / std


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
    train, test = Split(images[~is_test], labels[~is_test]), Split(images[is_test], labels[is_test])
    names = tuple(map(str, range(10)))
    return Dataset(train, test, "test", 10, (0.3053,), (0.3762,), class_names=names)


def _cifar(config: Config) -> Dataset:
    (train, names), (test, _) = _read_tfds(config, "train"), _read_tfds(config, "test")
    known = PREPROCESSINGS[config.data]
    numbers = (len(names), known.mean, known.std)
    return Dataset(train, test, "test", *numbers, whole_test_size=10_000, class_names=names)


_LOADERS: dict[str, Callable[[Config], Dataset]] = {
    "digits": _digits,
    "cifar10": _cifar,
    "cifar100": _cifar,
}


def _hold_out(dataset: Dataset, size: int) -> Dataset:
    """The last `size` training images as the test set."""
    count = len(dataset.train)
    if size >= count:
        raise UserError(f"--validation-size {size} leaves none of the {count} training images")
    images, labels = dataset.train.images, dataset.train.labels
    return dataclasses.replace(
        dataset,
        train=Split(images[:-size], labels[:-size]),
        test=Split(images[-size:], labels[-size:]),
        test_name=f"train[{count - size}:]",
    )


def _read_tfds(config: Config, split: str) -> tuple[Split, tuple[str, ...]]:
    """A whole split of a prepared data set in its original order, and the names of its classes.

    TensorFlow is not needed.
    """
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
        labels = np.array([record["label"] for record in records], np.int32)
        names = tuple(source.dataset_info.features["label"].names)
    except Exception as error:  # tfds raises a dozen kinds for what is not there
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{config.data} ({split}) cannot be read from {place}: prepare it there with "
            "tensorflow-datasets in the array_record format, or name its folder by --data-dir or "
            f"TFDS_DATA_DIR ({type(error).__name__}: {reason})"
        ) from error
    return Split(images, labels), names
