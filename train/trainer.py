"""What stays the same through a run: the model, its compiled steps, and the data on the devices."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import flax_resnet
from flax_resnet.network import ResidualNetwork
from resnet_spec import DIALECT, ClassifierSpec, ResNetSpec, find_spec
from train import parallel
from train.augment import Augment
from train.config import Config
from train.data import Dataset, Split, batch_indices, image_dtype
from train.errors import UserError
from train.network import Network
from train.optimizer import make_optimizer, make_schedule
from train.step import Images, Metrics, TrainState, make_eval_step, make_train_step

_EVAL_BATCH_PER_DEVICE = 250
_DTYPES = {"bf16": jnp.bfloat16, "f32": jnp.float32, "f64": jnp.float64}


class Trainer:
    """Trains and tests one model on one data set.

    Attributes:
        classifier: the row of the table, and the size of the head.
        total_steps: length of a whole run.
        first_state: what an uninterrupted run starts from; the first step takes its memory.
    """

    def __init__(self, config: Config, dataset: Dataset):
        if config.precision == "f64" and not parallel.has_float64():
            raise UserError('precision f64: call jax.config.update("jax_enable_x64", True) first')
        self.config, self.dataset = config, dataset
        self.total_steps = count_steps(config, len(dataset.train))
        spec = dataclasses.replace(
            find_spec(config.model),
            shortcut=config.shortcut,
            zero_init_residual=config.zero_init_residual,
            in_planes=dataset.train.images.shape[-1],
            **{name: getattr(config, name) for name in DIALECT},
        )
        self.classifier = ClassifierSpec(
            spec, dataset.num_classes, statistics_batch_size=config.global_batch_size
        )
        _check_image_size(config, spec, dataset.train.images.shape[1])
        self._schedule = make_schedule(config, self.total_steps)
        optimizer = make_optimizer(
            self._schedule,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
        network = Network(self._make_model(config.precision), axis_name=parallel.AXIS)
        augment = Augment(config, dataset)
        axis_name = parallel.AXIS
        self._train_step = parallel.map_train_step(
            make_train_step(
                network,
                optimizer,
                augment,
                seed=config.seed,
                axis_name=axis_name,
                ema_decay=config.ema_decay,
            )
        )
        self._eval_step = parallel.map_eval_step(
            make_eval_step(network, augment, axis_name=axis_name)
        )
        self.first_state: TrainState = parallel.replicate(
            TrainState(
                step=jnp.zeros((), jnp.int32),
                params=network.params,
                statistics=network.statistics,
                optimizer=optimizer.init(network.params),
                ema=None if config.ema_decay is None else {**network.params, **network.statistics},
            )
        )
        self._train_data = parallel.replicate(_images(dataset.train))
        self._test_data = parallel.replicate(_images(dataset.test))

    def step(self, state: TrainState, step: int) -> tuple[TrainState, Metrics]:
        """Trains on the images of one step; `state` is used up."""
        batch_size, count = self.config.global_batch_size, len(self.dataset.train)
        indices = batch_indices(self.config.seed, step, batch_size, count)
        return self._train_step(state, self._train_data, parallel.split_batch(indices))

    def learning_rate(self, step: int) -> float:
        return float(np.asarray(self._schedule(step)))

    def ends_period(self, step: int) -> bool:
        """Whether an epoch that is to be tested ends with the step before, or the whole run."""
        size = len(self.dataset.train) * self.config.eval_every_epochs
        images = step * self.config.global_batch_size
        ends_epoch = images // size > (images - self.config.global_batch_size) // size
        return ends_epoch or step == self.total_steps

    def test(self, state: TrainState) -> tuple[float, float]:
        """(loss, error) over the whole test set, every image once."""
        count = len(self.dataset.test)
        batch = _EVAL_BATCH_PER_DEVICE * jax.local_device_count()
        padded = np.full(math.ceil(count / batch) * batch, -1, np.int32)
        padded[:count] = np.arange(count)
        arrays = (state.params, state.statistics, self._test_data)
        sums = [
            self._eval_step(*arrays, parallel.split_batch(part))
            for part in np.split(padded, len(padded) // batch)
        ]
        loss, errors = np.sum(jax.device_get([(s.loss, s.errors) for s in sums]), axis=0)
        return float(loss) / count, float(errors) / count

    def model(self, state: TrainState) -> Any:
        """The trained model, in eval mode and float32, or float64 where it was trained so."""
        params, statistics = jax.device_get((state.params, state.statistics))
        precision = "f64" if self.config.precision == "f64" else "f32"
        return Network(self._make_model(precision)).model(params, statistics)

    def _make_model(self, precision: str) -> ResidualNetwork:
        return flax_resnet.from_spec(
            self.classifier.network,
            self.classifier.num_classes,
            rngs=nnx.Rngs(self.config.seed),
            dtype=_DTYPES[precision],
            param_dtype=image_dtype(self.config),
            scan_blocks=self.config.scan_blocks,
            remat=self.config.remat,
        )


def count_steps(config: Config, num_images: int) -> int:
    """Steps of a whole run: the epochs' images in equal batches, or `max_steps` if fewer."""
    steps = math.ceil(config.epochs * num_images / config.global_batch_size)
    return steps if config.max_steps is None else min(steps, config.max_steps)


def _check_image_size(config: Config, spec: ResNetSpec, image_size: int) -> None:
    if config.global_batch_size * spec.final_size(image_size) ** 2 < 2:
        raise UserError(
            f"--global-batch-size {config.global_batch_size}: {config.model} shrinks these images "
            "to one pixel, and BatchNorm cannot train on a single value"
        )


def _images(split: Split) -> Images:
    return Images(jnp.asarray(split.images), jnp.asarray(split.labels))
