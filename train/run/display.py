"""What a person sees of a run: a progress bar or plain lines, and the numbers in them."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

_SPEED_SECONDS = 300  # the bar estimates the time left from the steps of so many seconds
_QUIET_SECONDS = 60  # without a bar, a run is not silent for longer


class Display:
    """A progress bar on a terminal, plain lines elsewhere; one for all runs of a process.

    If not `enabled`, as in every process but the first, it shows nothing.
    """

    def __init__(self, *, enabled: bool = True):
        self._enabled, self._last_line = enabled, time.perf_counter()
        self._console = Console(file=sys.stdout, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (enabled and self._console.is_terminal),
            speed_estimate_period=_SPEED_SECONDS,
        )

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, total_steps: int, start_step: int = 0, title: str = "training") -> None:
        """Starts the bar, with `start_step` of `total_steps` done; replaces an earlier one."""
        for task in self._progress.task_ids:
            self._progress.remove_task(task)
        self._task = self._progress.add_task(
            title, total=total_steps, completed=start_step, status="compiling"
        )
        self._progress.start()

    def say(self, line: str) -> None:
        """One line, above the progress bar if there is one."""
        if not self._enabled:
            return
        if self._console.is_terminal:
            self._console.print(line, markup=False, soft_wrap=True)
        else:
            print(line, flush=True)
            self._last_line = time.perf_counter()

    def is_quiet(self) -> bool:
        """Whether there is no bar, and no line since a minute: time to say how far the run is."""
        is_plain = self._enabled and not self._console.is_terminal
        return is_plain and time.perf_counter() - self._last_line >= _QUIET_SECONDS

    def advance(self, step: int) -> None:
        """`step` steps are done."""
        self._progress.update(self._task, completed=step)

    def show(self, runs: Sequence[Mapping[str, float]]) -> None:
        """Shows beside the bar the means of the newest training metrics of all runs.

        Each mapping has `loss`, `error` (a fraction) and `images_per_second` of all runs.
        """
        loss, error, rate = (
            fmean(run[name] for run in runs) for name in ("loss", "error", "images_per_second")
        )
        status = f"loss {loss:.3f} error {error:.1%} {rate:,.0f} images/s"
        self._progress.update(self._task, status=status)


def status_line(
    *,
    epoch: float,
    step: int,
    runs: Sequence[Mapping[str, float]],
    images_per_second: float,
    elapsed: float,
    left: float | None = None,
) -> str:
    """One line on how far runs are: metrics, speed and time.

    Args:
        epoch: passes over the training set so far.
        step: steps so far.
        runs: one mapping for each seed, with any of `train_loss`, `train_error`, `loss` and `error`
            on the test set, `ema_error` and `best_error`. Errors are fractions. For several seeds
            the line shows means, and the range of errors.
        images_per_second: of all seeds together.
        elapsed: seconds since the start.
        left: seconds to go, None if unknown.
    """
    parts = [f"epoch {epoch:6.2f}", f"step {step:6d}"]
    for name, title in (("train_loss", "train loss"), ("loss", "test loss")):
        if name in runs[0]:
            parts.append(f"{title} {fmean(run[name] for run in runs):.4f}")
    for name, title in _ERRORS.items():
        if name in runs[0]:
            parts.append(f"{title} {_mean_and_range([run[name] for run in runs])}")
    parts += [f"{images_per_second:,.0f} images/s", f"{duration(elapsed):>6}"]
    if left is not None:
        parts[-1] += f", {duration(left)} left"
    return "  ".join(parts)


_ERRORS = {
    **{"train_error": "train error", "error": "test error"},
    **{"ema_error": "averaged", "best_error": "best"},
}


def _mean_and_range(fractions: Sequence[float]) -> str:
    mean = f"{fmean(fractions):7.2%}"
    return mean if len(fractions) == 1 else f"{mean} ({min(fractions):.2%}-{max(fractions):.2%})"


def duration(seconds: float) -> str:
    """`36 s`, `12 min 05 s`, `3 h 08 min`."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def describe_memory() -> str:
    """Memory in use: of the fullest local device if it says, else of the process."""
    import jax
    import psutil

    stats = [found for device in jax.local_devices() if (found := device.memory_stats())]
    if not stats:
        return f"{_gigabytes(psutil.Process().memory_info().rss)} of memory in the process"
    fullest = max(stats, key=lambda found: found["bytes_in_use"])
    text = f"{_gigabytes(fullest['bytes_in_use'])} of device memory"
    if "peak_bytes_in_use" in fullest:
        text += f", {_gigabytes(fullest['peak_bytes_in_use'])} at its peak"
    if "bytes_limit" in fullest:
        text += f", of {_gigabytes(fullest['bytes_limit'])}"
    return text


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


class Stopwatch:
    """Images a second and the time left; starts when it is made."""

    def __init__(self) -> None:
        self._start = self._time = time.perf_counter()
        self._images = 0

    def rate(self, images: int) -> float:
        """Images a second since the last reading; `images` were trained in all."""
        return (images - self._images) / max(time.perf_counter() - self._time, 1e-9)

    def read(self, images: int) -> float:
        """The rate, and the start of the next one."""
        rate = self.rate(images)
        self._time, self._images = time.perf_counter(), images
        return rate

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves this time out of the rate, but not out of the estimate of the time left."""
        start = time.perf_counter()
        yield
        self._time += time.perf_counter() - start

    def left(self, done: float, total: float) -> float | None:
        """Seconds to go at the pace so far, when `done` of `total` are done; None at the start."""
        passed = time.perf_counter() - self._start
        return passed / done * (total - done) if done > 0 else None
