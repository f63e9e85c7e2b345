"""Groups of runs as tables: in Markdown, on a terminal, and as pages with remarks and commands."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import rich.table
from rich.console import Console

from train.config import Config
from train.results.groups import Group, Statistics, count_parameters
from train.results.protocol import WHOLE
from train.results.published import SOURCES, Published, published
from train.results.table import Missing, Table
from train.run.display import duration

NONE, _ABOVE = "—", "†"
_RESULTS = (
    *("model", "with", "parameters", "data", "epochs", "steps", "runs", "error %", "min", "max"),
    *("best %", "torch twin %", "differ", "published %", "time", "device"),
)
_TABLE = (
    *("model", "with", "parameters", "epochs", "precision", "seeds", "error %", "torch twin %"),
    *("differ", "published %", "time", "device"),
)
_WEB = (
    *("model", "with", "data", "parameters", "epochs", "precision", "seeds", "error %", "best %"),
    *("torch twin %", "differ", "published %", "time", "device"),
)
_LEFT = ("model", "with", "data", "seeds", "published %", "device")  # aligned left
_WRAPPED = ("with", "data", "published %", "device")
_WIDE = ("steps", "torch twin %", "differ", "time", "device")  # only on a wide terminal
_WIDE_TERMINAL = 160
# Options that a table shows in columns of their own, or by the number of epochs
_SHOWN = ("precision", "epochs", "max_steps", "drop_steps", "drop_epochs", "warmup_steps")
# (column, text in one of its cells) -> what a reader must know then
_EXPLAINED = {
    ("error %", ""): "error: of the exported weights after the last step, in Flax and in the "
    "precision of training; mean ± sample standard deviation over the seeds.",
    ("error %", "[±"): "[±]: the standard error of an error that is measured on so many images, "
    "sqrt(p (1 - p) / n); more seeds do not lower it.",
    ("best %", ""): "min, max: over the seeds. best: the lowest error of any test on the way, "
    "chosen on the images it is reported for.",
    ("torch twin %", ""): "torch twin: the exported files in PyTorch, in float32. differ: images "
    "that they and Flax in float32 put into different classes, summed over the seeds. time: wall "
    "time of a run, mean over the seeds; of runs that were trained at once, that of all of them.",
    ("published %", "("): "published: error on the whole test set, after training on all images "
    "for the whole schedule.",
    ("epochs", " of "): "epochs, `n of m`: the run is shorter or longer than the recipe's m "
    "epochs, with warm-up and drops of the learning rate scaled in proportion: no match for a "
    "published figure.",
    ("epochs", ", "): "epochs, with a name: by that recipe. Published figures are those of the "
    "papers' own recipes.",
    ("error %", _ABOVE): f"{_ABOVE}: more than two published standard deviations above the "
    "published mean, after the whole schedule.",
}

Row = dict[str, str]
"""Heading -> text; errors in percent."""


def results_page(groups: list[Group], place: Callable[[Path], str] = str) -> str:
    """The table of `resnet-train results` in Markdown, with its remarks.

    `place` returns the name to be written for a folder.
    """
    rows = _results_rows(groups)
    lines = [*explain(rows), *not_counted(groups, place)]
    return f"{markdown(rows)}\n" + "".join(f"- {line}\n" for line in lines)


def print_results(groups: list[Group]) -> None:
    """Prints a table of the terminal's width; Markdown if the output is no terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        print(results_page(groups), end="")
        return
    rows = _results_rows(groups)
    hidden: set[str] = set() if console.width >= _WIDE_TERMINAL else set(_WIDE)
    title = None
    if len({row["data"] for row in rows}) == 1:
        title = rows[0]["data"]
        hidden.add("data")
    table = rich.table.Table(title=title, title_justify="left")
    names = [name for name in _shown_columns(rows) if name not in hidden]
    for name in names:
        side = "left" if name in _LEFT else "right"
        table.add_column(name, justify=side, no_wrap=name not in _WRAPPED)
    for row in rows:
        table.add_row(*(row[name] for name in names))
    console.print(table, markup=False)
    for line in (*explain(rows), *not_counted(groups, str)):
        console.print(line, markup=False)


def table_page(table: Table) -> str:
    """The page of `resnet-train table`: a table for each protocol, remarks, commands."""
    missing: dict[str, list[Missing]] = defaultdict(list)
    for row in table.missing:
        missing[row.protocol].append(row)
    shown: dict[str, list[Row]] = {}
    for heading, groups in sections(table).items():
        absent = missing.pop(groups[0].first.protocol, [])
        shown[heading] = [*table_rows(groups), *missing_rows(table.data, absent)]
    shown |= {name: missing_rows(table.data, rows) for name, rows in sorted(missing.items())}
    parts = [f"# {table.data}", "Made by `resnet-train table`; errors in percent."]
    for heading, rows in shown.items():
        parts += [f"## {heading}", markdown(rows).rstrip("\n")]
    remarks = explain([row for rows in shown.values() for row in rows])
    parts.append("\n".join(f"- {line}" for line in remarks))
    if made := commands(table.groups):
        parts.append("\n".join(["```console", *made, "```"]))
    return "\n\n".join(parts) + "\n"


def sections(table: Table) -> dict[str, list[Group]]:
    """The groups by heading: `full: trained on 50,000 images, tested on 10,000 images of test`."""
    found: dict[str, list[Group]] = defaultdict(list)
    for group in table.groups:
        run = group.first
        of = f" of the {group.whole_test_size:,}" if group.is_partial else ""
        tested = f"tested on {run.test_images:,}{of} images of {run.test_name}"
        found[f"{run.protocol}: trained on {run.train_images:,} images, {tested}"].append(group)
    return dict(found)


def table_rows(groups: Iterable[Group]) -> list[Row]:
    """The rows of `resnet-train table`."""
    rows = [{**_cells(group), **_table_cells(group)} for group in groups]
    return [{name: row[name] for name in _TABLE} for row in rows]


def web_rows(groups: Iterable[Group]) -> list[Row]:
    """The rows of `resnet-train results --html`."""
    found = []
    for group in groups:
        row = {**_cells(group), **_table_cells(group)}
        row["best %"] = _mean(group.statistics("best_error"), single="")
        if group.asked is None:  # no recipe says the schedule
            row["with"] = _options(group.options)
        found.append({name: row[name] for name in _WEB})
    return found


def commands(groups: Iterable[Group]) -> list[str]:
    """The commands that make the rows again, one for all models with the same options."""
    models: dict[str, list[str]] = defaultdict(list)
    for group in groups:
        asked, config = group.asked, group.first.config
        if asked is None or not group.finished:
            continue
        options = {
            "data": None if config.data == "cifar10" else config.data,
            "protocol": WHOLE if config.validation_size is None else asked.protocol,
            "recipe": asked.recipe,
            "epochs": asked.epochs,
            "max-steps": asked.max_steps,
            "precision": None if config.precision == "f32" else config.precision,
            "parallel": None if config.parallel == "pmap" else config.parallel,
            "seed" if len(group.finished) == 1 else "seeds": _seeds(group, ","),
        }
        words = [f"--{name} {value}" for name, value in options.items() if value is not None]
        words += ["--scan-blocks"] * config.scan_blocks + ["--remat"] * config.remat
        models[" ".join(words)].append(config.model)
    return [f"resnet-train table {said} --models {','.join(m)}" for said, m in models.items()]


def markdown(rows: Sequence[Row]) -> str:
    """A table with aligned columns, without the column `with` if nothing is in it."""
    names = _shown_columns(rows)
    texts = [names, *([row[name].replace("|", "\\|") for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    align = [str.ljust if name in _LEFT else str.rjust for name in names]
    heading, *lines = (
        " | ".join(side(text, width) for side, text, width in zip(align, row, widths, strict=True))
        for row in texts
    )
    ends = ["-" if name in _LEFT else ":" for name in names]
    rule = "|".join("-" * (width + 1) + end for width, end in zip(widths, ends, strict=True))
    return f"| {heading} |\n|{rule}|\n" + "".join(f"| {line} |\n" for line in lines)


def tested_on(group: Group) -> str:
    """`cifar10, tested on test (1,000 of 10,000 images)`."""
    run = group.first
    of = f" of {group.whole_test_size:,}" if group.is_partial else ""
    count = "" if run.test_images is None else f" ({run.test_images:,}{of} images)"
    return f"{run.config.data}, tested on {run.test_name}{count}"


def _shown_columns(rows: Sequence[Row]) -> list[str]:
    return [name for name in rows[0] if name != "with" or any(row["with"] for row in rows)]


def _results_rows(groups: Iterable[Group]) -> list[Row]:
    rows = [_cells(group) for group in groups]
    return [{name: row[name] for name in _RESULTS} for row in rows]


def _cells(group: Group) -> Row:
    run, error, seconds = group.first, group.statistics("error"), group.statistics("seconds")
    finished, count = len(group.finished), len(group.runs)
    different = group.values("different_predictions")
    return {
        "model": run.config.model,
        "with": _options(group.options),
        "parameters": NONE if group.parameters is None else f"{group.parameters:,}",
        "data": tested_on(group),
        "epochs": f"{group.epochs:.4g}",
        "steps": f"{run.total_steps:,}",
        "precision": run.config.precision,
        "runs": f"{count}" if finished == count else f"{finished} of {count}",
        "seeds": _seeds(group, ", ") or NONE,
        "error %": _mean(error) + (_sampling_error(group) if group.is_partial else ""),
        "min": NONE if error is None else _percent(error.min),
        "max": NONE if error is None else _percent(error.max),
        "best %": _mean(group.statistics("best_error")),
        "torch twin %": _mean(group.statistics("torch_error")),
        "differ": str(sum(different)) if different else NONE,
        "published %": _published(group.published),
        "time": NONE if seconds is None else duration(seconds.mean),
        "device": ", ".join(sorted({run.devices for run in group.runs})),
    }


def _table_cells(group: Group) -> Row:
    """The cells in which `resnet-train table` differs from `resnet-train results`."""
    run, error, in_torch = group.first, group.statistics("error"), group.statistics("torch_error")
    epochs = f"{group.epochs:.4g}"
    if group.is_scaled:
        epochs += f" of {group.recipe_epochs:.4g}"
    if group.asked and group.asked.recipe:
        epochs += f", {group.asked.recipe}"
    if error is None:
        shown = f"unfinished, step {run.step:,} of {run.total_steps:,}"
    else:
        mark = f" {_ABOVE}" if group.is_above_published else ""
        shown = _mean(error, single="") + _sampling_error(group) + mark
    return {
        "with": _options({k: v for k, v in group.options.items() if k not in _SHOWN}),
        "epochs": epochs,
        "error %": shown,
        "torch twin %": NONE if in_torch is None else _percent(in_torch.mean),
    }


def missing_rows(data: str, missing: Iterable[Missing]) -> list[Row]:
    """Rows of `resnet-train table` for networks that nobody ran."""
    return [
        {
            **dict.fromkeys(_TABLE, NONE),
            "with": "",
            "model": row.model,
            "parameters": f"{count_parameters(Config(data=data, model=row.model)):,}",
            "error %": "not run",
            "published %": _published(published(data, row.model)),
        }
        for row in missing
    ]


def _options(options: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())


def _seeds(group: Group, separator: str) -> str:
    return separator.join(str(run.seed) for run in group.finished)


def _published(figures: list[Published]) -> str:
    return "; ".join(map(str, figures)) or NONE


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _mean(statistics: Statistics | None, single: str = f" ± {NONE}") -> str:
    """`8.60 ± 0.28`; of a single run the error and `single`."""
    if statistics is None:
        return NONE
    deviation = single if statistics.std is None else f" ± {_percent(statistics.std)}"
    return _percent(statistics.mean) + deviation


def _sampling_error(group: Group) -> str:
    error = group.standard_error()
    return "" if error is None else f" [±{_percent(error)}]"


def explain(rows: Sequence[Row]) -> list[str]:
    """What a reader must know of the columns, marks and sources in these rows, one line each."""
    lines = [
        text
        for (column, part), text in _EXPLAINED.items()
        if any(column in row and part in row[column] for row in rows)
    ]
    cited = " ".join(row["published %"] for row in rows)
    return lines + [f"{name}: {text}." for name, text in SOURCES.items() if f"({name})" in cited]


def not_counted(groups: Iterable[Group], place: Callable[[Path], str]) -> list[str]:
    """A line for each run that is in no mean; `place` returns the name of a folder."""
    lines = []
    for group in groups:
        for run in group.unfinished:
            steps = f"step {run.step:,} of {run.total_steps:,}"
            lines.append(f"unfinished, not counted: {place(run.folder)}, {steps}.")
        for run in group.repeats:
            same = f"another run of {run.config.model} with seed {run.seed}"
            lines.append(f"not counted: {place(run.folder)}, {same}.")
    return lines
