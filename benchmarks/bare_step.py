"""The trainer's own step without the loop around it, on one batch again and again."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from train.config import Config
from train.data.dataset import Dataset, Split
from train.run.trainer import Trainer
from train.step.train_step import TrainState


class BareStep:
    """To call it is to wait for `steps` steps of the runs of these seeds, side by side."""

    def __init__(self, trainer: Trainer, seeds: Sequence[int], steps: int):
        self._trainer, self._steps = trainer, steps
        self._state = trainer.place(trainer.first_states(seeds))
        self._batch = next(trainer.batches(seeds, 0))

    def __call__(self) -> None:
        for _ in range(self._steps):
            self._state, _ = self._trainer.step(self._state, self._batch)
        jax.block_until_ready(self._state)


def make_trainer(config: Config, dataset: Dataset, *, together: int | None = None) -> Trainer:
    """As `resnet-train` makes it, for `together` seeds in one program."""
    return Trainer(config.resolved(len(dataset.train)), dataset, together=together)


def random_dataset(count: int, image_size: int, num_classes: int) -> Dataset:
    """So many images of noise, to train and to test on."""
    generator = np.random.default_rng(0)
    shape = (count, image_size, image_size, 3)
    images = generator.integers(0, 256, shape, np.uint8)
    split = Split(images, generator.integers(0, num_classes, count, np.int32))
    return Dataset(split, split, "noise", num_classes, (0.5,) * 3, (0.25,) * 3)


def noise_trainer(model: str, batch_size: int, **fields: Any) -> Trainer:
    """For ten classes of noise as large as CIFAR's images; `fields` are others of the `Config`."""
    config = Config(model=model, data="cifar10", global_batch_size=batch_size, **fields)
    return make_trainer(config, random_dataset(batch_size, 32, 10))


def take_steps(trainer: Trainer, state: TrainState) -> Iterator[TrainState]:
    """A run from this state, which is used up, one finished step at a time."""
    for batch in trainer.batches([trainer.config.seed], 0):
        state, metrics = trainer.step(state, batch)
        yield jax.block_until_ready((state, metrics))[0]
