"""Training curves of a group of runs: mean and range over the seeds."""

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from train.results.collect import RecordedRun
from train.results.groups import Group
from train.results.render import tested_on


@dataclass(frozen=True)
class Curve:
    """One line: epochs; mean, lowest and highest value over the runs. All of shape (points,)."""

    epochs: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def curve(group: Group, kind: str, name: str, *, is_exact: bool = False) -> Curve:
    """The metric `name` of the lines of `kind` (train or test) over the epochs.

    Of the finished runs; if there is none, of the unfinished ones. A point is where every run has
    a value. Training values are averaged over each epoch, as single batches are noise, unless
    `is_exact`.
    """
    runs = group.finished or group.unfinished
    of_runs = [_points(run, kind, name, kind == "train" and not is_exact) for run in runs]
    shared = sorted(set.intersection(*(set(points) for points in of_runs)))
    if not shared:
        return Curve(*(np.empty(0) for _ in range(4)))
    pairs = np.array([[points[key] for key in shared] for points in of_runs])  # (runs, points, 2)
    epochs, values = pairs[..., 0].mean(0), pairs[..., 1]
    return Curve(epochs, values.mean(0), values.min(0), values.max(0))


def _points(run: RecordedRun, kind: str, name: str, is_averaged: bool) -> dict[int, Any]:
    """Step, or number of an averaged epoch -> (epoch, value)."""
    lines = {v["step"]: v[name] for v in run.metrics if v["kind"] == kind and name in v}
    members: dict[int, list[tuple[float, Any]]] = defaultdict(list)
    for step, value in lines.items():
        key = math.ceil(run.epoch(step)) if is_averaged else step
        is_number = value is not None and math.isfinite(value)  # NaN is null in JSON
        members[key].append((run.epoch(step), value if is_number else math.nan))
    return {key: np.mean(pairs, axis=0) for key, pairs in members.items()}


def line_name(group: Group, *, says_data: bool) -> str:
    """The name of a line: the model, its options, and how many seeds it has."""
    name = " ".join([group.first.config.model, *(f"{k} {v}" for k, v in group.options.items())])
    if says_data:
        name += f", {tested_on(group)}"
    if not group.finished:
        run = group.first
        return f"{name} (unfinished, step {run.step:,} of {run.total_steps:,})"
    count = len(group.finished)
    return f"{name} ({count} {'seed' if count == 1 else 'seeds'})"
