"""What a comparison of two networks finds: rows of a table, and a verdict."""

import functools
import math
from dataclasses import dataclass

import numpy as np

from convert.arrays import is_counter
from convert.diff.measure import Difference
from convert.diff.precision import UNIT_ROUNDOFF, Device, Framework, Precision

# Relative to the largest magnitude of an array. Rounding in float64 starts at 1e-16 and reached
# 1e-12 at most over the depths of the table; the least error worth finding, a float32 weight off
# by its last bit, 6e-8, in one of a few hundred terms of a sum, moves the result by 1e-10.
TOLERANCE = 1e-10
# Where a network is so badly conditioned that rounding exceeds this, rounding is foretold: what it
# is in a lower precision, times the ratio of the two unit roundoffs, with this margin.
ROUNDING_MARGIN = 1000.0
# Two runs of one function differ by no more than both differ from the exact result (the triangle
# inequality): twice the noise of the better one, where both round alike. Different orders of
# summation make that a few times as much; beyond 10, one computes in less than it was asked to.
NOISE_FACTOR = 10.0

SECTIONS = {
    "eval": "activations in eval mode",
    "train": "activations in train mode",
    "gradients": "gradients of the parameters",
    "statistics": "statistics after the step in train mode",
    "weights": "weights as given",
}
ACTIVATIONS = ("eval", "train")


@dataclass(frozen=True)
class Row:
    """One layer's output, or one array.

    Attributes:
        exact: the difference of both networks in float64 (of weights: as they are).
        reduced: their difference in the precision asked for; None where that is float64.
        noise: relative difference of that precision from float64 within one network, the smaller
            of the two networks'; at least the precision's unit roundoff.
        tolerance: what `exact.relative` may reach.
        note: what else is to be said, else empty.
    """

    name: str
    exact: Difference
    reduced: Difference | None = None
    noise: float | None = None
    tolerance: float = 0.0
    note: str = ""

    @property
    def parts(self) -> bool:
        """Whether the difference is more than rounding in float64."""
        return not self.exact.relative <= self.tolerance

    @property
    def noise_ratio(self) -> float | None:
        """How many times the rounding noise the difference in the lower precision is."""
        if self.reduced is None or self.noise is None:
            return None
        return self.reduced.relative / self.noise

    @property
    def overflows(self) -> bool:
        """Whether values are not finite in the lower precision, though in float64 they are."""
        is_lost = self.reduced is not None and math.isinf(self.reduced.relative)
        return is_lost and math.isfinite(self.exact.relative)

    @property
    def is_counter(self) -> bool:
        """Whether it counts batches, which no function of the network depends on."""
        return is_counter(self.name)

    @property
    def is_noisy(self) -> bool:
        """Whether the lower precision differs by more than its rounding explains."""
        return self.noise_ratio is not None and not self.noise_ratio <= NOISE_FACTOR


def tolerance(noise: float | None, precision: Precision) -> float:
    """Of a relative difference in float64, given the noise of a lower precision."""
    if noise is None or not math.isfinite(noise):
        return TOLERANCE
    foretold = noise * UNIT_ROUNDOFF["f64"] / UNIT_ROUNDOFF[precision]
    return max(TOLERANCE, ROUNDING_MARGIN * foretold)


@dataclass(frozen=True)
class Verdict:
    """Whether two networks are the same, and if not, why.

    Attributes:
        same: same function and same weights, found out in full precision.
        same_function: in float64 all activations, gradients and statistics are finite and agree.
            `num_batches_tracked` is left out, which peers drop and nothing is computed from: where
            it alone differs, this is true, `same` is false, and `reasons` say so.
        first_layer: the layer, by our name, where they part; None where they do not.
        reasons: why they are not called the same, a sentence each; empty where they are.
        lines: the findings, a sentence each, the conclusion last.
    """

    same: bool
    same_function: bool
    first_layer: str | None
    reasons: tuple[str, ...]
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Two networks on one batch of images.

    Attributes:
        titles: what the two are called.
        frameworks: of the two, "torch" or "flax".
        images: shape of the batch (n, h, w, c).
        flags: the flags that reduced the precision.
        only: names of tensors that only one of the two has.
        described: in which fields the two say that they compute something else.
        described_training: in which they say that they train otherwise.
        sections: rows by a key of `SECTIONS`, activations in the order of the forward pass.
        verdict: see `Verdict`.
    """

    titles: tuple[str, str]
    frameworks: tuple[Framework, Framework]
    precision: Precision
    device: Device
    images: tuple[int, ...]
    flags: tuple[str, ...]
    only: tuple[tuple[str, ...], tuple[str, ...]]
    described: tuple[str, ...]
    described_training: tuple[str, ...]
    sections: dict[str, tuple[Row, ...]]

    @functools.cached_property
    def verdict(self) -> Verdict:
        from convert.diff.verdict import judge

        return judge(self)

    def first_parting(self, section: str) -> Row | None:
        """The first row that parts, in the order in which its values are computed.

        Gradients come the other way round: the last layer's are computed first. A counter is the
        first only where counters alone part.
        """
        rows = self.sections[section]
        ordered = reversed(rows) if section == "gradients" else rows
        return min((row for row in ordered if row.parts), key=lambda r: r.is_counter, default=None)


def layer_of(name: str) -> str:
    """`stages.0.0.conv1.weight` -> `stages.0.0.conv1`."""
    return name.rpartition(".")[0]


def least_noise(precision: Precision, *noises: float) -> float:
    """The noise to hold a difference against; one network that is too noisy does not hide it."""
    return max(UNIT_ROUNDOFF[precision], float(np.nanmin(noises)))
