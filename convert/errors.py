"""The one error of the converter."""

import itertools
from collections.abc import Iterator, Sequence

_KINDS = ("missing", "left over", "shape")  # what a problem of one tensor begins with
_MOST, _EXAMPLES = 8, 5  # such problems in a message


class ConversionError(ValueError):
    """Weights, a file or a layout that does not fit.

    The message lists every problem; of many tensors that do not fit it shows some.

    Attributes:
        what: what does not fit, in a sentence.
        problems: why, a sentence each; all of them.
    """

    def __init__(self, what: str, problems: Sequence[str] = ()):
        self.what, self.problems = what, list(problems)
        super().__init__("\n  ".join([what, *shorten(self.problems)]) if problems else what)


def shorten(problems: Sequence[str]) -> Iterator[str]:
    """The problems with a few examples of each kind in place of many tensors."""
    of_kinds = [[p for p in problems if p.startswith(f"{kind}: ")] for kind in _KINDS]
    total = sum(map(len, of_kinds))
    if total <= _MOST:
        yield from problems
        return
    in_turns = (p for ps in itertools.zip_longest(*of_kinds) for p in ps if p is not None)
    examples = {*itertools.islice(in_turns, _EXAMPLES)}
    counts = [f"{len(ps)} {kind}" for kind, ps in zip(_KINDS, of_kinds, strict=True) if ps]
    last = [p for ps in of_kinds for p in ps if p in examples][-1]
    for problem in problems:
        if problem in examples or not problem.startswith(tuple(f"{k}: " for k in _KINDS)):
            yield problem
        if problem == last:
            yield f"and {total - len(examples)} more tensors: {', '.join(counts)} in all"
