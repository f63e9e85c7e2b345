"""Data sets: small ones whole as uint8 arrays, ImageNet and folders as streams of images."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from resnet_spec import PREPROCESSINGS, Preprocessing
from train.config import FOLDER, Config
from train.errors import UserError


@dataclass(frozen=True)
class Split:
    """images (n, h, w, c) uint8, labels (n,) int32."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(h, w, c)."""
        return self.images.shape[1:]

    def head(self, count: int) -> "Split":
        """The first `count` images."""
        return Split(self.images[:count], self.labels[:count])


@dataclass(frozen=True)
class Dataset:
    """Images to train and to test on, both whole in memory or both streamed.

    Attributes:
        train, test: each a Split, or each a `train.data.stream.Stream`.
        mean, std: of a channel's values in 0 to 1, over the training set.
        crop_fraction: share of a test image's shorter side that the network sees.
        whole_test_size: images that `test` has where the data set is complete.
        class_names: in the order of the labels, where the data set says them.
    """

    train: Any
    test: Any
    test_name: str
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    whole_test_size: int | None = None
    class_names: tuple[str, ...] | None = None
    crop_fraction: float = 1.0

    @property
    def is_streamed(self) -> bool:
        """Whether images are decoded, cropped and mirrored as they are needed."""
        return not isinstance(self.train, Split)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(h, w, c) of every image that the network sees."""
        return self.train.image_shape

    @property
    def preprocessing(self) -> Preprocessing:
        """What is done to every image of the test set."""
        return Preprocessing(
            self.mean,
            self.std,
            self.image_shape[0],
            class_names=self.class_names,
            crop_fraction=self.crop_fraction,
        )

    def missing(self) -> str:
        """A remark if the test set is only a part of the published one, else nothing."""
        if self.whole_test_size in (None, len(self.test)):
            return ""
        return (
            f" (a part: the whole test set has {self.whole_test_size}, errors are not comparable)"
        )


def load_dataset(config: Config) -> Dataset:
    """The data set of a configuration.

    Raises:
        UserError: it is not where it was looked for, or cannot hold out so many images.
    """
    dataset = _LOADERS.get(config.data, _streamed)(config)
    if config.global_batch_size > len(dataset.train) and not config.eval_only:
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
    epochs, places = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size), num_images)
    return np.concatenate(
        [_permutation(seed, e, num_images)[places[epochs == e]] for e in np.unique(epochs).tolist()]
    )


@functools.lru_cache(maxsize=64)  # an epoch's order serves all of its steps, of several seeds
def _permutation(seed: int, epoch: int, num_images: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_images).astype(np.int32)


def _digits(config: Config) -> Dataset:
    from sklearn.datasets import load_digits

    pixels, target = load_digits(return_X_y=True)  # (n, 64) in 0 to 16
    images = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = target.astype(np.int32)
    is_test = np.arange(len(images)) % 5 == 0
    train, test = Split(images[~is_test], labels[~is_test]), Split(images[is_test], labels[is_test])
    names = tuple(map(str, range(10)))
    dataset = Dataset(train, test, "test", 10, (0.3053,), (0.3762,), class_names=names)
    return _hold_out(config, dataset)


def _cifar(config: Config) -> Dataset:
    (train, names), (test, _) = _read_tfds(config, "train"), _read_tfds(config, "test")
    known = PREPROCESSINGS[config.data]
    numbers = (len(names), known.mean, known.std)
    dataset = Dataset(train, test, "test", *numbers, whole_test_size=10_000, class_names=names)
    return _hold_out(config, dataset)


def _hold_out(config: Config, dataset: Dataset) -> Dataset:
    """The last images of a training set in memory as the test set, where that is asked for."""
    size, train = config.validation_size, dataset.train
    if size is None or not isinstance(train, Split):
        return dataset
    begin = count_kept(config, len(train))
    return dataclasses.replace(
        dataset,
        train=Split(train.images[:begin], train.labels[:begin]),
        test=Split(train.images[begin:], train.labels[begin:]),
        test_name=f"train[{begin}:]",
        whole_test_size=None,
    )


def count_kept(config: Config, count: int) -> int:
    """Training images that are left when `validation_size` of them are held out."""
    size = config.validation_size or 0
    if size >= count:
        raise UserError(f"--validation-size {size} leaves none of the {count} training images")
    return count - size


def _streamed(config: Config) -> Dataset:
    # here, as grain takes two seconds to import
    from train.data.load import load_folder, load_imagenet

    return load_folder(config) if config.data.startswith(FOLDER) else load_imagenet(config)


_LOADERS: dict[str, Callable[[Config], Dataset]] = {
    "digits": _digits,
    "cifar10": _cifar,
    "cifar100": _cifar,
}


def _read_tfds(config: Config, split: str) -> tuple[Split, tuple[str, ...]]:
    """A whole split of a prepared data set in its original order, and the names of its classes."""
    from train.data.sources import explaining, open_tfds

    with explaining(config.data, split, config.data_dir):
        source = open_tfds(config.data, split, config.data_dir)
        records = source.__getitems__(range(len(source)))
        images = np.stack([record["image"] for record in records])
        labels = np.array([record["label"] for record in records], np.int32)
        return Split(images, labels), tuple(source.dataset_info.features["label"].names)
