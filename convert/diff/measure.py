"""How far two arrays are apart."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Difference:
    """Two arrays, element by element.

    Attributes:
        absolute: largest difference; infinite where shapes or non-finite values differ.
        relative: the same over the largest magnitude in either array.
        cosine: of the angle between them; NaN where one is all zeros or the shapes differ.
    """

    absolute: float
    relative: float
    cosine: float


APART = Difference(np.inf, np.inf, np.nan)


def measure(one: np.ndarray, other: np.ndarray, smallest_scale: float = 0.0) -> Difference:
    """The difference of two arrays of any real dtypes, taken in float64.

    Args:
        one: an array; NaNs and infinities that are equal in both count as no difference.
        other: likewise.
        smallest_scale: what `relative` divides by where both arrays are smaller than this.
    """
    if one.shape != other.shape:
        return APART
    one, other = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    equal = (one == other) | (np.isnan(one) & np.isnan(other))
    finite = np.isfinite(one) & np.isfinite(other)
    if not np.all(equal | finite):
        return APART
    one, other = one[finite], other[finite]
    absolute = largest(one - other)
    scale = max(largest(one), largest(other), smallest_scale)
    relative = absolute / scale if absolute else 0.0
    return Difference(absolute, relative, _cosine(one, other))


def measure_finite(one: np.ndarray, other: np.ndarray, smallest_scale: float = 0.0) -> Difference:
    """As `measure`, but NaN and infinity are as far as can be from anything, themselves too."""
    if not (is_finite(one) and is_finite(other)):
        return APART
    return measure(one, other, smallest_scale)


def is_finite(array: np.ndarray) -> bool:
    """Whether no value is NaN or infinite."""
    return bool(np.isfinite(array).all())


def largest(array: np.ndarray) -> float:
    """The largest magnitude, 0 of nothing."""
    return float(np.abs(array).max()) if array.size else 0.0


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    scales = largest(one), largest(other)
    if not all(scales):
        return np.nan
    one, other = one / scales[0], other / scales[1]  # no square of theirs overflows or vanishes
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))
