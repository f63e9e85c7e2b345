"""From the rows of a comparison to a verdict, with its reasons."""

import math
from collections.abc import Sequence

from convert.arrays import is_counter
from convert.diff.comparison import (
    ACTIVATIONS,
    NOISE_FACTOR,
    SECTIONS,
    Comparison,
    Row,
    Verdict,
    layer_of,
)
from resnet_spec import RATES

_FUNCTION = ("eval", "train", "gradients", "statistics")
_FULL_NAMES = {"f64": "float64", "f32": "float32", "bf16": "bfloat16", "tf32": "TF32"}
_MOST_NAMES = 5


def judge(comparison: Comparison) -> Verdict:
    """The verdict: the same only where nothing at all speaks against it."""
    sections = comparison.sections
    structure = [
        f"only {title} has {_enumerate(names)}"
        for title, names in zip(comparison.titles, comparison.only, strict=True)
        if names
    ]
    partings = [
        (section, row)
        for section in SECTIONS
        if (row := comparison.first_parting(section)) is not None
    ]
    noisy = _first_noisy(comparison)
    has_other_arrays = not all(is_counter(name) for names in comparison.only for name in names)
    apart = {section for section, row in partings if not row.is_counter}
    seems_same = not has_other_arrays and not apart & set(_FUNCTION)
    same_function = seems_same and not comparison.described
    unseen = ", which these images do not show" if seems_same else ""
    reasons = [
        *structure,
        *(f"B says that it computes otherwise{unseen}: {d}" for d in comparison.described),
        *(f"{SECTIONS[s]}: {_describe(row, sections[s])}" for s, row in partings),
    ]
    if noisy is not None and same_function:
        reasons.append(_describe_noise(noisy, comparison))
    reasons += [f"the precision is reduced: {flag}" for flag in comparison.flags]
    has_parted = bool(
        has_other_arrays or apart or comparison.described or (noisy and same_function)
    )
    if comparison.precision == "tf32":
        reasons.append("TF32 was asked for, which cannot show that two networks are the same")
    first_layer = _first_layer(comparison, noisy) if has_parted else None
    return Verdict(
        same=not reasons,
        same_function=same_function,
        first_layer=first_layer,
        reasons=tuple(reasons),
        lines=(
            *_findings(comparison, same_function),
            _conclude(comparison, reasons, has_parted, first_layer),
        ),
    )


def _first_noisy(comparison: Comparison) -> tuple[str, Row] | None:
    """The first activation that differs by more than rounding in the lower precision.

    Gradients are not held against noise: the frameworks sum a kernel's in very different orders
    (17 times the noise of the better one was seen between twins), and they jump where rounding
    moves a value across the kink of a ReLU in one network and not in the other.
    """
    return next(
        (
            (section, row)
            for section in _FUNCTION
            for row in comparison.sections[section]
            if row.overflows or (section in ACTIVATIONS and row.is_noisy)
        ),
        None,
    )


def _first_layer(comparison: Comparison, noisy: tuple[str, Row] | None) -> str | None:
    """The earliest layer, in the forward pass, that an activation or a statistic blames.

    Failing these, the last whose gradient parts (backward, it is the first), the first whose
    weights do, and the first that is noisy in the lower precision.
    """
    place = {row.name: number for number, row in enumerate(comparison.sections["eval"])}
    blamed: list[str] = []
    for section in ("eval", "train", "statistics"):
        row = comparison.first_parting(section)
        if row is not None and not row.is_counter:
            blamed.append(row.name if section in ACTIVATIONS else layer_of(row.name))
    if blamed:
        return min(blamed, key=lambda layer: place.get(layer, len(place)))
    for section in ("gradients", "weights"):
        row = comparison.first_parting(section)
        if row is not None and not row.is_counter:
            return layer_of(row.name)
    if noisy is None:
        return None
    section, row = noisy
    return row.name if section in ACTIVATIONS else layer_of(row.name)


def _findings(comparison: Comparison, same_function: bool) -> list[str]:
    rows = [(s, row) for s in _FUNCTION for row in comparison.sections[s] if not row.is_counter]
    lines = [f"same function: {'yes' if same_function else 'no'}"]
    if rows:
        section, row = max(rows, key=lambda entry: entry[1].exact.relative)
        lines[0] += (
            f" (largest relative float64 difference {row.exact.relative:.1e}, "
            f"{row.name}, {section})"
        )
    ratios = [
        (ratio, s, row)
        for s in ACTIVATIONS
        for row in comparison.sections[s]
        if (ratio := row.noise_ratio) is not None and not math.isnan(ratio)
    ]
    if ratios:
        ratio, section, row = max(ratios, key=lambda entry: entry[0])
        lines.append(
            f"{_FULL_NAMES[comparison.precision]} difference is at most {times(ratio)} times the "
            f"rounding noise ({row.name}, {section})"
        )
    weights = comparison.sections["weights"]
    same_bits = sum(row.note == "same bits" for row in weights)
    lines.append(f"weights: {same_bits} of {len(weights)} arrays have the same bits")
    if others := comparison.described_training:
        has_rates = any(other.startswith(RATES) for other in others)
        here = " (here nothing is left out at random)" if has_rates else ""
        lines.append(f"note: B says that it trains otherwise: {'; '.join(others)}{here}")
    return lines


def _conclude(
    comparison: Comparison, reasons: Sequence[str], has_parted: bool, first_layer: str | None
) -> str:
    if not reasons:
        return "verdict: the same"
    if has_parted:
        where = f", first at {first_layer}" if first_layer else ""
        return f"verdict: they part{where}"
    if comparison.precision == "tf32":
        return "verdict: the same within TF32, which is not equal"
    return f"verdict: not called the same, {reasons[0]}"


def _describe(row: Row, rows: Sequence[Row]) -> str:
    count = sum(row.parts for row in rows)
    where = "" if count == 1 else f" first, of {count} of {len(rows)}"
    if row.is_counter:
        return f"{row.name} parts{where} (counters alone do, on which no result depends)"
    if row.note.startswith(("shape", "not finite")):
        return f"{row.name} parts{where} ({row.note})"
    size = f"{row.exact.relative:.1e} of the largest magnitude"
    bound = f", tolerance {row.tolerance:.0e}" if row.tolerance else ""
    return f"{row.name} parts{where} ({size}{bound})"


def _describe_noise(noisy: tuple[str, Row], comparison: Comparison) -> str:
    section, row = noisy
    where = f"{SECTIONS[section]}: in {_FULL_NAMES[comparison.precision]} {row.name}"
    if row.overflows:
        return f"{where} has values that are not finite, though in float64 all are"
    return (
        f"{where} parts by "
        f"{times(row.noise_ratio)} times the rounding noise (at most {NOISE_FACTOR:g}), though not "
        "in float64: one of the two computes in less than it was asked to"
    )


def times(ratio: float | None) -> str:
    """`2.3` or `2431`: how many times."""
    return "" if ratio is None else f"{ratio:.2g}" if ratio < 100 else f"{ratio:.0f}"


def _enumerate(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES])
    more = len(names) - _MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown
