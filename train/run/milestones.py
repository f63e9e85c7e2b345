"""The tests and checkpoints on the way of runs side by side."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from train.errors import AbandonedError
from train.run.progress import Progress
from train.run.trainer import Trainer
from train.run.training_run import Run
from train.run.watch import Watch
from train.step import parallel
from train.step.train_step import TrainState, averaged


class Milestones:
    """Where an epoch ends, where a checkpoint is due, and where a signal came.

    A signal that comes during a test does not wait for its end: the checkpoint is saved without
    the test's error, and the resumed run makes the test before anything else.

    Args:
        stops: whether a signal came, see `Trainer.test`.
    """

    def __init__(
        self,
        trainer: Trainer,
        runs: Sequence[Run],
        progress: Progress,
        watch: Watch,
        stops: Callable[[], Any],
    ):
        self._trainer, self._runs, self._stops = trainer, runs, stops
        self._progress, self._watch = progress, watch

    def resume(self, step: int, state: TrainState) -> None:
        """Makes up for the test of a restored state that was abandoned."""
        if step == 0 or not self._trainer.ends_period(step):
            return
        is_untested = np.array(any(run.is_untested for run in self._runs))
        if parallel.from_first_process(lambda: is_untested):
            with self._progress.paused(step):
                self._save(state, self._test(step, state))

    def reach(self, step: int, state: TrainState) -> None:
        """Tests and saves what is due after a step.

        Raises:
            DivergedError: no run is finite: none is tested nor saved.
            OSError: the checkpoint before could not be written.
        """
        is_tested = self._trainer.ends_period(step)
        every = self._trainer.config.checkpoint_every_steps
        if is_tested or self._watch.must_stop or (every is not None and step % every == 0):
            self._watch.settle()
            with self._progress.paused(step):
                self._save(state, self._test(step, state) if is_tested else None)

    def _test(self, step: int, state: TrainState) -> list[float] | None:
        """Of the newest weights, and their average where a run keeps one; the errors that count."""
        if self._watch.must_stop:
            return None
        try:
            averages = None
            if state.ema is not None:
                averages = self._trainer.test(averaged(state), stops=self._stops)
            scores = self._trainer.test(state, stops=self._stops)
        except AbandonedError:
            self._watch.must_stop = True
            return None
        return self._progress.test(step, scores, averages)

    def _save(self, state: TrainState, errors: Sequence[float] | None) -> None:
        """Starts writing a checkpoint of each run that did not diverge."""
        known = errors or [None] * len(self._runs)
        for run, host, error in zip(self._runs, self._trainer.to_host(state), known, strict=True):
            if self._watch.is_finite(run.seed, host):
                run.save(host, error)
