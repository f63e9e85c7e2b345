"""Runs of twenty steps in JAX, small enough for tests, and what the converter makes of them."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import convert
from examples.continue_in_torch import Batches
from train.config import Config
from train.config.recipes import RECIPES
from train.data.dataset import Dataset
from train.data.load import load_dataset
from train.run.checkpoints import Checkpoints
from train.run.run_folder import begin_folder
from train.run.trainer import Trainer
from train.step.train_step import TrainState

# Warm-up, both drops and the end of an epoch, inside a batch, are within the twenty steps; decay
# and average weigh enough to be seen.
CONFIG = dataclasses.replace(
    RECIPES["digits"].config,
    model="WideResNet16-1-0.0",
    precision="f64",
    max_steps=20,
    validation_size=1437 - 380,
    global_batch_size=40,
    schedule="drops",
    warmup_steps=4,
    drop_steps=(7, 14),
    weight_decay=0.01,
    ema_decay=0.8,
)


def draw_weights(_: Any, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """By NumPy: JAX would compile for twenty seconds to draw float64 weights."""
    scale = (2 / np.prod(shape[:-1])) ** 0.5
    return np.random.default_rng(shape).normal(0, scale, shape).astype(dtype)


class Run:
    """Twenty steps in JAX, and the states on the way as torch gets them."""

    def __init__(self, folder: Path, config: Config):
        self.folder, self.config = folder, config
        self.dataset: Dataset = load_dataset(config)
        with mock.patch("flax_resnet.layers.kaiming_normal", draw_weights):
            self.trainer = Trainer(config, self.dataset)
            (self.template,) = self.trainer.first_states([config.seed])
        self.batches = Batches(config)
        begin_folder(folder, config, train_images=len(self.dataset.train), total_steps=20)
        self.states: dict[int, dict[str, Any]] = dict(self.train(folder, self.template))

    def train(self, folder: Path, state: TrainState) -> Iterator[tuple[int, dict[str, Any]]]:
        """To step 20 in JAX, with a checkpoint each ten steps, read back by the converter."""
        trainer, first_step = self.trainer, int(state.step)
        placed, batches = trainer.place([state]), trainer.batches([self.config.seed], first_step)
        with self.checkpoints(folder) as checkpoints:
            for step in range(first_step, 21):
                if step % 10 == 0:
                    if step not in {int(p.name) for p in checkpoints.folder.iterdir()}:
                        checkpoints.save(*trainer.to_host(placed))
                        checkpoints.wait()
                    yield step, convert.run_to_torch(folder, step)
                if step < 20:
                    placed, _ = trainer.step(placed, next(batches))

    def resume(self, folder: Path) -> dict[str, Any]:
        """From a folder's newest checkpoint to step 20 in JAX."""
        with self.checkpoints(folder) as checkpoints:
            state = checkpoints.restore(self.template)
        return dict(self.train(folder, state))[20]

    def checkpoints(self, folder: Path) -> Checkpoints:
        return Checkpoints(folder, self.trainer.classifier, self.dataset.preprocessing)
