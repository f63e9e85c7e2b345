"""B6: JPEGs to batches on one core beside tf.data and torch; augmentation as a part of a step."""

import contextlib
import dataclasses
import importlib.util
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Row, Size, Task, median_ratio, speed_rows, take_turns
from train.config.fields import DataFields, TrainInterpolation
from train.data.sources import TfdsSource
from train.data.stream import Stream
from train.errors import UserError

TENSORFLOW_PYTHON = "TENSORFLOW_PYTHON"  # environment variable: an interpreter that has TensorFlow
_OURS = "ours"
_SAME, _USUAL = "tf.data, area", "tf.data, bilinear"
_TORCH = "torch DataLoader, torchvision on Pillow"
_BARS = {_SAME: ">= 1.0", _USUAL: "", _TORCH: ">= 1.0"}
# Our views that Pillow resizes, with a bar beside our usual ones, by means of areas.
_PILLOWS: dict[Any, str] = {"bilinear": ">= 0.9", "bicubic": ""}
_NOTES = {_USUAL: "four pixels for each new one, however many it stands for"}


@dataclass(frozen=True)
class _Amount:
    images: int  # how many different ones
    image_size: int
    batch_size: int
    batches: int
    repetitions: int
    model: str
    train_batch_size: int


_AMOUNTS: dict[Size, _Amount] = {
    "full": _Amount(240, 224, 64, 5, 9, "ResNet20", 128),
    "tiny": _Amount(8, 32, 4, 1, 1, "ResNet20", 4),
}


def run(size: Size) -> list[Row]:
    """Images a second of one core, also of its time alone, which other work disturbs less.

    And the share of a CIFAR step that augmentation takes.
    """
    amount = _AMOUNTS[size]
    return [*_measure_views(amount), _measure_augmentation(amount)]


def _measure_views(amount: _Amount) -> list[Row]:
    case = f"imagenet2012, training view of {amount.image_size} px, one core"
    try:
        source = TfdsSource("imagenet2012", "train", None)
    except UserError as error:
        return [Row(case, "images/s", None, note=str(error))]
    with _one_core(), contextlib.ExitStack() as stack:
        tasks: dict[str, Task] = {
            _OURS: _our_task(source, amount),
            **{f"ours, {kind}": _our_task(source, amount, kind) for kind in _PILLOWS},
            _TORCH: _torch_task(source, amount),
        }
        reason = ""
        try:
            tasks.update(stack.enter_context(_tf_tasks(source, amount)))
        except (RuntimeError, OSError) as error:
            reason = f"not run: {error}"
        seconds = take_turns(tasks, amount.repetitions)
        here = {name: task for name, task in tasks.items() if name not in (_SAME, _USUAL)}
        cpu_seconds = take_turns(here, amount.repetitions, timer=time.process_time)
    images = amount.batch_size * amount.batches
    rows = _view_rows(case, seconds, images)
    rows += [
        dataclasses.replace(row, measure="images/s of CPU")
        for row in _view_rows(case, cpu_seconds, images)
    ]
    if reason:
        ours = images / statistics.median(seconds[_OURS])
        rows.append(Row(case, "images/s", ours, _SAME, bar=_BARS[_SAME], note=reason))
    return [dataclasses.replace(row, note=row.note or _NOTES.get(row.peer, "")) for row in rows]


def _view_rows(case: str, seconds: dict[str, list[float]], images: int) -> list[Row]:
    """Our views beside the peers, and those that Pillow resizes beside our usual ones."""
    bars = {peer: bar for peer, bar in _BARS.items() if peer in seconds}
    rows = speed_rows(case, seconds, _OURS, bars, images)
    for kind, bar in _PILLOWS.items():
        bars = {_OURS: bar, _TORCH: _BARS[_TORCH]}
        rows += speed_rows(f"{case}, {kind}", seconds, f"ours, {kind}", bars, images)
    return rows


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """What starts here, threads and processes, shares one of the cores."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _our_task(
    source: TfdsSource, amount: _Amount, interpolation: TrainInterpolation = "area"
) -> Task:
    size = amount.image_size
    fields = DataFields(image_size=size, train_interpolation=interpolation, read_threads=1)
    stream = Stream(source, fields)
    rows = np.arange(amount.batch_size)

    def make_batches() -> None:
        batches = stream.train_batches(
            seed=0, first_step=0, last_step=amount.batches, batch_size=len(rows), rows=rows
        )
        for _ in batches:
            pass

    return make_batches


def _torch_task(source: TfdsSource, amount: _Amount) -> Task:
    """Without worker processes, which on one core only add copies between them."""
    import torch
    from PIL import Image

    from tests.torch_or_none import import_torchvision

    import_torchvision()
    from torchvision import transforms

    torch.set_num_threads(1)
    view = transforms.Compose(
        [
            transforms.RandomResizedCrop(amount.image_size),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )

    class Views(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return amount.batch_size * amount.batches

        def __getitem__(self, index: int) -> Any:
            data, label = source.read(index % len(source))
            return view(Image.open(io.BytesIO(data)).convert("RGB")), label

    loader = torch.utils.data.DataLoader(Views(), amount.batch_size)

    def make_batches() -> None:
        for _ in loader:
            pass

    return make_batches


@contextlib.contextmanager
def _tf_tasks(source: TfdsSource, amount: _Amount) -> Iterator[dict[str, Task]]:
    from benchmarks.peers.tf_data import TfData

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index in range(min(amount.images, len(source))):
            data, label = source.read(index)
            (folder / f"{index}-{label}.jpg").write_bytes(data)
        peer = TfData(_find_tensorflow(), folder, amount.image_size, amount.batch_size)
        try:
            yield {
                _SAME: lambda: peer("area", amount.batches),
                _USUAL: lambda: peer("bilinear", amount.batches),
            }
        finally:
            peer.close()


def _find_tensorflow() -> str:
    named = os.environ.get(TENSORFLOW_PYTHON)
    if named:
        return named
    if importlib.util.find_spec("tensorflow") is None:
        raise RuntimeError(
            f"TensorFlow is not installed: name a Python that has it by {TENSORFLOW_PYTHON}"
        )
    return sys.executable


def _measure_augmentation(amount: _Amount) -> Row:
    """Crop, mirror and normalisation compiled alone, beside the step that they are a part of."""
    import jax

    from train.config import Config
    from train.data.dataset import Dataset, Split
    from train.run.trainer import Trainer
    from train.step.augment import Augment, draw_keys

    count = amount.train_batch_size
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
    split = Split(pixels, np.arange(count, dtype=np.int32) % 10)
    dataset = Dataset(split, split, "random", 10, (0.5,) * 3, (0.25,) * 3)
    config = Config(model=amount.model, global_batch_size=count).resolved(count)
    trainer = Trainer(config, dataset)
    state = [trainer.place(trainer.first_states([config.seed]))]  # donated: the newest one
    batch = next(trainer.batches([config.seed], 0))
    augment = Augment(config, dataset)
    images, places = jax.device_put((pixels, np.arange(count)))
    augmented = jax.jit(lambda images: augment(images, draw_keys(0, 0, places).images))

    def step() -> None:
        state[0], _ = trainer.step(state[0], batch)
        jax.block_until_ready(state[0])

    tasks: dict[str, Task] = {
        "augmentation": lambda: jax.block_until_ready(augmented(images)),
        "step": step,
    }
    seconds = take_turns(tasks, amount.repetitions, warm_up=2)
    share = 100 * median_ratio(seconds["augmentation"], seconds["step"])
    milliseconds = 1000 * statistics.median(seconds["augmentation"])
    case = f"augmentation on the device, {amount.model}, 32 px, batch {count}"
    return Row(case, "% of the step", share, bar="< 5", note=f"{milliseconds:.2g} ms")
