"""The batches of each step on the devices: indices of images that are there, or the images."""

import collections
import itertools
import math
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from train.config import Config
from train.data.dataset import Dataset, batch_indices
from train.step.parallel import Spread
from train.step.train_step import Images

_EVAL_BATCH_PER_DEVICE = {True: 100, False: 250}  # streamed images are larger
_AHEAD = 2  # batches that are moved to the devices before they are needed


class Batch(NamedTuple):
    """One process's share of a step.

    Attributes:
        indices: into the images; a negative one counts for nothing.
        images: None if the whole split is on the devices.
    """

    indices: Any
    images: Images | None = None


def train_batches(
    config: Config,
    dataset: Dataset,
    spread: Spread,
    seeds: Sequence[int],
    first_step: int,
    last_step: int,
) -> Generator[Batch, None, None]:
    """One batch for each step after `first_step` up to `last_step`; for runs side by side."""
    size, parts = config.global_batch_size, config.accumulate_steps
    if not dataset.is_streamed:
        for step in range(first_step, last_step):
            orders = [batch_indices(seed, step, size, len(dataset.train)) for seed in seeds]
            indices = np.stack(orders).reshape(len(seeds), parts, -1)
            yield Batch(spread.place_batch(spread.split(indices if spread.seeds else indices[0])))
        return
    (seed,) = seeds  # several runs would need several streams
    rows = spread.split(np.arange(size).reshape(parts, -1))  # (devices, parts, b)
    source = dataset.train.train_batches(
        seed=seed,
        first_step=first_step,
        last_step=last_step,
        batch_size=size,
        rows=rows.reshape(-1),
    )
    local = np.arange(rows[0].size, dtype=np.int32).reshape(rows.shape[1:])
    indices = spread.place_batch(np.broadcast_to(local, rows.shape).copy())
    yield from _ahead(Batch(indices, _to_devices(spread, batch)) for batch in source)


def test_batches(dataset: Dataset, spread: Spread) -> Generator[Batch, None, None]:
    """The whole test set, every image once, for any number of images."""
    count = len(dataset.test)
    devices = len(spread.devices) if spread.over == "batch" else 1
    size = _test_share(dataset, devices) * devices
    padded = np.full(math.ceil(count / size) * size, -1, np.int32)
    padded[:count] = np.arange(count)
    shares = [spread.split(part) for part in np.split(padded, len(padded) // size)]
    if not dataset.is_streamed:
        yield from (Batch(spread.place_batch(share)) for share in shares)
        return
    source = dataset.test.test_batches([share.reshape(-1) for share in shares])
    local = np.broadcast_to(np.arange(shares[0].shape[1], dtype=np.int32), shares[0].shape)
    yield from _ahead(
        Batch(
            spread.place_batch(np.where(batch.counts.reshape(local.shape), local, np.int32(-1))),
            _to_devices(spread, batch),
        )
        for batch in source
    )


def _test_share(dataset: Dataset, devices: int) -> int:
    """Images of a test that a device has at once."""
    return min(_EVAL_BATCH_PER_DEVICE[dataset.is_streamed], math.ceil(len(dataset.test) / devices))


def batch_shapes(config: Config, dataset: Dataset, spread: Spread) -> tuple[Batch, Batch]:
    """The shapes of what a step takes, in training and in a test, without reading any image.

    Of images in memory it takes the whole split.
    """
    devices, parts = len(spread.devices), config.accumulate_steps
    share, test_share = config.global_batch_size // devices, _test_share(dataset, devices)

    def shapes(split: Any, share: int, indices: tuple[int, ...]) -> Batch:
        count: tuple[int, ...] = (devices, share)
        image = dataset.image_shape
        if not dataset.is_streamed:  # rows, see `Images`
            count, image = (len(split),), (math.prod(image),)
        images: Any = jax.ShapeDtypeStruct((*count, *image), np.uint8)
        labels: Any = jax.ShapeDtypeStruct(count, np.int32)
        return Batch(jax.ShapeDtypeStruct((devices, *indices), np.int32), Images(images, labels))

    return (
        shapes(dataset.train, share, (parts, share // parts)),
        shapes(dataset.test, test_share, (test_share,)),
    )


def _to_devices(spread: Spread, batch: Any) -> Images:
    """Cuts a process's images, (n, h, w, c), into equal shares for its devices."""
    cut = [a.reshape(spread.local_count, -1, *a.shape[1:]) for a in (batch.images, batch.labels)]
    return Images(*spread.place_batch(cut))


def _ahead(source: Iterator[Batch]) -> Generator[Batch, None, None]:
    """The same, some batches early: they are moved while others are trained on."""
    waiting = collections.deque(itertools.islice(source, _AHEAD))
    while waiting:
        yield waiting.popleft()
        waiting.extend(itertools.islice(source, 1))
