"""A real trainer on images that are drawn, not read."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from train.config import Config
from train.data import Dataset, Split
from train.step import TrainState
from train.trainer import Trainer


def make_trainer(model: str, batch_size: int, *, image_size: int = 32, **fields: Any) -> Trainer:
    """The trainer of `resnet-train`, for ten classes of noise as large as CIFAR's images.

    Args:
        model: full name in the table.
        batch_size: images a step, over all devices.
        image_size: height and width.
        fields: any other field of `train.config.Config`.
    """
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (batch_size, image_size, image_size, 3), np.uint8)
    split = Split(images, generator.integers(0, 10, batch_size).astype(np.int32))
    dataset = Dataset(split, split, "noise", 10, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    config = Config(model=model, data="cifar10", global_batch_size=batch_size, **fields)
    return Trainer(config, dataset)


def take_steps(trainer: Trainer, state: TrainState) -> Iterator[TrainState]:
    """A run from this state, which is used up, one finished step at a time."""
    for batch in trainer.batches([trainer.config.seed], 0):
        state, metrics = trainer.step(state, batch)
        yield jax.block_until_ready((state, metrics))[0]
