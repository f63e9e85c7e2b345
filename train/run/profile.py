"""A profile of ten steps, for TensorBoard or Perfetto."""

from pathlib import Path
from typing import Any

import jax

from train.config import FIRST_PROFILED, LAST_PROFILED, Config
from train.step import parallel


class Profile:
    """Writes JAX's profile of steps 10 to 20 into `profile/` of a run, where it is asked for."""

    def __init__(self, config: Config, folder: Path, first_step: int):
        self._folder = folder / "profile"
        self._first, self._last = first_step + FIRST_PROFILED, first_step + LAST_PROFILED
        self._is_wanted, self._is_on = config.profile and parallel.is_first_process(), False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop()

    def step(self, step: int) -> None:
        """Step `step` is about to start."""
        if self._is_wanted and step == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._is_on = True
        elif step == self._last + 1:
            self._stop()

    def _stop(self) -> None:
        if self._is_on:
            jax.profiler.stop_trace()
            self._is_on = False
