"""Compares two networks layer by layer, and tells rounding from real differences."""

from convert.parity.assertion import ParityError, assert_same
from convert.parity.compare import compare
from convert.parity.comparison import Comparison, Difference, Hint, Row, Verdict, measure
from convert.parity.report import Report

__all__ = [
    "Comparison",
    "Difference",
    "Hint",
    "ParityError",
    "Report",
    "Row",
    "Verdict",
    "assert_same",
    "compare",
    "measure",
]
