"""Which of a run's checkpoints is the best, and that it is kept."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.runs.disk_format import DamageError, read_documents, reseal


class Best:
    """A preservation policy of Orbax's that keeps the checkpoint of the lowest error.

    Orbax's `BestN` reads errors from a file that nobody verifies. `errors` are by step, and may
    change afterwards.
    """

    def __init__(self, errors: Mapping[int, float]):
        self._errors = errors

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        best = find_best(self._errors, [info.step for info in checkpoints])
        return [info.step == best for info in checkpoints]


def find_best(errors: Mapping[int, float], steps: Sequence[int]) -> int | None:
    """Of these steps, that of the lowest error, the newest of several; None if none has any."""
    tested = [step for step in steps if step in errors]
    return min(tested, key=lambda step: (errors[step], -step), default=None)


def list_steps(folder: Path) -> list[int]:
    """Those of a folder's checkpoints, in order."""
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def read_errors(folder: Path) -> dict[int, float]:
    """The test errors of a folder's checkpoints, by step; of those that say it."""
    errors: dict[int, float] = {}
    for step in list_steps(folder):
        with contextlib.suppress(DamageError):  # named when it is to be restored
            error = read_documents(folder / str(step)).progress.get("error")
            if error is not None:
                errors[step] = error
    return errors


def add_error(folder: Path, step: int, error: float | None) -> dict[int, float]:
    """Writes the test error of a checkpoint that was saved before it was tested; what is new.

    Raises:
        OSError: it cannot be written.
    """
    progress = read_documents(folder / str(step)).progress
    if error is None or not progress or progress.get("error") is not None:
        return {}
    reseal(folder / str(step), {"error": error})
    return {step: error}
