"""`resnet-convert diff`: `convert.parity` for files and runs."""

from convert.parity import Comparison, Difference, Row, Verdict, compare, measure

__all__ = ["Comparison", "Difference", "Row", "Verdict", "compare", "measure"]
