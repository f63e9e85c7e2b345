"""The one error of the converter."""

from collections.abc import Sequence


class ConversionError(ValueError):
    """Weights, a file or a layout that does not fit; the message lists every problem."""

    def __init__(self, what: str, problems: Sequence[str] = ()):
        self.what, self.problems = what, list(problems)
        super().__init__("\n  ".join([what, *self.problems]) if problems else what)
