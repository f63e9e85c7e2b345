"""Which of a run's checkpoints is the best, and that it is kept."""

from collections.abc import Mapping, Sequence
from typing import Any


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
