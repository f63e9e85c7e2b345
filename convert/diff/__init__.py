"""Where two networks part: layer by layer, rounding told apart from error."""

from convert.diff.compare import compare
from convert.diff.comparison import Comparison, Row, Verdict
from convert.diff.measure import Difference, measure

__all__ = ["Comparison", "Difference", "Row", "Verdict", "compare", "measure"]
