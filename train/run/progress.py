"""What runs report while they train: metrics to their logs, lines and a bar to a person."""

import contextlib
import math
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from train.run.display import Display, Stopwatch, describe_memory, status_line
from train.run.trainer import Score, Trainer
from train.run.training_run import Run
from train.step.train_step import Metrics


class Progress:
    """The reports of runs side by side from `first_step` on, without those in `diverged`."""

    def __init__(
        self,
        trainer: Trainer,
        runs: Sequence[Run],
        display: Display,
        *,
        diverged: Container[int],
        first_step: int,
        start_time: float,
    ):
        self._diverged = diverged
        self._trainer, self._runs, self._display = trainer, runs, display
        self._first_step, self._start_time = first_step, start_time
        self._compiling = time.perf_counter()
        self._stopwatch = Stopwatch()
        self._rate = math.nan
        self._train_losses: list[float] | None = None
        self._told: set[str] = set()
        self._best = [run.best_error for run in runs]

    def step(self, step: int, metrics: Metrics) -> None:
        """Reports a step that is on its way: writes metrics at intervals, and a line a minute."""
        if step == self._first_step + 1:
            self._tell_compiled(metrics)
        if step % self._trainer.config.log_every_steps == 0:
            self._log(step, metrics)
        if self._display.is_quiet():
            values = zip(*self._read(metrics)[:2], strict=True)
            runs = [{"train_loss": loss, "train_error": error} for loss, error in values]
            self._say_status(step, self._alive(runs))
        self._display.advance(step)

    def _tell_compiled(self, metrics: Metrics) -> None:
        jax.block_until_ready(metrics)
        now = time.perf_counter()
        self._display.say(
            f"first step done after {now - self._start_time:.1f} s, of which compiling took "
            f"{now - self._compiling:.1f} s; {describe_memory()}"
        )
        self._stopwatch = Stopwatch()

    def _log(self, step: int, metrics: Metrics) -> None:
        losses, errors, skipped = self._read(metrics)
        self._train_losses = losses
        config = self._trainer.config
        self._rate = self._stopwatch.read(self._images(step))
        common = {
            "learning_rate": self._trainer.learning_rate(step - 1),
            "images_per_second": self._rate,
        }
        lines = []
        for run, loss, error, count in zip(self._runs, losses, errors, skipped, strict=True):
            if run.seed in self._diverged:
                continue
            values = {"loss": loss, "error": error, **common}
            if config.skip_nonfinite is not None:
                values["skipped"] = count
            run.log(step, "train", values)
            lines.append(values)
        self._display.show(lines)

    def _read(self, metrics: Metrics) -> list[list[Any]]:
        """Loss, error and number of skipped steps, each of all runs; waits for the step."""
        return [np.atleast_1d(array).tolist() for array in jax.device_get(metrics)]

    def _alive(self, values: Sequence[Any]) -> list[Any]:
        """The values of the runs that did not diverge."""
        runs = zip(self._runs, values, strict=True)
        return [value for run, value in runs if run.seed not in self._diverged]

    def _say_status(self, step: int, runs: Sequence[Mapping[str, float]]) -> None:
        rate = self._stopwatch.rate(self._images(step)) if math.isnan(self._rate) else self._rate
        done, total = step - self._first_step - 1, self._trainer.total_steps
        self._display.say(
            status_line(
                epoch=self._trainer.epoch(step),
                step=step,
                runs=runs,
                images_per_second=rate,
                elapsed=time.perf_counter() - self._start_time,
                left=self._stopwatch.left(done, total - self._first_step - 1),
            )
        )

    def _tell_skipped(self) -> None:
        """Names damaged images of this process's share that were met since the last time."""
        dataset = self._trainer.dataset
        for split in (dataset.train, dataset.test) if dataset.is_streamed else ():
            for name, reason in list(split.skipped.items()):
                if name not in self._told:
                    self._told.add(name)
                    self._display.say(f"left out {name}: {reason}")

    def _images(self, step: int) -> int:
        """Images of all runs since the first step was compiled."""
        size = self._trainer.config.global_batch_size
        return max(step - self._first_step - 1, 0) * size * len(self._runs)

    @contextlib.contextmanager
    def paused(self, step: int) -> Iterator[None]:
        """Leaves tests and checkpoints after a step out of the rate."""
        if self._train_losses is None:  # nothing was logged so far
            self._rate = self._stopwatch.rate(self._images(step))
        with self._stopwatch.paused():
            yield

    def test(
        self, step: int, scores: Sequence[Score], averages: Sequence[Score] | None
    ) -> list[float]:
        """Reports a test of the newest weights, and of their averages if runs keep them.

        Returns:
            The errors that choose the best checkpoint: those of the weights that are exported.
        """
        told = []
        chosen = [score.error for score in (averages or scores)]
        self._best = [min(pair) for pair in zip(self._best, chosen, strict=True)]
        for number, (run, score) in enumerate(zip(self._runs, scores, strict=True)):
            if run.seed in self._diverged:
                continue
            values = {"loss": score.loss, "error": score.error}
            if averages is not None:
                values["ema_loss"], values["ema_error"] = averages[number][:2]
            run.log(step, "test", values)
            values["best_error"] = self._best[number]
            if self._train_losses is not None:
                values["train_loss"] = self._train_losses[number]
            told.append(values)
        self._tell_skipped()
        self._say_status(step, told)
        return chosen
