"""From the rows of a comparison to a verdict and its reasons."""

import math
from collections.abc import Sequence

from convert.arrays import is_counter
from convert.parity.comparison import (
    ACTIVATIONS,
    BIASED,
    NOISE_FACTOR,
    SECTIONS,
    Findings,
    Row,
    Verdict,
    layer_of,
)
from convert.parity.probe import OUTPUT
from resnet_spec import RATES

_FUNCTION = ("eval", "train", "gradients", "statistics", "steps")
_FULL_NAMES = {"f64": "float64", "f32": "float32", "bf16": "bfloat16", "tf32": "TF32"}
_MOST_NAMES = 5


def judge(findings: Findings) -> Verdict:
    """The verdict: the same only if nothing at all speaks against it."""
    sections = findings.sections
    structure = [
        f"only {title} has {_enumerate(names)}"
        for title, names in zip(findings.titles, findings.only, strict=True)
        if names
    ]
    firsts = [
        (section, row) for section in SECTIONS if (row := findings.first_in(section)) is not None
    ]
    noisy = _first_noisy(findings)
    has_other_arrays = not all(is_counter(name) for names in findings.only for name in names)
    differing = {section for section, row in firsts if not row.is_counter}
    seems_same = not has_other_arrays and not differing & set(_FUNCTION)
    same_function = seems_same and not findings.described
    unseen = ", which these images do not show" if seems_same else ""
    reasons = [
        *structure,
        *(f"the description of B differs{unseen}: {d}" for d in findings.described),
        *(f"{SECTIONS[s]}: {_describe(row, sections[s])}" for s, row in firsts),
        *_biased(sections["statistics"]),
    ]
    if noisy is not None and same_function:
        reasons.append(_describe_noise(noisy, findings))
    reasons += [f"the precision is reduced: {flag}" for flag in findings.flags]
    is_reduced = findings.precision == "tf32"
    if is_reduced:
        reasons.append("TF32 was requested, which cannot show that two networks are the same")
    differs = bool(has_other_arrays or differing or findings.described or (noisy and same_function))
    first_layer = _first_layer(findings, noisy) if differs else None
    conclusion = _conclude(findings, reasons, differs, first_layer)
    return Verdict(
        same=not reasons,
        same_function=same_function,
        only_counters=bool(reasons) and not (differs or findings.flags or is_reduced),
        first_layer=first_layer,
        reasons=tuple(reasons),
        lines=(*_summarise(findings, same_function), conclusion),
    )


def _biased(statistics: Sequence[Row]) -> list[str]:
    """What the difference of running variances is, if one is biased."""
    names = [row.name for row in statistics if row.differs and row.note == BIASED]
    others = sum(row.differs for row in statistics) - len(names)
    if not names:
        return []
    return [
        f"one keeps a biased running variance, as Flax's own BatchNorm does, in {_enumerate(names)}"
        f"; {others or 'no'} other statistics differ: allow={BIASED!r} accepts it"
    ]


def _first_noisy(findings: Findings) -> tuple[str, Row] | None:
    """The first activation that differs by more than rounding in the lower precision.

    Gradients are not compared with noise. The frameworks sum a kernel's gradient in very different
    orders (17 times the noise of the better one was seen between twins), and gradients jump if
    rounding moves a value across the kink of a ReLU in only one network.
    """
    sections = findings.sections
    rows = ((section, row) for section in _FUNCTION for row in sections.get(section, ()))
    return next(
        ((s, row) for s, row in rows if row.overflows or (s in ACTIVATIONS and row.is_noisy)), None
    )


def _first_layer(findings: Findings, noisy: tuple[str, Row] | None) -> str | None:
    """The earliest layer, in the forward pass, whose activation or statistic differs.

    Without one, the last whose gradient differs (computed first, backward), the first whose
    weights do, or the first that is noisy in the lower precision.
    """
    place = {row.name: number for number, row in enumerate(findings.sections["eval"])}
    found: dict[str, str] = {}
    for section in SECTIONS:
        row = findings.first_in(section)
        if row is not None and not row.is_counter:
            found[section] = _layer(section, row)
    if forward := [found[s] for s in ("eval", "train", "statistics") if s in found]:
        return min(forward, key=lambda layer: place.get(layer, len(place)))
    if outputs := [n for names in findings.only for n in names if n.partition(".")[0] == OUTPUT]:
        return outputs[0]
    for section in ("gradients", "steps", "weights"):
        if section in found:
            return found[section]
    return None if noisy is None else _layer(*noisy)


def _layer(section: str, row: Row) -> str:
    return row.name if section in ACTIVATIONS else layer_of(row.name)


def _summarise(findings: Findings, same_function: bool) -> list[str]:
    found = findings.sections
    rows = [
        (s, row)
        for s in _FUNCTION
        for row in found.get(s, ())
        if not row.is_counter and not row.is_allowed
    ]
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
        for row in findings.sections[s]
        if (ratio := row.noise_ratio) is not None and not math.isnan(ratio)
    ]
    if ratios:
        ratio, section, row = max(ratios, key=lambda entry: entry[0])
        lines.append(
            f"{_FULL_NAMES[findings.precision]} difference is at most {times(ratio)} times the "
            f"rounding noise ({row.name}, {section})"
        )
    if allowed := [row for row in found["statistics"] if row.is_allowed]:
        lines.append(f"allowed: {allowed[0].note} ({_enumerate([row.name for row in allowed])})")
    for title, names in zip(findings.titles, findings.unpaired, strict=True):
        if names:
            lines.append(f"not compared: only {title} has the layers {_enumerate(names)}")
    for title, names in zip(findings.titles, findings.beside_logits, strict=True):
        if names:
            lines.append(f"not compared: {title} also returns {_enumerate(names)}, beside logits")
    weights = found["weights"]
    same_bits = sum(row.note == "same bits" for row in weights)
    lines.append(f"weights: {same_bits} of {len(weights)} arrays have the same bits")
    if others := findings.described_training:
        has_rates = any(other.startswith(RATES) for other in others)
        here = " (this comparison drops nothing at random)" if has_rates else ""
        lines.append(f"note: B trains differently by its description: {'; '.join(others)}{here}")
    lines += [f"{hint.cause}: {hint.text}" for hint in findings.hints]
    return lines


def _conclude(
    findings: Findings, reasons: Sequence[str], differs: bool, first_layer: str | None
) -> str:
    if not reasons:
        return "verdict: the same"
    if differs:
        where = f", first at {first_layer}" if first_layer else ""
        return f"verdict: they differ{where}"
    if findings.precision == "tf32":
        return "verdict: the same within TF32, which is not equal"
    return f"verdict: not called the same, {reasons[0]}"


def _describe(row: Row, rows: Sequence[Row]) -> str:
    count = sum(row.differs for row in rows)
    where = f"{row.name} differs" + ("" if count == 1 else f" first, of {count} of {len(rows)}")
    if row.is_counter:
        return f"{where} (only counters differ, and no result depends on them)"
    if row.note.startswith(("shape", "not finite", "not moved")):
        return f"{where} ({row.note})"
    bound = f", tolerance {row.tolerance:.0e}" if row.tolerance else ""
    return f"{where} ({row.exact.relative:.1e} of the largest magnitude{bound})"


def _describe_noise(noisy: tuple[str, Row], findings: Findings) -> str:
    section, row = noisy
    where = f"{SECTIONS[section]}: in {_FULL_NAMES[findings.precision]} {row.name}"
    if row.overflows:
        return f"{where} has values that are not finite, although all are finite in float64"
    return (
        f"{where} differs by {times(row.noise_ratio)} times the rounding noise (at most "
        f"{NOISE_FACTOR:g}), but not in float64: one of the two computes in less precision than "
        "requested"
    )


def times(ratio: float | None) -> str:
    """A multiple as text: `2.3` or `2431`."""
    return "" if ratio is None else f"{ratio:.2g}" if ratio < 100 else f"{ratio:.0f}"


def _enumerate(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES])
    more = len(names) - _MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown
