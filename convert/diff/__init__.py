"""Compares two networks layer by layer, and tells rounding from real differences."""

from convert.diff.compare import compare
from convert.diff.comparison import Comparison, Difference, Row, Verdict, measure

__all__ = ["Comparison", "Difference", "Row", "Verdict", "compare", "measure"]
