"""Watches the losses and signals of steps without making the devices wait."""

import collections
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from train.config import Config
from train.errors import DivergedError
from train.step.train_step import Metrics, TrainState

_IN_FLIGHT = 8  # steps that the devices have in their queue; more gain nothing
_IN_FLIGHT_TOGETHER = 2  # with several processes, which see a signal so many steps later


class Watch:
    """Reads each step's metrics some steps late, so that the devices never wait.

    Runs side by side are independent: one that diverges is ignored from then on, which `say` is
    told, and the others go on.

    Attributes:
        must_stop: a signal came; all processes see it at the same step.
        diverged: the errors of the runs that diverged, by seed.
    """

    def __init__(self, config: Config, seeds: Sequence[int], say: Callable[[str], None]):
        self.must_stop, self._say = False, say
        self.diverged: dict[int, DivergedError] = {}
        self._config, self._seeds = config, seeds
        self._pending: collections.deque[tuple[int, Metrics, Any]] = collections.deque()
        self._most = _IN_FLIGHT if jax.process_count() == 1 else _IN_FLIGHT_TOGETHER

    def step(self, step: int, metrics: Metrics, wants_to_stop: Any) -> None:
        """Notes a step that was started; waits for the one `_IN_FLIGHT` steps before it.

        DivergedError if all runs have a loss that is not finite, or too many skipped steps.
        """
        if isinstance(wants_to_stop, bool):  # one process knows at once
            self.must_stop |= wants_to_stop
        self._pending.append((step, metrics, wants_to_stop))
        while len(self._pending) > self._most:
            self._read()

    def settle(self) -> None:
        """Waits for all steps; raises as `step` does."""
        while self._pending:
            self._read()

    def is_finite(self, seed: int, state: TrainState) -> bool:
        """Whether a run has not diverged and its host state has no NaN or infinite weights.

        The loss of a step says nothing of the weights after it. Raises as `step` does.
        """
        arrays = {**state.params, **state.statistics}
        bad = [name for name, array in arrays.items() if not np.all(np.isfinite(array))]
        if bad and seed not in self.diverged:
            self._leave(
                seed,
                f"the weights of the run with seed {seed} are not finite at step {int(state.step)} "
                f"({bad[0]}, {len(bad)} arrays in all); the checkpoint before is the newest",
            )
        return seed not in self.diverged

    def raise_diverged(self) -> None:
        """Raises a DivergedError that names all runs that diverged, if any."""
        if self.diverged:
            raise DivergedError("\n".join(map(str, self.diverged.values())))

    def _leave(self, seed: int, why: str) -> None:
        self.diverged[seed] = DivergedError(why)
        if len(self.diverged) == len(self._seeds):
            self.raise_diverged()
        self._say(f"{why}; the other seeds go on")

    def _read(self) -> None:
        step, metrics, wants_to_stop = self._pending.popleft()
        losses, skipped = map(np.atleast_1d, jax.device_get((metrics.loss, metrics.skipped)))
        for seed, loss, count in zip(self._seeds, losses.tolist(), skipped.tolist(), strict=True):
            self._check(step, seed, loss, count)
        self.must_stop |= bool(wants_to_stop)

    def _check(self, step: int, seed: int, loss: float, skipped: int) -> None:
        if seed in self.diverged:
            return
        most = self._config.skip_nonfinite
        whose = f" of the run with seed {seed}" if len(self._seeds) > 1 else ""
        if most is None and not math.isfinite(loss):
            self._leave(
                seed,
                f"the loss{whose} is {loss} at step {step}: lower --learning-rate, lengthen "
                "--warmup-steps, or go on from the newest checkpoint with --resume and other "
                "fields",
            )
        if most is not None and skipped > most:
            self._leave(
                seed,
                f"{skipped} steps{whose} had a loss or a gradient that is not finite, the last one "
                f"step {step}; --skip-nonfinite allows {most}",
            )
