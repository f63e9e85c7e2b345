"""Groups of runs as a table, in Markdown and on a terminal."""

from collections.abc import Callable, Collection
from pathlib import Path

from rich.console import Console
from rich.table import Table

from train.results.groups import Group, Statistics
from train.results.published import SOURCES
from train.run.display import duration

_NONE = "—"
_TEXT = ("model", "with", "data", "published %", "device")  # aligned left
_WRAPPED = ("with", "data", "published %", "device")
_WIDE = ("steps", "torch twin %", "differ", "time", "device")  # only on a wide terminal
_WIDE_TERMINAL = 160


def cells(group: Group) -> dict[str, str]:
    """A row of the table: heading -> text. Errors in percent."""
    run, error = group.first, group.statistics("error")
    torch_error = group.statistics("torch_error")
    counts = [
        o.different_predictions for o in group.outcomes if o.different_predictions is not None
    ]
    seconds = group.statistics("seconds")
    return {
        "model": run.config.model,
        "with": ", ".join(f"{name} {value}" for name, value in group.options.items()),
        "parameters": _NONE if group.parameters is None else f"{group.parameters:,}",
        "data": tested_on(group),
        "epochs": f"{group.epochs:.4g}",
        "steps": f"{run.total_steps:,}",
        "runs": _runs(group),
        "error %": _mean(error) + _sampling_error(group),
        "min": _NONE if error is None else _percent(error.min),
        "max": _NONE if error is None else _percent(error.max),
        "best %": _mean(group.statistics("best_error")),
        "torch twin %": _mean(torch_error),
        "differ": f"{sum(counts)}" if counts else _NONE,
        "published %": "; ".join(map(str, group.published)) or _NONE,
        "time": _NONE if seconds is None else duration(seconds.mean),
        "device": ", ".join(sorted({run.devices for run in group.runs})),
    }


def remarks(groups: list[Group], place: Callable[[Path], str] = str) -> list[str]:
    """What a reader of the table must know, one line each; `place` says how a folder is named."""
    lines = [
        "error: of the exported weights at the end, mean ± sample standard deviation over the "
        "seeds; min and max over them. best: the least error of any test on the way, chosen on the "
        "images it is reported for. torch twin: the exported files in PyTorch; differ: images that "
        "they put in another class, of all runs together. time: of a run, mean."
    ]
    if any(group.is_partial for group in groups):
        lines.append(
            "[±]: the standard error that comes from testing on a part of the test set, "
            "sqrt(p (1 - p) / n); more seeds do not lessen it."
        )
    sources = {figure.source for group in groups for figure in group.published}
    if sources:
        lines.append("published: error on the whole test set, after training on all images.")
    lines += [f"{source}: {text}." for source, text in SOURCES.items() if source in sources]
    for group in groups:
        for run in group.unfinished:
            steps = f"step {run.step:,} of {run.total_steps:,}"
            lines.append(f"unfinished, not counted: {place(run.folder)}, {steps}.")
        for run in group.repeats:
            same = f"another run of {run.config.model} with seed {run.seed}"
            lines.append(f"not counted: {place(run.folder)}, {same}.")
    return lines


def as_markdown(groups: list[Group], place: Callable[[Path], str] = str) -> str:
    """The table with its remarks, columns aligned; `place` says how a folder is named."""
    table = aligned(_rows(groups), _TEXT)
    return f"{table}\n" + "".join(f"- {line}\n" for line in remarks(groups, place))


def aligned(rows: list[dict[str, str]], left: Collection[str]) -> str:
    """Rows (heading -> text) as a table in Markdown; the columns `left` begin at the left."""
    headings = list(rows[0])
    texts = [headings, *([row[name].replace("|", "\\|") for name in headings] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    sides = [name in left for name in headings]
    lines = [_line(texts[0], widths, sides), _rule(widths, sides)]
    lines += [_line(text, widths, sides) for text in texts[1:]]
    return "\n".join(lines) + "\n"


def print_table(groups: list[Group]) -> None:
    """On a terminal as wide as that allows; elsewhere the Markdown."""
    console = Console(highlight=False)
    if not console.is_terminal:
        print(as_markdown(groups), end="")
        return
    rows = _rows(groups)
    hidden: set[str] = set() if console.width >= _WIDE_TERMINAL else set(_WIDE)
    title = None
    if len({row["data"] for row in rows}) == 1:
        title = rows[0]["data"]
        hidden.add("data")
    headings = [name for name in rows[0] if name not in hidden]
    table = Table(title=title, title_justify="left")
    for name in headings:
        side = "left" if name in _TEXT else "right"
        table.add_column(name, justify=side, no_wrap=name not in _WRAPPED)
    for row in rows:
        table.add_row(*(row[name] for name in headings))
    console.print(table, markup=False)
    for line in remarks(groups):
        console.print(line, markup=False)


def _rows(groups: list[Group]) -> list[dict[str, str]]:
    rows = [cells(group) for group in groups]
    if not any(row["with"] for row in rows):
        rows = [{name: text for name, text in row.items() if name != "with"} for row in rows]
    return rows


def _line(texts: list[str], widths: list[int], sides: list[bool]) -> str:
    padded = (
        text.ljust(width) if is_left else text.rjust(width)
        for text, width, is_left in zip(texts, widths, sides, strict=True)
    )
    return f"| {' | '.join(padded)} |"


def _rule(widths: list[int], sides: list[bool]) -> str:
    dashes = (
        "-" * (width + 2) if is_left else "-" * (width + 1) + ":"
        for width, is_left in zip(widths, sides, strict=True)
    )
    return f"|{'|'.join(dashes)}|"


def tested_on(group: Group) -> str:
    """`cifar10, tested on test (1,000 of 10,000 images)`."""
    run = group.first
    if run.test_images is None:
        count = ""
    elif group.is_partial:
        count = f" ({run.test_images:,} of {group.whole_test_size:,} images)"
    else:
        count = f" ({run.test_images:,} images)"
    return f"{run.config.data}, tested on {run.test_name}{count}"


def _runs(group: Group) -> str:
    finished, count = len(group.finished), len(group.runs)
    return f"{count}" if finished == count else f"{finished} of {count}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _mean(statistics: Statistics | None) -> str:
    if statistics is None:
        return _NONE
    deviation = _NONE if statistics.std is None else _percent(statistics.std)
    return f"{_percent(statistics.mean)} ± {deviation}"


def _sampling_error(group: Group) -> str:
    error = group.standard_error() if group.is_partial else None
    return "" if error is None else f" [±{_percent(error)}]"
