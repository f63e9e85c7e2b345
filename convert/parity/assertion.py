"""An assertion that two networks are the same, for tests."""

from typing import Any

from convert.parity.compare import compare
from convert.parity.report import Report


class ParityError(AssertionError):
    """Two networks are not the same; the message is the report's table."""

    def __init__(self, report: Report):
        super().__init__(report.table())
        self.report = report


def assert_same(model_a: Any, model_b: Any, images: Any, *args: Any, **options: Any) -> Report:
    """Asserts that two networks are the same, by all that `compare` compares.

    Args:
        model_a: a torch, NNX or linen module.
        model_b: likewise.
        images: a batch.
        args: as `compare` takes them.
        options: likewise.

    Raises:
        ParityError: they are not; only counters of batches may differ.
        ConversionError: as `compare`.
    """
    __tracebackhide__ = True  # of pytest
    report = compare(model_a, model_b, images, *args, **options)
    if not (report.verdict.same or report.verdict.only_counters):
        raise ParityError(report)
    return report
