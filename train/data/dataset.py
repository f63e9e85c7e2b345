"""A data set, in memory or streamed, and the random order of its images."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from resnet_spec import Preprocessing
from resnet_spec.preprocessing import Interpolation
from train.config import Config


@dataclass(frozen=True)
class Split:
    """Images (n, h, w, c) uint8, labels (n,) int32."""

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
        mean, std: of each channel's values in 0 to 1, over the training set.
        crop_fraction: share of a test image's shorter side that the network sees.
        interpolation: how a test image is resized.
        whole_test_size: number of images in the complete test set.
        class_names: in the order of the labels, None if the data set has no names.
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
    interpolation: Interpolation = "bilinear"

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
        """How every test image is prepared."""
        return Preprocessing(
            self.mean,
            self.std,
            self.image_shape[0],
            class_names=self.class_names,
            interpolation=self.interpolation,
            crop_fraction=self.crop_fraction,
        )

    def missing(self) -> str:
        """A remark if the test set is incomplete, else an empty string."""
        if self.whole_test_size in (None, len(self.test)):
            return ""
        return (
            f" (a part: the whole test set has {self.whole_test_size}, errors are not comparable)"
        )


def image_dtype(config: Config) -> Any:
    """Dtype of normalised images, parameters and statistics: float64 for f64, else float32."""
    return np.float64 if config.precision == "f64" else np.float32


def normalise(images: np.ndarray, dataset: Dataset, dtype: Any = np.float32) -> np.ndarray:
    """uint8 (n, h, w, c) -> floating-point numbers, as the network sees them."""
    mean, std = np.array(dataset.mean, dtype), np.array(dataset.std, dtype)
    return (images.astype(dtype) / dtype(255) - mean) / std


def batch_indices(seed: int, step: int, batch_size: int, num_images: int) -> np.ndarray:
    """The images of one step, (batch_size,) int32: a function of its arguments alone.

    All epochs form one sequence, each in a random order of its own, which is cut into equal
    batches: no image is dropped, and a batch may cross the end of an epoch.
    """
    epochs, places = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size), num_images)
    return np.concatenate(
        [_permutation(seed, e, num_images)[places[epochs == e]] for e in np.unique(epochs).tolist()]
    )


@functools.lru_cache(maxsize=64)  # all steps of an epoch, of several seeds, use one permutation
def _permutation(seed: int, epoch: int, num_images: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_images).astype(np.int32)
