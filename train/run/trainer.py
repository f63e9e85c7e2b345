"""The fixed parts of a run: the model, its compiled steps, and the data on the devices."""

import contextlib
import functools
import math
from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.stages import Lowered

import flax_resnet
from flax_resnet.layers import no_values
from flax_resnet.network import ResidualNetwork
from resnet_spec import ClassifierSpec
from train.config import MOST_STEPS, Config, flag
from train.data.dataset import Dataset, image_dtype
from train.errors import AbandonedError, UserError
from train.step import parallel
from train.step.augment import Augment, Mixing
from train.step.batch_norm_groups import check_groups, group_images
from train.step.batches import Batch, batch_shapes, test_batches, train_batches
from train.step.functional import Arrays, Network
from train.step.optimizer import make_optimizer, make_schedule
from train.step.train_step import Images, Metrics, TrainState, make_eval_step, make_train_step

_IN_FLIGHT = 2  # batches of a test that the devices work on at once
_DTYPES = {"bf16": jnp.bfloat16, "f32": jnp.float32, "f64": jnp.float64}


class Score(NamedTuple):
    """Mean loss, fraction of wrong images, and number of images of a test."""

    loss: float
    error: float
    images: int


class Trainer:
    """Trains and tests runs that differ only in their seeds.

    Args:
        config: with all numbers in steps, see `Config.resolved`.
        dataset: to train and to test on.
        together: number of runs that one step trains; None for one run at a time.
        over: what each device has of them, see `parallel.Spread`.
        weights: to start from, by Flax's names; missing ones are drawn by the run's seed.
        devices: to train on, all that JAX finds if None; or to compile for, see `lower`.

    Attributes:
        classifier: the network and the size of the head.
        total_steps: length of a whole run.

    Raises:
        UserError: the configuration does not fit the network, the data or the devices.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        *,
        together: int | None = None,
        over: Literal["batch", "seeds"] = "batch",
        weights: Arrays | None = None,
        devices: Sequence[Any] | None = None,
    ):
        if config.precision == "f64" and not parallel.has_float64():
            raise UserError('precision f64: call jax.config.update("jax_enable_x64", True) first')
        self.config, self.dataset = config, dataset
        self.total_steps = count_steps(config, len(dataset.train))
        self.classifier = describe(config, dataset)
        stages = len(self.classifier.network.stage_depths)
        if config.frozen_stages is not None and config.frozen_stages > stages:
            raise UserError(
                f"--frozen-stages {config.frozen_stages}: {config.model} has {stages} stages"
            )
        if not config.eval_only:
            _check_image_size(config, self.classifier, dataset.image_shape[0])
        self._weights = weights or {}
        schedule = make_schedule(config, self.total_steps)
        self._optimizer = make_optimizer(config, schedule)
        self._learning_rate = jax.jit(schedule)  # not compiled it takes 50 ms
        self.spread = parallel.Spread(
            tuple(devices or jax.devices()), config.parallel, together, over, dataset.is_streamed
        )
        axis_name = self.spread.axis_name
        count = len(self.spread.devices)
        share = config.part_size // (count if axis_name else 1)
        with no_values():
            model = self._make_model(config.precision, config.seed)
        network = self._network = Network(
            model,
            axis_name=axis_name,
            group_images=group_images(config, count),
            frozen_stages=config.frozen_stages,
            # LARS needs the norm of each layer's weights, and a stack has several layers
            stacked=config.scan_blocks and config.optimizer != "lars",
        )
        augment, mixing = Augment(config, dataset), Mixing(config, dataset.num_classes)
        if not config.eval_only:
            mixing.check_share(share)
            check_groups(config, count, share)
        self._train_step: Any = self.spread.train(
            make_train_step(
                network,
                self._optimizer,
                augment,
                axis_name=axis_name,
                mix=mixing if mixing.is_needed else None,
                ema_decay=config.ema_decay,
                skips_nonfinite=config.skip_nonfinite is not None,
                streamed=dataset.is_streamed,
            )
        )
        self._eval_step: Any = self.spread.evaluate(
            make_eval_step(network, augment, axis_name=axis_name, streamed=dataset.is_streamed)
        )

    @functools.cached_property
    def _data(self) -> tuple[Images, Images]:
        """All images to train and to test on, on every device; where they are not streamed."""
        train, test = (
            Images(split.images.reshape(len(split), -1), split.labels)
            for split in (self.dataset.train, self.dataset.test)
        )
        return self.spread.place_data((train, test))

    def first_states(self, seeds: Sequence[int]) -> list[TrainState]:
        """The initial states of the runs of these seeds, on the host."""
        return [parallel.to_host(self._first_state(seed)) for seed in seeds]

    def _first_state(self, seed: int) -> TrainState:
        network = Network(self._make_model(self.config.precision, seed))
        arrays = {**network.params, **network.statistics, **self._weights}
        params, statistics = (
            {name: arrays[name] for name in names} for names in (network.params, network.statistics)
        )
        trained = [part for name in self._network.trained for part in self._network.members(name)]
        return self._begin(seed, params, statistics, trained)

    def _begin(
        self, seed: int, params: Arrays, statistics: Arrays, trained: Sequence[str]
    ) -> TrainState:
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            seed=jnp.asarray(seed, jnp.uint32),
            skipped=jnp.zeros((), jnp.int32),
            params=params,
            statistics=statistics,
            optimizer=self._optimizer.init({name: params[name] for name in trained}),
            ema=None if self.config.ema_decay is None else {**params, **statistics},
        )

    def place(self, states: Sequence[TrainState]) -> TrainState:
        """Moves host states to the devices, as one state."""
        packed = [self._network.pack(state) for state in states]
        if self.spread.seeds is None:
            return self.spread.place_state(packed[0])
        return self.spread.place_state(jax.tree.map(lambda *leaves: np.stack(leaves), *packed))

    def to_host(self, state: TrainState) -> list[TrainState]:
        """The inverse of `place`."""
        host = parallel.to_host(state)
        if self.spread.seeds is None:
            return [self._network.unpack(host)]
        indices = range(self.spread.seeds)
        return [
            self._network.unpack(jax.tree.map(lambda leaf, i=i: leaf[i], host)) for i in indices
        ]

    def batches(self, seeds: Sequence[int], first_step: int) -> Generator[Batch, None, None]:
        """The batches of the steps after `first_step`, for `step`."""
        return train_batches(
            self.config, self.dataset, self.spread, seeds, first_step, self.total_steps
        )

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Trains on one batch; `state` cannot be used afterwards."""
        data = self._data[0] if batch.images is None else batch.images
        return self._train_step(state, data, batch.indices)

    def lower(self) -> tuple[Lowered, Lowered]:
        """The steps of training and of a test as programs for the devices, not yet compiled.

        Neither images nor weights are needed, nor the devices themselves. For one run at a time.
        """
        network = self._network
        first = functools.partial(self._begin, self.config.seed, trained=network.trained)
        state = jax.eval_shape(first, network.params, network.statistics)
        train, test = batch_shapes(self.config, self.dataset, self.spread)
        return (
            self._train_step.lower(state, train.images, train.indices),
            self._eval_step.lower(state.params, state.statistics, test.images, test.indices),
        )

    def learning_rate(self, step: int) -> float:
        return float(self._learning_rate(step))

    def epoch(self, step: int) -> float:
        """Passes over the training set after so many steps."""
        return step * self.config.global_batch_size / len(self.dataset.train)

    def ends_period(self, step: int) -> bool:
        """Whether a test is due after a step: an epoch to be tested ends, or the run."""
        size = len(self.dataset.train) * self.config.eval_every_epochs
        images = step * self.config.global_batch_size
        ends_epoch = images // size > (images - self.config.global_batch_size) // size
        return ends_epoch or step == self.total_steps

    def test(self, state: TrainState, *, stops: Callable[[], Any] | None = None) -> list[Score]:
        """The score of each run over the whole test set, every image once.

        UserError if none can be read. `stops` is called at each batch; if its answer, read some
        batches later by `bool`, is yes, AbandonedError in all processes at the same batch.
        """
        sums: list[Any] = []
        answers: list[Any] = []
        with contextlib.closing(test_batches(self.dataset, self.spread)) as batches:
            for number, batch in enumerate(batches):
                data = self._data[1] if batch.images is None else batch.images
                sums.append(self._eval_step(state.params, state.statistics, data, batch.indices))
                answers.append(stops is not None and stops())
                if number >= _IN_FLIGHT:
                    jax.block_until_ready(sums[number - _IN_FLIGHT])
                    if bool(answers[number - _IN_FLIGHT]):
                        raise AbandonedError(f"a test was abandoned after {number + 1} batches")
        totals = [np.sum(parts, axis=0) for parts in zip(*jax.device_get(sums), strict=True)]
        if not np.all(totals[2]):
            raise UserError(_unreadable(self.dataset))
        return [
            Score(float(loss / images), float(errors / images), int(images))
            for loss, errors, images in zip(*map(np.atleast_1d, totals), strict=True)
        ]

    def model(self, state: TrainState) -> Any:
        """The model of a host state, in eval mode and float32, or float64 if it was trained so."""
        precision = "f64" if self.config.precision == "f64" else "f32"
        with no_values():
            network = Network(self._make_model(precision, self.config.seed))
        return network.model(state.params, state.statistics)

    def _make_model(self, precision: str, seed: int) -> ResidualNetwork:
        return flax_resnet.from_spec(
            self.classifier.network,
            self.classifier.num_classes,
            rngs=nnx.Rngs(seed),
            dtype=_DTYPES[precision],
            param_dtype=image_dtype(self.config),
            scan_blocks=self.config.scan_blocks,
            remat=self.config.remat,
        )


def _unreadable(dataset: Dataset) -> str:
    sentence = f"none of the {len(dataset.test)} test images can be read"
    for name, reason in list(dataset.test.skipped.items())[:1]:  # of this process
        sentence += f"; {name}: {reason}"
    return sentence


def describe(config: Config, dataset: Dataset) -> ClassifierSpec:
    """The network of a configuration for a data set's channels and classes."""
    spec = config.network(dataset.image_shape[-1])
    images = group_images(config, jax.device_count()) or config.part_size
    return ClassifierSpec(spec, dataset.num_classes, statistics_batch_size=images)


def count_steps(config: Config, num_images: int) -> int:
    """Steps of a run: epochs or `max_steps`, if fewer; UserError if int32 cannot hold them."""
    steps = math.ceil(config.epochs * num_images / config.global_batch_size)
    steps = steps if config.max_steps is None else min(steps, config.max_steps)
    if steps > MOST_STEPS:
        raise UserError(f"--epochs {config.epochs} are {steps} steps, more than {MOST_STEPS}")
    return steps


def _check_image_size(config: Config, classifier: ClassifierSpec, image_size: int) -> None:
    if classifier.statistics_batch_size == classifier.network.final_size(image_size) == 1:
        option = "global_batch_size" if config.part_size == 1 else "batch_norm_images"
        raise UserError(
            f"{flag(option)} {getattr(config, option)}: {config.model} shrinks these images "
            "to one pixel, and BatchNorm cannot train on a single value"
        )
