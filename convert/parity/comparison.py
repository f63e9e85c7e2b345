"""What a comparison of two networks finds: differences of arrays, rows of tables, a verdict."""

import math
from dataclasses import dataclass

import numpy as np

from convert.arrays import is_counter
from convert.parity.precision import Device, Framework, Precision

# Relative to the largest magnitude of an array. Rounding in float64 starts at 1e-16 and reached at
# most 1e-12 over the depths of the table. The smallest error worth finding is a float32 weight
# whose last bit is wrong (6e-8): in one of a few hundred terms of a sum it moves the result by
# 1e-10.
TOLERANCE = 1e-10
# Two runs of one function differ by no more than the sum of their differences from the exact result
# (triangle inequality): twice the noise of the better one, if both round alike. Other orders of
# summation make that a few times as much. Beyond 10, one computes in less precision than asked.
NOISE_FACTOR = 10.0

SECTIONS = {
    "eval": "activations in eval mode",
    "train": "activations in train mode",
    "gradients": "gradients of the parameters",
    "statistics": "statistics after the step in train mode",
    "steps": "parameters after steps of the optimiser",
    "weights": "weights as given",
}
ACTIVATIONS = ("eval", "train")
BIASED = "biased running variance"  # what the note of a row calls it


@dataclass(frozen=True)
class Difference:
    """How far two arrays are apart.

    Attributes:
        absolute: largest difference; infinite if the shapes or the non-finite values differ.
        relative: the same, divided by the largest magnitude in either array.
        cosine: of the angle between them; NaN if one is all zeros or the shapes differ.
    """

    absolute: float
    relative: float
    cosine: float


APART = Difference(np.inf, np.inf, np.nan)


def measure(one: np.ndarray, other: np.ndarray, smallest_scale: float = 0.0) -> Difference:
    """The difference of two arrays of any real dtypes, computed in float64.

    Args:
        one: an array; NaNs and infinities that are equal in both count as no difference.
        other: likewise.
        smallest_scale: what `relative` divides by if both arrays are smaller than this.
    """
    if one.shape != other.shape:
        return APART
    one, other = (array.astype(np.float64, copy=False).ravel() for array in (one, other))
    finite = np.isfinite(one) & np.isfinite(other)
    if not finite.all():
        equal = (one == other) | (np.isnan(one) & np.isnan(other))
        if not np.all(equal | finite):
            return APART
        one, other = one[finite], other[finite]
    absolute = largest(one - other)
    scales = largest(one), largest(other)
    scale = max(*scales, smallest_scale)
    return Difference(absolute, absolute / scale if absolute else 0.0, _cosine(one, other, scales))


def largest(array: np.ndarray) -> float:
    """The largest magnitude; 0 for an empty array."""
    return float(max(abs(array.max()), abs(array.min()))) if array.size else 0.0


def _cosine(one: np.ndarray, other: np.ndarray, scales: tuple[float, float]) -> float:
    if not all(scales):
        return np.nan
    one, other = one / scales[0], other / scales[1]  # their squares neither overflow nor vanish
    return float(_dot(one, other) / np.sqrt(_dot(one, one) * _dot(other, other)))


def _dot(one: np.ndarray, other: np.ndarray) -> np.float64:
    """By one thread: those of `@` wait for each other longer than the sum takes."""
    return np.einsum("i,i->", one, other)


@dataclass(frozen=True)
class Row:
    """The comparison of one layer's output, or of one array.

    Attributes:
        exact: the difference of both networks in float64 (of weights: as they are).
        reduced: their difference in the requested precision; None if that is float64.
        noise: relative difference between that precision and float64 within one network, the
            smaller of the two networks'; at least the unit roundoff of the precision.
        tolerance: the largest `exact.relative` that counts as rounding.
        note: a remark for the reader; may be empty.
        is_allowed: whether the caller allows what the note says.
    """

    name: str
    exact: Difference
    reduced: Difference | None = None
    noise: float | None = None
    tolerance: float = 0.0
    note: str = ""
    is_allowed: bool = False

    @property
    def differs(self) -> bool:
        """Whether the difference is more than rounding in float64, and not allowed."""
        return not self.is_allowed and not self.exact.relative <= self.tolerance

    @property
    def noise_ratio(self) -> float | None:
        """The difference in the lower precision, as a multiple of the rounding noise."""
        if self.reduced is None or self.noise is None:
            return None
        return self.reduced.relative / self.noise

    @property
    def overflows(self) -> bool:
        """Whether values are finite in float64 and not in the lower precision."""
        is_lost = self.reduced is not None and math.isinf(self.reduced.relative)
        return is_lost and math.isfinite(self.exact.relative)

    @property
    def is_counter(self) -> bool:
        """Whether it counts batches; no output of the network depends on that."""
        return is_counter(self.name)

    @property
    def is_noisy(self) -> bool:
        """Whether rounding does not explain the difference in the lower precision."""
        return self.noise_ratio is not None and not self.noise_ratio <= NOISE_FACTOR


@dataclass(frozen=True)
class Hint:
    """A mistake that explains the first difference: with it, torch computes the same.

    Attributes:
        layer: where the two first differ.
        cause: "epsilon", "momentum", "running variance", "SAME padding", "transposed kernel",
            "swapped statistics", "GELU", "align_corners", "flatten order" or "max pool padding".
        text: what was tried, in a sentence.
    """

    layer: str
    cause: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """Whether two networks are the same, and if not, why.

    Attributes:
        same: same function and same weights, compared in full precision.
        same_function: in float64 all activations, gradients and statistics are finite and agree.
            `num_batches_tracked` does not count: other packages drop it, and nothing is computed
            from it. If only counters differ, this is true, `same` is false, and `reasons` say so.
        only_counters: they are not the same, but all that differs are counters of batches.
        first_layer: where they first differ, by the first network's name; None if they do not.
        reasons: why they are not the same, one sentence each; empty if they are.
        lines: the findings, one sentence each, the conclusion last.
    """

    same: bool
    same_function: bool
    only_counters: bool
    first_layer: str | None
    reasons: tuple[str, ...]
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Findings:
    """The measurements on two networks and one batch of images.

    Attributes:
        titles: the names of the two in reports.
        frameworks: of the two, "torch" or "flax".
        images: shape of the batch, (n, h, w, c) if it has four axes.
        flags: the settings that reduced the precision.
        only: names of tensors that only one of the two has, and of what only one returns.
        unpaired: layers of the two that have no partner, and are not compared.
        beside_logits: what models of transformers return beside their logits; it is not compared.
        described: fields in which their descriptions compute something else.
        described_training: fields in which their descriptions train differently.
        sections: rows by a key of `SECTIONS`; activations in the order of the forward pass.
        hints: mistakes that explain the first difference; empty if none of the usual ones does.
    """

    titles: tuple[str, str]
    frameworks: tuple[Framework, Framework]
    precision: Precision
    device: Device
    images: tuple[int, ...]
    flags: tuple[str, ...]
    only: tuple[tuple[str, ...], tuple[str, ...]]
    unpaired: tuple[tuple[str, ...], tuple[str, ...]]
    beside_logits: tuple[tuple[str, ...], tuple[str, ...]]
    described: tuple[str, ...]
    described_training: tuple[str, ...]
    sections: dict[str, tuple[Row, ...]]
    hints: tuple[Hint, ...]

    def first_in(self, section: str) -> Row | None:
        """The first row that differs, in the order in which its values are computed.

        Gradients are computed backward, the last layer's first. Counters come after all others.
        """
        rows = self.sections.get(section, ())
        ordered = reversed(rows) if section == "gradients" else rows
        return min((r for r in ordered if r.differs), key=lambda r: r.is_counter, default=None)


@dataclass(frozen=True)
class Comparison(Findings):
    """Two networks on one batch of images: the measurements and the verdict on them."""

    verdict: Verdict

    @property
    def first_difference(self) -> str | None:
        """The layer where they first differ, by the first network's name."""
        return self.verdict.first_layer


def layer_of(name: str) -> str:
    """`stages.0.0.conv1.weight` -> `stages.0.0.conv1`."""
    return name.rpartition(".")[0]
