"""Streams: the order of images, hosts, resuming, tests that count each image once, damage."""

import dataclasses
import gc
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pictures import damaged, encode, make_folder, make_pixels
from train.config.fields import DataFields
from train.data.dataset import batch_indices
from train.data.sources import open_folder
from train.data.stream import DecodedBatch, Stream
from train.errors import UserError

FIELDS = DataFields(image_size=16, read_threads=4, rand_augment=2)
COUNT = 50


class Memory:
    """Encoded images in memory; each is named after its index, which is its label too."""

    def __init__(self, files: list[bytes]):
        self.files = files
        self.class_names = tuple(map(str, range(len(files))))

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> tuple[bytes, int]:
        return self.files[index], index

    def name(self, index: int) -> str:
        return f"{index}.jpg"


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    return [encode(make_pixels(i, 30 + i, 60 - i)) for i in range(COUNT)]


def train(stream: Stream, first_step: int = 0, last_step: int = 5, **changes) -> list[DecodedBatch]:
    arguments = {"seed": 3, "batch_size": 24, "rows": np.arange(24), **changes}
    return list(stream.train_batches(first_step=first_step, last_step=last_step, **arguments))


def assert_same(batches: list[DecodedBatch], others: list[DecodedBatch]) -> None:
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        for array, expected in zip(batch, other, strict=True):
            assert array.dtype == expected.dtype
            np.testing.assert_array_equal(array, expected)


def test_the_order_is_that_of_data_sets_in_memory(files):
    batches = train(Stream(Memory(files), FIELDS), last_step=9)  # four epochs and a bit
    for step, batch in enumerate(batches):
        assert batch.images.shape == (24, 16, 16, 3)
        assert (batch.images.dtype, batch.labels.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(batch.labels, batch_indices(3, step, 24, COUNT))
        assert batch.counts.all()
    assert len({batch.images.tobytes() for batch in batches}) == 9


def test_pixels_do_not_depend_on_threads_hosts_or_where_a_run_was_resumed(files):
    batches = train(Stream(Memory(files), FIELDS))
    one_thread = Stream(Memory(files), dataclasses.replace(FIELDS, read_threads=1))
    assert_same(train(one_thread), batches)
    assert_same(train(one_thread, first_step=3), batches[3:])
    assert train(one_thread, first_step=5) == []
    hosts = np.arange(24).reshape(2, 3, 4).swapaxes(0, 1).reshape(3, 8)  # interleaved
    parts = [train(Stream(Memory(files), FIELDS), rows=rows) for rows in hosts]
    order = np.argsort(np.concatenate(hosts))
    for step, batch in enumerate(batches):
        for name in DecodedBatch._fields:
            together = np.concatenate([getattr(part[step], name) for part in parts])
            np.testing.assert_array_equal(together[order], getattr(batch, name))


def test_another_seed_step_or_place_is_another_view_of_an_image():
    same = [encode(make_pixels(0, 64, 64))] * COUNT
    stream = Stream(Memory(same), FIELDS)
    first, second = train(stream, last_step=2)
    other = train(stream, last_step=1, seed=4)[0]
    views = {image.tobytes() for batch in (first, second, other) for image in batch.images}
    assert len(views) == 3 * 24


@pytest.mark.parametrize("batch", [7, 16, 17, 50, 64])
def test_a_test_counts_every_image_once_whatever_the_batch(files, batch):
    padded = np.full(-(-COUNT // batch) * batch, -1)
    padded[:COUNT] = np.arange(COUNT)
    stream = Stream(Memory(files), FIELDS)
    batches = list(stream.test_batches(list(padded.reshape(-1, batch))))
    assert all(len(b.images) == len(b.labels) == len(b.counts) == batch for b in batches)
    counted = np.concatenate([b.labels[b.counts] for b in batches])
    np.testing.assert_array_equal(counted, np.arange(COUNT))
    whole = stream.head(COUNT)
    images = np.concatenate([b.images[b.counts] for b in batches])
    np.testing.assert_array_equal(images, whole.images)
    assert len(stream.head(1000)) == COUNT
    assert list(stream.test_batches([])) == []


def test_a_damaged_image_is_replaced_in_training_and_left_out_of_a_test(files):
    broken = {**dict(enumerate(damaged(files[0]).values())), COUNT - 1: b"\xff\xd8\xff"}
    mixed = [broken[i] if i in set(broken) else files[i] for i in range(COUNT)]
    stream = Stream(Memory(mixed), FIELDS)
    batches = train(stream)
    whole = train(Stream(Memory(files), FIELDS))
    for step, (batch, intact) in enumerate(zip(batches, whole, strict=True)):
        wanted = batch_indices(3, step, 24, COUNT)
        good = ~np.isin(wanted, list(broken))
        np.testing.assert_array_equal(batch.labels, np.where(good, wanted, 7))  # the next but 0-6
        assert batch.counts.all()
        np.testing.assert_array_equal(batch.images[good], intact.images[good])
    assert set(stream.skipped) == {f"{i}.jpg" for i in broken}
    assert all(stream.skipped.values())
    assert "Premature end" in stream.skipped["5.jpg"]  # all but 2 bytes
    assert_same(train(Stream(Memory(mixed), FIELDS)), batches)

    tested = Stream(Memory(mixed), FIELDS)
    (batch,) = tested.test_batches([np.arange(COUNT)])
    np.testing.assert_array_equal(np.flatnonzero(~batch.counts), sorted(broken))
    assert not batch.images[~batch.counts].any()
    assert tested.skipped == stream.skipped
    assert len(tested.head(10)) == 3


def test_a_replacement_is_seen_as_if_it_had_been_drawn_itself(files):
    """What the damaged images drew before they failed leaves no trace."""
    truncated = [files[0][:-2]] * (COUNT - 1)
    (batch,) = train(Stream(Memory([*truncated, files[1]]), FIELDS), last_step=1)
    (expected,) = train(Stream(Memory([files[1]] * COUNT), FIELDS), last_step=1)
    np.testing.assert_array_equal(batch.images, expected.images)


def test_a_split_without_a_readable_image_says_so():
    stream = Stream(Memory([b"no image"] * COUNT), FIELDS)
    with pytest.raises(UserError, match=r"none of 50 images can be read; .*jpg: not an image"):
        train(stream)
    assert len(stream.skipped) == COUNT


def test_a_file_that_is_gone_is_skipped_like_a_damaged_one(tmp_path):
    root = make_folder(tmp_path, {"train": {"a": 9, "b": 9}})
    source, _, _ = open_folder(root, needs_test=False)
    (root / "train" / "b" / "003.png").unlink()
    stream = Stream(source, FIELDS)
    (batch,) = train(stream, last_step=1, batch_size=18, rows=np.arange(18))
    assert sorted(batch.labels) == [0] * 9 + [1] * 9  # the one after it is of its class
    (name,) = stream.skipped
    assert Path(name) == Path("train/b/003.png")
    assert "No such file" in stream.skipped[name]


def count_threads() -> int:
    return sum(thread.name.startswith("grain-prefetch") for thread in threading.enumerate())


def wait_for_threads(count: int) -> None:
    deadline = time.monotonic() + 20
    while count_threads() != count:
        assert time.monotonic() < deadline, f"{count_threads()} threads are left"
        time.sleep(0.02)


@pytest.mark.parametrize("end", ["used up", "closed", "forgotten", "failed", "never begun"])
def test_the_threads_end_with_the_iterator(files, end):
    wait_for_threads(0)
    source = Memory(list(files))
    stream = Stream(source, FIELDS)
    batches: Any = stream.train_batches(
        seed=0, first_step=0, last_step=10_000, batch_size=24, rows=np.arange(24)
    )
    if end == "used up":
        train(stream)
    elif end != "never begun":
        next(batches)
        assert 1 <= count_threads() <= 4  # begun as they are needed
    if end == "closed":
        batches.close()
    elif end == "failed":
        source.files[:] = [b""] * COUNT
        with pytest.raises(UserError):
            list(batches)
    del batches
    gc.collect()
    wait_for_threads(0)
