"""Runs as one self-contained HTML page: a table to sort, charts to hover and zoom, links."""

import dataclasses
import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from time import gmtime, strftime
from urllib.parse import quote

from plotly.offline import get_plotlyjs

from train.results.collect import RecordedRun
from train.results.figures import colours, curve_figure, error_figure, line_names
from train.results.groups import Group, group_key
from train.results.record import EXPORT
from train.results.render import NONE, Row, commands, explain, missing_rows, not_counted, web_rows
from train.results.table import Table
from train.run.display import duration
from train.run.metrics import FILE as METRICS

_SAID_ONCE = ("data", "precision", "device")  # above the table, if equal in all of its rows
_UNDER_THE_MODEL = "with"
_CURVES = {
    "error": ("Error", "wrong images, %"),
    "loss": ("Loss", "cross-entropy, nats"),
    "learning_rate": ("Learning rate", ""),
}
_BESIDE = "Error beside the published error"
_OPEN_CIRCLE = (
    '<p class="note">An open circle is no match for a published error: its schedule or its test '
    "images are others.</p>"
)
_SEEDS = "seeds: a link leads to the weights of that run."
_HOW_TO_READ = (
    '<p class="note">Solid: test; a band is the range over the seeds. Dashed: training, mean of an '
    "epoch’s logged batches. Drag to zoom; with the keyboard, arrows move a chart, + and − zoom "
    "it, and 0 shows all.</p>"
)
_ABSENT = ("model", "parameters", "published %")


@dataclasses.dataclass(frozen=True)
class Page:
    """What a page shows.

    Attributes:
        tables: tables of published networks, by the folder that they are in; their runs are in
            `groups`, too.
        place: returns the path of a file or folder as seen from the page's folder.
        refresh_seconds: how often the page loads itself again; None for never.
    """

    title: str
    groups: Sequence[Group]
    tables: dict[Path, list[Table]]
    place: Callable[[Path], str]
    refresh_seconds: float | None = None

    @property
    def with_curves(self) -> list[Group]:
        return [group for group in self.groups if any(run.metrics for run in group.runs)]


def html_page(page: Page) -> str:
    """The page's text, with plotly.js and everything else that it needs."""
    own = files("train.results")
    style = (own / "html_page.css").read_text("utf-8")
    script = (own / "html_page.js").read_text("utf-8")
    rows = web_rows(page.groups)
    charts, body = _charts(page)
    lines = not_counted(page.groups, page.place)
    left_out = "".join(f'<p class="note">{escape(line)}</p>' for line in lines)
    sections = [
        _header(page, rows),
        "".join(_progress(page, run) for run in _unfinished(page)),
        f'<section aria-labelledby="table"><h2 id="table">Table</h2>{_results(page, rows)}'
        f"{_absent(page)}<details><summary>What the columns mean</summary><ul>"
        f"{''.join(f'<li>{_linked(line)}</li>' for line in (_SEEDS, *explain(rows)))}"
        f"</ul></details>{left_out}"
        "</section>",
        body,
        _commands(page),
    ]
    data = json.dumps(charts, allow_nan=False).replace("<", "\\u003c")
    seconds = json.dumps(page.refresh_seconds)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(page.title)}</title><style>{style}</style></head>\n<body>\n"
        f"<main>{''.join(sections)}</main>\n"
        f"<script>{get_plotlyjs()}</script>\n"
        f'<script type="application/json" id="charts">{data}</script>\n'
        f"<script>const refreshSeconds = {seconds};\n{script}</script>\n</body></html>\n"
    )


def _unfinished(page: Page) -> list[RecordedRun]:
    return [run for group in page.groups for run in group.unfinished]


def _header(page: Page, rows: Sequence[Row]) -> str:
    runs = sum(len(group.runs) for group in page.groups)
    counted = f"{runs} {'run' if runs == 1 else 'runs'}"
    said = [counted, *(next(iter(_values(rows, name))) for name in _same(rows))]
    control = ""
    if page.refresh_seconds is not None:
        control = (
            '<p class="refresh"><label><input type="checkbox" id="refresh" checked> '
            f"load again every {page.refresh_seconds:g} s</label> "
            f"<span>written {strftime('%H:%M:%S', gmtime())} UTC</span></p>"
        )
    return (
        f"<header><h1>{escape(page.title)}</h1><p>{escape(' · '.join(said))}</p>{control}</header>"
    )


def _values(rows: Iterable[Row], name: str) -> set[str]:
    return {row[name] for row in rows}


def _same(rows: Sequence[Row]) -> list[str]:
    return [name for name in _SAID_ONCE if len(_values(rows, name)) == 1]


def _progress(page: Page, run: RecordedRun) -> str:
    """How far a run is that has not ended."""
    tests = [
        line for line in run.metrics if line["kind"] == "test" and line.get("error") is not None
    ]
    rates = [line.get("images_per_second") for line in run.metrics if line["kind"] == "train"]
    said = [
        f"step {run.step:,} of {run.total_steps:,}",
        f"epoch {run.epoch(run.step):.1f} of {run.epoch(run.total_steps):.4g}",
    ]
    if tests:
        best = min(line["error"] for line in tests)
        said.append(f"test error {tests[-1]['error']:.2%}, best {best:.2%}")
    if rates and rates[-1]:
        left = (run.total_steps - run.step) * run.config.global_batch_size / rates[-1]
        said.append(f"{rates[-1]:,.0f} images/s, {duration(left)} left")
    if run.metrics:
        written = strftime("%Y-%m-%d %H:%M:%S", gmtime((run.folder / METRICS).stat().st_mtime))
        said.append(f"last measured {written} UTC")
    name = f"{run.config.model}, seed {run.seed}"
    share = run.step / run.total_steps
    return (
        f'<section class="running"><h2>{escape(name)} <span>{share:.0%}</span></h2>'
        f'<progress max="{run.total_steps}" value="{run.step}" aria-label="{escape(name)}">'
        f"</progress><p>{escape(' · '.join(said))}</p></section>"
    )


def _results(page: Page, rows: Sequence[Row]) -> str:
    empty = (name for name in rows[0] if _values(rows, name) == {NONE})
    hidden = {*_same(rows), *empty, _UNDER_THE_MODEL}
    names = [name for name in rows[0] if name not in hidden]
    body = []
    for number, (group, row) in enumerate(zip(page.groups, rows, strict=True)):
        order = _sort_values(group, number)
        cells = {name: (escape(row[name]), order.get(name)) for name in names}
        under = f"<small>{escape(row['with'])}</small>" if row["with"] else ""
        cells["model"] = (cells["model"][0] + under, number)
        cells["seeds"] = (_seeds(page, group), len(group.finished))
        if "published %" in cells:  # one a line
            figures, lowest = cells["published %"]
            cells["published %"] = (figures.replace("; ", "<br>"), lowest)
        body.append(cells)
    return _table(names, body)


def _table(names: Sequence[str], rows: Iterable[Mapping[str, tuple[str, float | None]]]) -> str:
    """A table of cells (HTML, number to sort by); its headings sort it."""
    rows = list(rows)
    numbers = {name for name in names[1:] if any(row[name][1] is not None for row in rows)}
    numbers.discard("published %")  # it is a list
    head = "".join(
        f'<th scope="col" aria-sort="none"{_class(number=name in numbers)}>'
        f'<button type="button">{escape(name)}</button></th>'
        for name in names
    )
    lines = []
    for row in rows:
        cells = []
        for name in names:
            text, order = row[name]
            sort = "" if order is None else f' data-sort="{order}"'
            tag = 'th scope="row"' if name == names[0] else "td"
            style = _class(number=name in numbers, none=text == NONE)
            cells.append(
                f'<{tag} data-label="{escape(name)}"{sort}{style}><span>{text}</span>'
                f"</{tag.split()[0]}>"
            )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return (
        '<div class="table" tabindex="0" role="group" aria-label="table"><table class="sortable">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _class(**classes: bool) -> str:
    names = [name for name, has in classes.items() if has]
    return f' class="{" ".join(names)}"' if names else ""


def _sort_values(group: Group, number: int) -> dict[str, float]:
    """What a column is sorted by where its text is no number."""
    statistics = {
        "error %": group.statistics("error"),
        "best %": group.statistics("best_error"),
        "torch twin %": group.statistics("torch_error"),
        "time": group.statistics("seconds"),
    }
    values: dict[str, float | None] = {
        "model": number,
        "parameters": group.parameters,
        "epochs": group.epochs,
        "published %": min((figure.error for figure in group.published), default=None),
        "differ": sum(group.values("different_predictions")),
        **{name: found and found.mean for name, found in statistics.items()},
    }
    return {name: value for name, value in values.items() if value is not None}


def _seeds(page: Page, group: Group) -> str:
    """The seeds of the finished runs, each a link to the file of its network if it is there."""
    paths = {run.seed: run.folder / EXPORT for run in group.finished}
    for folder, tables in page.tables.items():
        kept = (table.weights.get(group_key(group.first)) for table in tables)
        paths |= {entry["seed"]: folder / entry["file"] for entry in kept if entry}
    model = escape(group.first.config.model)
    texts = [
        f'<a href="{_address(page, path)}" aria-label="weights of {model}, seed {seed}">{seed}</a>'
        if path.is_file()
        else str(seed)
        for seed, path in paths.items()
    ]
    return ", ".join(texts) or NONE


def _address(page: Page, path: Path) -> str:
    return quote(os.fsencode(page.place(path)))


def _absent(page: Page) -> str:
    """The networks of the tables that nobody ran, folded away."""
    rows = [
        {name: (escape(row[name]), None) for name in _ABSENT}
        for tables in page.tables.values()
        for table in tables
        for row in missing_rows(table.data, table.missing)
    ]
    if not rows:
        return ""
    return (
        f"<details><summary>{len(rows)} networks with a published error were not run</summary>"
        f"{_table(_ABSENT, rows)}</details>"
    )


def _charts(page: Page) -> tuple[dict[str, object], str]:
    """The figures by the id of their element; the HTML around them."""
    charts: dict[str, object] = {}
    parts = []
    figure = error_figure(page.groups)
    if figure is not None:
        charts["chart-published"] = figure
        has_published = any(group.published for group in page.groups if group.finished)
        title, note = (_BESIDE, _OPEN_CIRCLE) if has_published else ("Error", "")
        parts.append(
            f'<section aria-labelledby="errors"><h2 id="errors">{title}</h2>'
            f"{_chart('chart-published', title)}{note}</section>"
        )
    groups = page.with_curves
    if groups:
        legend = "".join(
            f'<button type="button" aria-pressed="true" data-group="{number}">'
            f'<i style="background: {colour}"></i>{escape(name)}</button>'
            for number, (name, colour) in enumerate(
                zip(line_names(groups), colours(len(groups)), strict=True)
            )
        )
        inside = []
        for name, (title, unit) in _CURVES.items():
            charts[f"chart-{name}"] = curve_figure(groups, name)
            heading = f"{title} <small>{escape(unit)}</small>" if unit else title
            inside.append(f"<div><h3>{heading}</h3>{_chart(f'chart-{name}', title)}</div>")
        parts.append(
            '<section aria-labelledby="curves"><h2 id="curves">Curves</h2>'
            f'<div class="legend" role="group" aria-label="shown lines">{legend}</div>'
            f"{_HOW_TO_READ}"
            f'<div class="curves">{"".join(inside)}</div></section>'
        )
    return charts, "".join(parts)


def _chart(name: str, title: str) -> str:
    label = f"chart: {title}"
    return f'<div class="chart" id="{name}" tabindex="0" role="group" aria-label="{label}"></div>'


def _commands(page: Page) -> str:
    """Those that make the rows again, and those that go on with unfinished runs."""
    lines = commands(page.groups)
    unfinished = (shlex.quote(str(run.folder)) for run in _unfinished(page))
    lines += [f"resnet-train --resume --run-dir {folder}" for folder in unfinished]
    if not lines:
        return ""
    code = "".join(f'<pre tabindex="0"><code>{escape(line)}</code></pre>' for line in lines)
    return f'<section aria-labelledby="commands"><h2 id="commands">Commands</h2>{code}</section>'


def _linked(line: str) -> str:
    """A remark with its papers and repositories as links."""
    text = escape(line)
    return re.sub(r"arXiv:(\d{4}\.\d{5})", r'<a href="https://arxiv.org/abs/\1">arXiv:\1</a>', text)
