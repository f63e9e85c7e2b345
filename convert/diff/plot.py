"""Divergence by depth as an SVG picture."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from convert.diff.comparison import ACTIVATIONS, TOLERANCE, Comparison, Row

_WIDTH, _HEIGHT = 1000, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 984, 24, 340
_LEAST, _MOST = -18, 2  # powers of ten; no difference at all is drawn at the bottom
_MOST_LABELS = 24


@dataclass(frozen=True)
class _Curve:
    """One value for each layer; `style` is a CSS class."""

    label: str
    style: str
    rows: Sequence[Row]
    value: Callable[[Row], float | None]


def plot(comparison: Comparison) -> str:
    """An `<svg>` element: relative difference of each layer's output, on a logarithmic scale.

    Its colours are the classes `eval`, `train`, `noise`, `bound`, `axis` and `first` of the page.
    """
    layers = [row.name for row in comparison.sections["eval"]]
    place = {name: number for number, name in enumerate(layers)}
    curves = _curves(comparison)
    powers = [
        math.log10(value)
        for curve in curves
        for row in curve.rows
        if (value := curve.value(row)) is not None and 0 < value < math.inf
    ]
    low = max(_LEAST, math.floor(min(powers, default=-16)) - 1)
    high = min(_MOST, max(math.ceil(max(powers, default=-16)), math.log10(TOLERANCE) + 1))
    scale = _Scale(len(layers), low, math.ceil(high))
    parts = [*_axes(scale, layers), *_bound(scale)]
    if (first := comparison.verdict.first_layer) in place:
        parts += _first(scale, place[first], first)
    for curve in curves:
        parts += _draw(curve, scale, place)
    label = "relative difference of each layer's output, in the order of the forward pass"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
        + "".join(parts)
        + "</svg>"
    )


def legend(comparison: Comparison) -> list[tuple[str, str]]:
    """(CSS class, text) of every line in the plot."""
    lines = [(curve.style, curve.label) for curve in _curves(comparison)]
    return [*lines, ("bound", f"tolerance of float64, {TOLERANCE:.0e}")]


def _curves(comparison: Comparison) -> list[_Curve]:
    sections, precision = comparison.sections, comparison.precision
    curves = [
        _Curve(f"float64, {mode}", mode, sections[mode], lambda row: row.exact.relative)
        for mode in ACTIVATIONS
    ]
    if precision == "f64":
        return curves
    less = [
        _Curve(
            f"{precision}, {mode}",
            f"{mode} reduced",
            sections[mode],
            lambda row: None if row.reduced is None else row.reduced.relative,
        )
        for mode in ACTIVATIONS
    ]
    noise = _Curve(
        f"rounding noise of {precision} in one network, train",
        "noise",
        sections["train"],
        lambda row: row.noise,
    )
    return [noise, *less, *curves]


@dataclass(frozen=True)
class _Scale:
    layers: int
    low: int
    high: int

    def x(self, number: int) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (number + 0.5) / max(self.layers, 1)

    def y(self, value: float) -> float:
        power = self.low if value <= 0 else math.log10(value) if value < math.inf else self.high
        share = (min(max(power, self.low), self.high) - self.low) / (self.high - self.low)
        return _BOTTOM - (_BOTTOM - _TOP) * share


def _axes(scale: _Scale, layers: Sequence[str]) -> list[str]:
    parts: list[str] = []
    for power in range(scale.low, scale.high + 1):
        y = scale.y(10.0**power)
        if power == scale.low or (power - scale.low) % 2 == 0:
            text = "0" if power == scale.low else f'10<tspan dy="-5" font-size="9">{power}</tspan>'
            parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
            parts.append(_line("axis", _LEFT, y, _RIGHT, y))
    every = max(1, math.ceil(len(layers) / _MOST_LABELS))
    for number in range(0, len(layers), every):
        x, y = scale.x(number), _BOTTOM + 12
        parts.append(
            f'<text x="{x:.1f}" y="{y}" text-anchor="end" '
            f'transform="rotate(-50 {x:.1f} {y})">{escape(layers[number])}</text>'
        )
    return parts


def _bound(scale: _Scale) -> list[str]:
    y = scale.y(TOLERANCE)
    return [_line("bound", _LEFT, y, _RIGHT, y)]


def _first(scale: _Scale, number: int, name: str) -> list[str]:
    x = scale.x(number)
    anchor, shift = ("start", 6) if number < scale.layers / 2 else ("end", -6)
    return [
        _line("first", x, _TOP - 10, x, _BOTTOM),
        f'<text class="first" x="{x + shift:.1f}" y="{_TOP - 6}" text-anchor="{anchor}">'
        f"they part at {escape(name)}</text>",
    ]


def _line(style: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _draw(curve: _Curve, scale: _Scale, place: dict[str, int]) -> list[str]:
    points: list[tuple[float, float]] = []
    dots: list[str] = []
    radius = 3 if scale.layers <= 200 else 1.5
    for row in curve.rows:
        value = curve.value(row)
        if value is None or row.name not in place:
            continue
        x, y = scale.x(place[row.name]), scale.y(value)
        points.append((x, y))
        dots.append(
            f'<circle class="{curve.style}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">'
            f"<title>{escape(row.name)}\n{escape(curve.label)}: {value:.2e}</title></circle>"
        )
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return [f'<polyline class="{curve.style}" points="{path}"/>', *dots]
