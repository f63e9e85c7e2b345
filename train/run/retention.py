"""Finds and keeps the best of a run's checkpoints."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.runs.disk_format import DamageError, read_documents, reseal


class Best:
    """A preservation policy for Orbax that keeps the checkpoint with the lowest error.

    Orbax's own `BestN` reads errors from a file without a checksum. `errors`, by step, may change
    later.
    """

    def __init__(self, errors: Mapping[int, float]):
        self._errors = errors

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        best = find_best(self._errors, [info.step for info in checkpoints])
        return [info.step == best for info in checkpoints]


def find_best(errors: Mapping[int, float], steps: Sequence[int]) -> int | None:
    """The step with the lowest error, the newest of several; None if none was tested."""
    tested = [step for step in steps if step in errors]
    return min(tested, key=lambda step: (errors[step], -step), default=None)


def list_steps(folder: Path) -> list[int]:
    """The steps of a folder's checkpoints, in order."""
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def read_errors(folder: Path) -> dict[int, float]:
    """The test errors of a folder's tested checkpoints, by step."""
    errors: dict[int, float] = {}
    for step in list_steps(folder):
        with contextlib.suppress(DamageError):  # reported when it is restored
            error = read_documents(folder / str(step)).progress.get("error")
            if error is not None:
                errors[step] = error
    return errors


def add_error(folder: Path, step: int, error: float | None) -> dict[int, float]:
    """Adds a checkpoint's test error, if it has none; returns what is new. OSError if it cannot."""
    progress = read_documents(folder / str(step)).progress
    if error is None or not progress or progress.get("error") is not None:
        return {}
    reseal(folder / str(step), {"error": error})
    return {step: error}
