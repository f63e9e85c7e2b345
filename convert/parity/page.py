"""A comparison as one self-contained HTML page, with a plot of the divergence by depth."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from convert.parity.cells import cells, headings
from convert.parity.comparison import ACTIVATIONS, SECTIONS, TOLERANCE, Comparison

_WIDTH, _HEIGHT = 1000, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 984, 24, 340
_LEAST, _MOST = -18, 2  # powers of ten; a difference of zero is drawn at the bottom
_MOST_LABELS = 24

_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c1f23; --faint: #6b7280;
  --grid: #e3e6ea; --eval: #1d5fbf; --train: #c2571a; --noise: #8a8f98; --bad: #b3261e;
  --bad-back: #fdecea; --good: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --back: #16181c; --text: #e6e8eb; --faint: #9aa1ab;
  --grid: #2c3036; --eval: #6ea8fe; --train: #f0955a; --noise: #8a8f98; --bad: #ff8a80;
  --bad-back: #3a1f1d; --good: #57c76f; } }
body { background: var(--back); color: var(--text); max-width: 1080px; margin: 2rem auto;
  padding: 0 1rem; font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.1rem; display: inline; }
.same { color: var(--good); } .different { color: var(--bad); }
.faint, .legend { color: var(--faint); }
.legend span { margin-right: 1.4rem; white-space: nowrap; }
.legend svg { width: 34px; height: 10px; margin-right: 6px; vertical-align: middle; }
svg text { fill: var(--faint); font-size: 11px; }
polyline, line { fill: none; stroke-width: 1.6; }
polyline.eval, line.eval { stroke: var(--eval); } circle.eval { fill: var(--eval); }
polyline.train, line.train { stroke: var(--train); } circle.train { fill: var(--train); }
polyline.noise, line.noise { stroke: var(--noise); stroke-width: 3; opacity: .6; }
circle.noise { fill: var(--noise); opacity: .6; }
polyline.reduced, line.reduced { stroke-dasharray: 5 4; }
circle.reduced { opacity: .75; }
line.axis { stroke: var(--grid); stroke-width: 1; }
line.bound { stroke: var(--faint); stroke-width: 1; stroke-dasharray: 2 4; }
line.first { stroke: var(--bad); stroke-width: 1.5; } svg text.first { fill: var(--bad);
  font-size: 13px; font-weight: 600; }
details { margin-top: 1.2rem; } summary { cursor: pointer; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin-top: .5rem;
  font: 13px/1.4 ui-monospace, monospace; }
th, td { text-align: right; padding: .15rem .6rem; border-bottom: 1px solid var(--grid);
  white-space: nowrap; }
th { color: var(--faint); font-weight: 500; }
th:first-child, td:first-child, td:last-child { text-align: left; }
tr.differs { background: var(--bad-back); } tr.first td { color: var(--bad); font-weight: 700; }
"""


def as_page(comparison: Comparison) -> str:
    """The page's text: verdict, plot and all tables."""
    verdict, curves = comparison.verdict, _curves(comparison)
    title = escape(f"{comparison.titles[0]} against {comparison.titles[1]}")
    lines = "".join(f"<li>{escape(line)}</li>" for line in verdict.lines[:-1])
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in verdict.reasons)
    batch = " x ".join(map(str, comparison.images))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{title}</h1>\n"
        f'<p class="faint">{" and ".join(comparison.frameworks)}, images {batch}, '
        f"{comparison.precision} beside float64, on {comparison.device}</p>\n"
        f'<p class="{"same" if verdict.same else "different"}">'
        f"<strong>{escape(verdict.lines[-1])}</strong></p>\n<ul>{lines}</ul>\n"
        + (f"<p>Why:</p><ul>{reasons}</ul>\n" if reasons else "")
        + _unpaired(comparison)
        + "<h2>Relative difference of each layer's output</h2>\n"
        f'<p class="legend">{_legend(curves)}</p>\n{_plot(comparison, curves)}\n'
        + "\n".join(_table(comparison, section) for section in comparison.sections)
        + "\n</body></html>\n"
    )


def _unpaired(comparison: Comparison) -> str:
    """The layers that have no partner, all of them."""
    pairs = zip(comparison.titles, comparison.unpaired, strict=True)
    lists = [
        f'<p class="faint">Layers that only {escape(title)} has: {escape(", ".join(names))}</p>\n'
        for title, names in pairs
        if names
    ]
    return "".join(lists)


def _table(comparison: Comparison, section: str) -> str:
    rows, first = comparison.sections[section], comparison.first_in(section)
    head = "".join(f"<th>{escape(text)}</th>" for text in headings(comparison, section))
    body: list[str] = []
    for row in rows:
        style = "differs first" if row is first else "differs" if row.differs else ""
        texts = cells(comparison, section, row)
        data = "".join(f"<td>{escape(text)}</td>" for text in texts)
        body.append(f'<tr class="{style}">{data}</tr>' if style else f"<tr>{data}</tr>")
    differing = sum(row.differs for row in rows)
    count = f"{differing or 'none'} of {len(rows)} differ"
    is_open = " open" if section in ACTIVATIONS or differing else ""
    return (
        f"<details{is_open}><summary><h2>{escape(SECTIONS[section].capitalize())}</h2> "
        f'<span class="faint">({count})</span></summary><div class="table"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div></details>"
    )


class _Curve(NamedTuple):
    """A line of the plot: a value for each layer."""

    label: str
    style: str  # a CSS class
    values: dict[str, float]


def _curves(comparison: Comparison) -> list[_Curve]:
    sections, precision = comparison.sections, comparison.precision
    exact, reduced = [], []
    for mode in ACTIVATIONS:
        values = {row.name: row.exact.relative for row in sections[mode]}
        exact.append(_Curve(f"float64, {mode}", mode, values))
        values = {row.name: row.reduced.relative for row in sections[mode] if row.reduced}
        reduced.append(_Curve(f"{precision}, {mode}", f"{mode} reduced", values))
    if precision == "f64":
        return exact
    values = {row.name: row.noise for row in sections["train"] if row.noise is not None}
    noise = _Curve(f"rounding noise of {precision} in one network, train", "noise", values)
    return [noise, *reduced, *exact]


def _legend(curves: Sequence[_Curve]) -> str:
    lines = [(curve.style, curve.label) for curve in curves]
    return "".join(
        f'<span><svg viewBox="0 0 34 10"><line class="{style}" x1="0" y1="5" x2="34" y2="5"/>'
        f"</svg>{escape(text)}</span>"
        for style, text in [*lines, ("bound", f"tolerance of float64, {TOLERANCE:.0e}")]
    )


def _plot(comparison: Comparison, curves: Sequence[_Curve]) -> str:
    """An `<svg>` element: relative difference of each layer's output, on a logarithmic scale.

    Its colours are the classes `eval`, `train`, `noise`, `bound`, `axis` and `first` of `_STYLE`.
    """
    place = {row.name: number for number, row in enumerate(comparison.sections["eval"])}
    values = [value for curve in curves for value in curve.values.values()]
    powers = [math.log10(value) for value in values if 0 < value < math.inf]
    low = max(_LEAST, math.floor(min(powers, default=-16)) - 1)
    high = min(_MOST, max(math.ceil(max(powers, default=-16)), math.log10(TOLERANCE) + 1))
    scale = _Scale(place, low, math.ceil(high))
    bound, first = scale.y(TOLERANCE), comparison.verdict.first_layer
    parts = [*_axes(scale), _line("bound", _LEFT, bound, _RIGHT, bound)]
    if first in place:
        x = scale.x(first)
        anchor, shift = ("start", 6) if x < (_LEFT + _RIGHT) / 2 else ("end", -6)
        parts += [
            _line("first", x, _TOP - 10, x, _BOTTOM),
            f'<text class="first" x="{x + shift:.1f}" y="{_TOP - 6}" text-anchor="{anchor}">'
            f"they differ at {escape(first)}</text>",
        ]
    for curve in curves:
        parts += _draw(curve, scale)
    label = "relative difference of each layer's output, in the order of the forward pass"
    svg = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
    return "".join([svg, *parts, "</svg>"])


@dataclass(frozen=True)
class _Scale:
    """Pixels of a layer and of a value."""

    place: dict[str, int]  # of each layer in the forward pass
    low: int
    high: int

    def x(self, layer: str) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (self.place[layer] + 0.5) / len(self.place)

    def y(self, value: float) -> float:
        power = self.low if value <= 0 else math.log10(value) if value < math.inf else self.high
        share = (min(max(power, self.low), self.high) - self.low) / (self.high - self.low)
        return _BOTTOM - (_BOTTOM - _TOP) * share


def _axes(scale: _Scale) -> list[str]:
    parts: list[str] = []
    for power in range(scale.low, scale.high + 1, 2):
        y = scale.y(10.0**power)
        text = "0" if power == scale.low else f'10<tspan dy="-5" font-size="9">{power}</tspan>'
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
        parts.append(_line("axis", _LEFT, y, _RIGHT, y))
    every = max(1, math.ceil(len(scale.place) / _MOST_LABELS))
    for layer in list(scale.place)[::every]:
        x, y = scale.x(layer), _BOTTOM + 12
        parts.append(
            f'<text x="{x:.1f}" y="{y}" text-anchor="end" '
            f'transform="rotate(-50 {x:.1f} {y})">{escape(layer)}</text>'
        )
    return parts


def _line(style: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _draw(curve: _Curve, scale: _Scale) -> list[str]:
    radius = 3 if len(scale.place) <= 200 else 1.5
    points: list[str] = []
    dots: list[str] = []
    for layer, value in curve.values.items():
        if layer not in scale.place:
            continue
        x, y = scale.x(layer), scale.y(value)
        points.append(f"{x:.1f},{y:.1f}")
        dots.append(
            f'<circle class="{curve.style}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">'
            f"<title>{escape(layer)}\n{escape(curve.label)}: {value:.2e}</title></circle>"
        )
    return [f'<polyline class="{curve.style}" points="{" ".join(points)}"/>', *dots]
