"""A comparison as one HTML page that needs nothing beside itself."""

from html import escape

from convert.diff.comparison import ACTIVATIONS, SECTIONS, Comparison
from convert.diff.plot import legend, plot
from convert.diff.report import cells, headings, remark

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
.same { color: var(--good); } .apart { color: var(--bad); }
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
tr.parts { background: var(--bad-back); } tr.first td { color: var(--bad); font-weight: 700; }
"""


def as_page(comparison: Comparison) -> str:
    """The page's text: verdict, plot and all tables."""
    verdict = comparison.verdict
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
        f'<p class="{"same" if verdict.same else "apart"}"><strong>{escape(verdict.lines[-1])}'
        f"</strong></p>\n<ul>{lines}</ul>\n"
        + (f"<p>Why:</p><ul>{reasons}</ul>\n" if reasons else "")
        + "<h2>Relative difference of each layer's output</h2>\n"
        f'<p class="legend">{_legend(comparison)}</p>\n{plot(comparison)}\n'
        + "\n".join(_table(comparison, section) for section in comparison.sections)
        + "\n</body></html>\n"
    )


def _legend(comparison: Comparison) -> str:
    return "".join(
        f'<span><svg viewBox="0 0 34 10"><line class="{style}" x1="0" y1="5" x2="34" y2="5"/>'
        f"</svg>{escape(text)}</span>"
        for style, text in legend(comparison)
    )


def _table(comparison: Comparison, section: str) -> str:
    rows, first = comparison.sections[section], comparison.first_parting(section)
    head = "".join(f"<th>{escape(text)}</th>" for text in [*headings(comparison, section), ""])
    body: list[str] = []
    for row in rows:
        style = "parts first" if row is first else "parts" if row.parts else ""
        texts = [*cells(row), remark(row, section, is_first=row is first)]
        data = "".join(f"<td>{escape(text)}</td>" for text in texts)
        body.append(f'<tr class="{style}">{data}</tr>' if style else f"<tr>{data}</tr>")
    parting = sum(row.parts for row in rows)
    count = f"{parting} of {len(rows)} part" if parting else f"{len(rows)}, none parts"
    is_open = " open" if section in ACTIVATIONS or parting else ""
    return (
        f"<details{is_open}><summary><h2>{escape(SECTIONS[section].capitalize())}</h2> "
        f'<span class="faint">({count})</span></summary><div class="table"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div></details>"
    )
