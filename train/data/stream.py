"""A split of images that threads decode a little before a step needs them."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np

from train.config.fields import DataFields
from train.data.dataset import Split, batch_indices
from train.data.decode import DamagedImageError
from train.data.sources import Source
from train.data.views import test_view, train_view
from train.errors import UserError

_PART = 16  # images that one thread decodes at a time: each task costs grain 0.1 ms
_BATCHES_AHEAD = 2
View = tuple[np.ndarray, int]  # an image as the network sees it, and its label


class DecodedBatch(NamedTuple):
    """images (n, size, size, 3) uint8, labels (n,) int32, counts (n,) bool.

    Where `counts` is False there are only zeros: for padding, or a test image that cannot be read.
    """

    images: np.ndarray
    labels: np.ndarray
    counts: np.ndarray


class Stream:
    """A split of encoded images.

    A batch depends on the arguments of the call alone: it is the same on one host or many, with
    any number of threads, and after a resume.

    Attributes:
        skipped: reason by name of each image that could not be read so far. Every thread adds to
            it; nothing is removed.
    """

    def __init__(self, source: Source, fields: DataFields):
        self.skipped: dict[str, str] = {}
        self._source, self._fields = source, fields

    def __len__(self) -> int:
        return len(self._source)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._source.class_names

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of an image in a batch."""
        return self._fields.image_size, self._fields.image_size, 3

    def train_batches(
        self, *, seed: int, first_step: int, last_step: int, batch_size: int, rows: np.ndarray
    ) -> Iterator[DecodedBatch]:
        """One batch for each step from `first_step` up to, not including, `last_step`.

        The next readable image of the split replaces a damaged one. `batch_size` counts the images
        of all processes; `rows`, (n,) integers, are this process's places in the batch.

        Raises:
            UserError: no image of the split can be read.
        """

        def load(batch: int, places: list[int]) -> list[View]:
            step = first_step + batch
            order = batch_indices(seed, step, batch_size, len(self))
            return [self._train_image(int(order[p]), (seed, step, p)) for p in places]

        return self._batches([np.asarray(rows)] * (last_step - first_step), load)

    def test_batches(self, indices: Sequence[np.ndarray]) -> Iterator[DecodedBatch]:
        """One batch for each array of indices (n,); -1 is padding."""
        return self._batches(indices, lambda _, part: [self._test_image(i) for i in part])

    def pictures(self, count: int) -> Iterator[tuple[bytes, np.ndarray, int]]:
        """Content, test view and label of the readable ones of `sample`."""
        for index in self._spread(count).tolist():
            if (view := self._test_image(index)) is not None:
                yield self._source.read(index)[0], *view

    def head(self, count: int) -> Split:
        """The readable ones of the first `count` images, as a test sees them."""
        return self._take(np.arange(min(count, len(self))))

    def sample(self, count: int) -> Split:
        """The readable ones of `count` images at equal distances: folders are sorted by class."""
        return self._take(self._spread(count))

    def _spread(self, count: int) -> np.ndarray:
        return np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(int)

    def _take(self, indices: np.ndarray) -> Split:
        batch = next(self.test_batches([indices]))
        return Split(batch.images[batch.counts], batch.labels[batch.counts])

    def _train_image(self, index: int, key: tuple[int, ...]) -> View:
        for offset in range(len(self)):
            view = self._read(
                (index + offset) % len(self),
                # a new generator for each try: a damaged image must not change the next one's draws
                lambda data: train_view(data, np.random.default_rng(key), self._fields),
            )
            if view is not None:
                return view
        name, reason = next(iter(self.skipped.items()))
        raise UserError(f"none of {len(self)} images can be read; {name}: {reason}")

    def _test_image(self, index: int) -> View | None:
        return None if index < 0 else self._read(index, lambda data: test_view(data, self._fields))

    def _read(self, index: int, view: Callable[[bytes], np.ndarray]) -> View | None:
        """None for a damaged image, which is added to `skipped`."""
        try:
            data, label = self._source.read(index)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                raise  # a failing disk is not a damaged image
            return self._skip(index, error)
        except Exception as error:  # array_record raises anything for a damaged record
            return self._skip(index, error)
        try:
            return view(data), label
        except DamagedImageError as error:
            return self._skip(index, error)

    def _skip(self, index: int, error: Exception) -> None:
        self.skipped.setdefault(self._source.name(index), str(error) or type(error).__name__)

    def _batches(
        self, places: Sequence[np.ndarray], load: Callable[[int, list[int]], Sequence[View | None]]
    ) -> Iterator[DecodedBatch]:
        """A batch for each array of places, joined from parts that the threads load."""
        parts_per_batch = math.ceil(max(map(len, places), default=0) / _PART)

        def load_part(number: int) -> DecodedBatch:
            batch, part = divmod(number, parts_per_batch)
            mine = places[batch][part * _PART : (part + 1) * _PART]
            return _stack(load(batch, mine.tolist()), self.image_shape)

        threads = self._fields.read_threads
        ahead = max(threads, _BATCHES_AHEAD * parts_per_batch)
        parts = grain.MapDataset.range(len(places) * parts_per_batch).map(load_part)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        # closing ends the threads, also when this generator is only dropped
        with contextlib.closing(iter(parts.to_iter_dataset(options))) as loaded:
            for _ in places:
                batch = [next(loaded) for _ in range(parts_per_batch)]
                yield DecodedBatch(*map(np.concatenate, zip(*batch, strict=True)))


def _stack(views: Sequence[View | None], shape: tuple[int, int, int]) -> DecodedBatch:
    batch = DecodedBatch(
        np.zeros((len(views), *shape), np.uint8),
        np.zeros(len(views), np.int32),
        np.array([view is not None for view in views], bool),
    )
    for place, view in enumerate(views):
        if view is not None:
            batch.images[place], batch.labels[place] = view
    return batch
