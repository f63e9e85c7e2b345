"""Training curves of groups of runs, as numbers: mean and range over the seeds."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from train.results.collect import Run, finite
from train.results.groups import Group


@dataclass(frozen=True)
class Curve:
    """One line: epochs, and mean, least and greatest value over the runs; all (points,)."""

    epochs: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def curve(group: Group, kind: str, name: str, *, is_exact: bool = False) -> Curve:
    """The `name` of the lines of `kind` (train or test) over the epochs.

    Of the finished runs; where there is none, of those that are under way. Training values are
    means over each epoch, as single batches are noise; `is_exact`: as they are. Points are where
    every run has one.
    """
    runs = group.finished or group.unfinished
    read = _means if kind == "train" and not is_exact else _lines
    of_runs = [read(run, kind, name) for run in runs]
    shared = sorted(set.intersection(*(set(points) for points in of_runs)))
    if not shared:
        return Curve(*(np.empty(0) for _ in range(4)))
    pairs = np.array([[points[key] for key in shared] for points in of_runs])  # (runs, points, 2)
    epochs, values = pairs[..., 0].mean(0), pairs[..., 1]
    return Curve(epochs, values.mean(0), values.min(0), values.max(0))


Points = Mapping[int, tuple[float, float]]
"""step or number of an epoch -> (epoch, value)."""


def _lines(run: Run, kind: str, name: str) -> Points:
    return {
        line["step"]: (run.epoch(line["step"]), finite(line[name]))
        for line in run.metrics
        if line["kind"] == kind and name in line
    }


def _means(run: Run, kind: str, name: str) -> Points:
    """The mean of each epoch's lines, in the middle of their steps."""
    members: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for epoch, value in _lines(run, kind, name).values():
        members[int(np.ceil(epoch))].append((epoch, value))
    return {number: tuple(np.mean(pairs, axis=0)) for number, pairs in members.items()}
