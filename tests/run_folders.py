"""What training runs left in their folders, for comparison bit for bit."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convert.runs.saved_run import find_checkpoint, read_checkpoint

_CLOCK = ("images_per_second",)  # differs between equal runs


def arrays(run: Path, step: int | None = None) -> dict[str, np.ndarray]:
    """All of a checkpoint, the newest by default: `model/head.bias`, `optimizer/...`, `ema/...`."""
    folder = find_checkpoint(run, step)
    items = tuple(name for name in ("model", "optimizer", "ema") if (folder / name).is_dir())
    found = read_checkpoint(folder, items).items
    named = {f"{item}/{name}": a for item, leaves in found.items() for name, a in leaves.items()}
    assert named
    return named


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, but for what the clock says."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in _CLOCK} for line in lines]


def assert_same(one: Path, other: Path, step: int | None = None) -> None:
    """Two runs are the same bit for bit, their metrics too."""
    first, second = arrays(one, step), arrays(other, step)
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert array.dtype == second[name].dtype, name
        np.testing.assert_array_equal(array, second[name], err_msg=name)
    assert metrics(one) == metrics(other)


def largest_difference(
    one: Path, other: Path, items: Sequence[str] = ("model", "optimizer", "ema")
) -> float:
    """Of any two arrays of some items, relative to the largest magnitude in each."""
    first, second = arrays(one), arrays(other)
    assert first.keys() == second.keys()
    names = [name for name in first if name.startswith(tuple(items))]
    assert names
    return max(_relative(first[name], second[name]) for name in names)


def _relative(array: np.ndarray, expected: np.ndarray) -> float:
    difference = np.abs(array.astype(np.float64) - expected)
    return float(np.max(difference) / max(np.max(np.abs(expected)), np.finfo(np.float64).tiny))
