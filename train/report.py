"""What a run tells: a progress bar or plain lines, JSON lines, and TensorBoard events."""

import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)


class Report:
    """Progress on a terminal, plain lines elsewhere; metrics to `metrics.jsonl` and TensorBoard.

    Lines after `start_step` that an interrupted run left behind are dropped, so that the metrics
    of a resumed run have neither gap nor repeat.
    """

    def __init__(self, run_dir: Path, *, start_step: int, total_steps: int):
        from tensorboardX import SummaryWriter

        self._metrics = _reopen(run_dir / "metrics.jsonl", start_step)
        self._events = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start_step + 1)
        self._console = Console(file=sys.stdout, highlight=False)
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(
            "training", total=total_steps, completed=start_step, status="compiling"
        )

    def __enter__(self) -> "Report":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        self._metrics.close()
        self._events.close()

    def say(self, line: str) -> None:
        """One line, above the progress bar where there is one."""
        if self._console.is_terminal:
            self._progress.console.print(line)
        else:
            print(line, flush=True)

    def advance(self, step: int) -> None:
        """`step` steps are done."""
        self._progress.update(self._task, completed=step)

    def metrics(self, step: int, kind: str, values: dict[str, float]) -> None:
        """Writes one line of metrics; the bar shows the newest."""
        line = {"step": step, "kind": kind, **values}
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()
        for name, value in values.items():
            self._events.add_scalar(f"{kind}/{name}", value, step)
        if kind == "train":
            status = f"loss {values['loss']:.3f} error {values['error']:.1%}"
            status += f" {values['images_per_second']:.0f} images/s"
            self._progress.update(self._task, status=status)


def _reopen(path: Path, start_step: int) -> TextIO:
    """A file to append metrics to, cut after the lines of `start_step`."""
    kept: list[str] = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                fields: dict[str, Any] = json.loads(line)
            except ValueError:  # a line that an interruption cut short
                continue
            if fields["step"] <= start_step:
                kept.append(line + "\n")
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text("".join(kept))
    temporary.replace(path)
    return path.open("a")


class Stopwatch:
    """Images a second since the last reading."""

    def __init__(self) -> None:
        self._time, self._images = time.perf_counter(), 0

    def read(self, images: int) -> float:
        """The rate from the last reading to now, with `images` trained in all."""
        now = time.perf_counter()
        rate = (images - self._images) / max(now - self._time, 1e-9)
        self._time, self._images = now, images
        return rate
