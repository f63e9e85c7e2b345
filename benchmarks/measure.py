"""Timing tasks side by side, and the rows that a benchmark's table is made of."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Task = Callable[[], Any]
# "full" is what `make benchmark` runs; "tiny" only shows, in a test, that the code still works.
Size = Literal["full", "tiny"]


@dataclass(frozen=True)
class Row:
    """One line of a table: what was measured of us, and of a peer in the same run.

    Attributes:
        case: what was done, such as "ResNet20, batch 128, float32".
        measure: unit of `ours` and `theirs`, such as "images/s" or "s".
        ours: the median; None where it was not run.
        peer: who did the same; "" where there is none.
        theirs: the peer's median.
        ratio: ours to theirs, the median of neighbouring pairs; where each is a process of its own
            (depth, devices, recipe), of the two figures.
        bar: what the ratio, or `ours` where there is no peer, should be, such as ">= 1.0".
        note: why it was not run, or what to know when reading it.
    """

    case: str
    measure: str
    ours: float | None
    peer: str = ""
    theirs: float | None = None
    ratio: float | None = None
    bar: str = ""
    note: str = ""

    @property
    def is_met(self) -> bool | None:
        """Whether the bar is met; None without a bar or a figure."""
        value = self.ratio if self.peer else self.ours
        if not self.bar or value is None:
            return None
        relation, bar = self.bar.split()[:2]
        return {">=": value >= float(bar), "<=": value <= float(bar), "<": value < float(bar)}[
            relation
        ]


def clock(task: Task, timer: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that a task takes; it must not return before its work is done."""
    start = timer()
    task()
    return timer() - start


def take_turns(
    tasks: Mapping[str, Task],
    repetitions: int,
    warm_up: int = 1,
    timer: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each task, round by round: neighbours in time, so that their ratios are fair.

    The order is reversed every second round, and the warm-up rounds are not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(-warm_up, repetitions):
        for name in list(tasks)[:: 1 if turn % 2 else -1]:
            elapsed = clock(tasks[name], timer)
            if turn >= 0:
                seconds[name].append(elapsed)
    return seconds


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """The median of ours / theirs, pair by pair."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def speed_rows(
    case: str,
    seconds: Mapping[str, list[float]],
    ours: str,
    bars: Mapping[str, str],
    images: int,
) -> list[Row]:
    """Ours beside each peer in images per second; a ratio above 1 means that ours is faster.

    Args:
        case: what was done.
        seconds: what `take_turns` measured.
        ours: which of its tasks is ours.
        bars: peers' names, and the bar of each ("" for none).
        images: how many images one task handles.
    """
    return [
        Row(
            case,
            "images/s",
            images / statistics.median(seconds[ours]),
            peer,
            images / statistics.median(seconds[peer]),
            median_ratio(seconds[peer], seconds[ours]),
            bar,
        )
        for peer, bar in bars.items()
    ]
