"""`--compile-for`: a run's steps compiled for TPUs: what they need, and how fast they can be."""

import dataclasses
import json
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax

from train.ahead.figures import Figures, OutOfMemoryError, compile_step
from train.ahead.report import Attempt, Report
from train.ahead.topology import available_bytes, find_devices
from train.config import Config
from train.data.dataset import Dataset
from train.data.load import dataset_shapes
from train.errors import DeviceError
from train.run.export import settle_preprocessing
from train.run.trainer import Trainer
from train.step.batch_norm_groups import begun_with
from train.step.parallel import check_batch_size

_SIXTEENTHS = 16  # the largest batch is found to a sixteenth of the one that was asked for


def compile_for(config: Config, *, given: Collection[str] | None = None) -> None:
    """Compiles and prints; trains nothing, and writes no files.

    Args:
        config: what would be trained.
        given: the fields that count more than a preprocessing, see `settle_preprocessing`.

    Raises:
        UserError: there is no such topology, or the configuration does not fit it or the data.
        DeviceError: the training step needs more memory than a device has; what does fit has been
            printed.
    """
    # JAX would write these programs to its cache, and warn later that without a TPU it cannot read
    # them again.
    jax.config.update("jax_enable_compilation_cache", False)
    devices = find_devices(config.compile_for or "")
    config = settle_preprocessing(config, given).config
    dataset = dataset_shapes(config)
    compiler = _Compiler(config, dataset, devices)
    available = available_bytes(devices[0])
    asked = compiler.attempt()
    test = None if asked.step is None else compiler.compile_test()
    others = [] if asked.step else [*compiler.smaller(), *compiler.largest(asked, available)]
    report = Report(config, devices, available, [asked, *others], test)
    print(json.dumps(report.to_json(), indent=2) if config.json else report.to_text())
    if asked.step is None:
        raise DeviceError(report.refusal())


class _Compiler:
    """Compiles the steps of a configuration and of others like it, and says which."""

    def __init__(self, config: Config, dataset: Dataset, devices: Sequence[Any]):
        self._config, self._dataset, self._devices = config, dataset, devices

    def attempt(self, **changes: Any) -> Attempt:
        """The training step, with changed fields."""
        config = dataclasses.replace(self._config, **changes)
        found = Attempt(config.global_batch_size, config.accumulate_steps, config.remat)
        _say(f"compiling the training step, {found}")
        try:
            step = compile_step(self._trainer(config).lower()[0])
        except OutOfMemoryError as error:
            return dataclasses.replace(found, needed_bytes=error.needed_bytes)
        return dataclasses.replace(found, step=step, needed_bytes=step.peak_bytes)

    def compile_test(self) -> Figures:
        _say("compiling the step of a test")
        return compile_step(self._trainer(self._config).lower()[1])

    def _trainer(self, config: Config) -> Trainer:
        check_batch_size(config, len(self._devices))
        begun = begun_with(config, len(self._devices))
        resolved = begun.resolved(len(self._dataset.train))
        return Trainer(resolved, self._dataset, devices=self._devices)

    @property
    def _unit(self) -> int:
        """What a batch, or a part of it, is a multiple of; images are mixed in pairs."""
        return len(self._devices) * (2 if self._config.mixup or self._config.cutmix else 1)

    def smaller(self) -> Iterator[Attempt]:
        """The same batch with rematerialisation, and in twice as many parts until it fits."""
        config = self._config
        if not config.remat:
            yield self.attempt(remat=True)
        parts = 2 * config.accumulate_steps
        while config.global_batch_size % (parts * self._unit) == 0:
            found = self.attempt(accumulate_steps=parts)
            yield found
            if found.step:
                return
            parts *= 2

    def largest(self, asked: Attempt, available: int | None) -> Iterator[Attempt]:
        """Smaller batches, until the largest that fits is known to a sixteenth of `asked`."""
        unit = self._unit * self._config.accumulate_steps
        share = available / asked.needed_bytes if available and asked.needed_bytes else 0.5

        def attempt(count: int) -> Attempt:
            return self.attempt(global_batch_size=count * unit)

        yield from search(asked.global_batch_size // unit, share, attempt)


def search(most: int, share: float, attempt: Callable[[int], Attempt]) -> Iterator[Attempt]:
    """Attempts below `most`, which does not fit, until the largest that fits is known.

    To a sixteenth of `most`: from `share` of it on in such steps, down until one fits or up until
    one does not. Memory is nearly in proportion to the batch, so the first is nearly right.
    """
    grain = max(1, most // _SIXTEENTHS)
    fits, fails = 0, most
    guess = int(share * most)
    while fails - fits > grain:
        guess = max(grain, min(guess, fails - grain) // grain * grain)
        found = attempt(guess)
        yield found
        if found.step is not None:
            fits, guess = guess, guess + grain
        else:
            fails, guess = guess, guess - grain


def _say(line: str) -> None:
    """On stderr: a step takes minutes, and standard output is the report alone."""
    print(line, file=sys.stderr, flush=True)
