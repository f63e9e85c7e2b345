"""The table in Markdown, a part for each protocol."""

from collections import defaultdict
from collections.abc import Iterable

from train.results.content import (
    Content,
    Missing,
    is_above_published,
    is_whole_schedule,
    parameters,
)
from train.results.groups import Group
from train.results.plan import find_origin
from train.results.protocol import WHOLE, describe, protocol_of
from train.results.published import SOURCES, Published, published
from train.results.table import aligned
from train.run.display import duration

_NONE, _MARK = "—", "†"
_LEFT = ("model", "with", "seeds", "published %", "device")


def as_markdown(content: Content) -> str:
    """The whole page: the table of each protocol with the networks that were not run, remarks."""
    parts = [f"# {content.data}", "Made by `resnet-train table`; errors in percent."]
    sections = tables(content)
    for heading, groups in sections.items():
        protocol = protocol_of(groups[0].first)
        absent = [row for row in content.missing if row.protocol == protocol]
        parts += [f"## {heading}", table([*measured(groups), *_empty(content, absent)])]
    begun = {protocol_of(groups[0].first) for groups in sections.values()}
    for protocol in sorted({row.protocol for row in content.missing} - begun):
        absent = [row for row in content.missing if row.protocol == protocol]
        parts += [f"## {protocol}", table(_empty(content, absent))]
    parts.append("\n".join(f"- {line}" for line in remarks(content)))
    if made := commands(content.groups):
        parts.append("\n".join(["```console", *made, "```"]))
    return "\n\n".join(parts) + "\n"


def tables(content: Content) -> dict[str, list[Group]]:
    """The groups of each table: heading -> rows. The heading says on which images."""
    sections: dict[str, list[Group]] = defaultdict(list)
    for group in content.groups:
        sections[describe(group.first)].append(group)
    return dict(sections)


def measured(groups: Iterable[Group]) -> list[dict[str, str]]:
    """The rows of runs that are there: heading -> text."""
    return [_cells(group) for group in groups]


def commands(groups: Iterable[Group]) -> list[str]:
    """What makes the rows again: a command for all networks of one protocol, length and so on."""
    models: dict[str, list[str]] = defaultdict(list)
    for group in groups:
        origin = find_origin(group.first)
        if origin is not None and group.finished:
            wish, config = origin.wish, group.first.config
            precision = config.precision
            whole = protocol_of(group.first) == WHOLE
            options = {
                "data": None if wish.data == "cifar10" else wish.data,
                "protocol": WHOLE if whole else wish.protocol,
                "recipe": wish.recipe,
                "epochs": wish.epochs,
                "max-steps": wish.max_steps,
                "precision": None if precision == "f32" else precision,
                "parallel": None if config.parallel == "pmap" else config.parallel,
                "seed" if len(group.finished) == 1 else "seeds": ",".join(
                    str(run.seed) for run in group.finished
                ),
            }
            words = [f"--{k} {v}" for k, v in options.items() if v is not None]
            words += ["--scan-blocks"] * config.scan_blocks + ["--remat"] * config.remat
            said = " ".join(words)
            models[said].append(group.first.config.model)
    return [f"resnet-train table {said} --models {','.join(m)}" for said, m in models.items()]


def table(rows: list[dict[str, str]]) -> str:
    """Rows as a table, without the column `with` where nothing is in it."""
    if not any(row["with"] for row in rows):
        rows = [{name: text for name, text in row.items() if name != "with"} for row in rows]
    return aligned(rows, _LEFT).rstrip("\n")


def _cells(group: Group) -> dict[str, str]:
    torch_error, seconds = group.statistics("torch_error"), group.statistics("seconds")
    counts = [o.different_predictions for o in group.outcomes]
    known = [count for count in counts if count is not None]
    options = {k: v for k, v in group.options.items() if k not in _SHOWN}
    return {
        "model": group.first.config.model,
        "with": ", ".join(f"{name} {value}" for name, value in options.items()),
        "parameters": f"{group.parameters:,}",
        "epochs": _epochs(group),
        "precision": group.first.config.precision,
        "seeds": ", ".join(str(run.seed) for run in group.finished) or _NONE,
        "error %": _error(group),
        "torch twin %": _NONE if torch_error is None else f"{100 * torch_error.mean:.2f}",
        "differ": str(sum(known)) if known else _NONE,
        "published %": _published(group.published),
        "time": _NONE if seconds is None else duration(seconds.mean),
        "device": ", ".join(sorted({run.devices for run in group.runs})),
    }


# Columns of their own, or told by the number of epochs
_SHOWN = ("precision", "epochs", "max_steps", "drop_steps", "drop_epochs", "warmup_steps")


def _epochs(group: Group) -> str:
    """`178`, or `20 of 178` where a recipe's schedule is scaled."""
    origin, count = find_origin(group.first), f"{group.epochs:.4g}"
    if origin is None or is_whole_schedule(group):
        return count
    return f"{count} of {origin.epochs:.4g}"


def _error(group: Group) -> str:
    """Mean ± deviation over the seeds, and the standard error of testing on these images."""
    error, sampling = group.statistics("error"), group.standard_error()
    if error is None:
        run = group.first
        return f"unfinished, step {run.step:,} of {run.total_steps:,}"
    deviation = "" if error.std is None else f" ± {100 * error.std:.2f}"
    shown = "" if sampling is None else f" [±{100 * sampling:.2f}]"
    mark = f" {_MARK}" if is_above_published(group) else ""
    return f"{100 * error.mean:.2f}{deviation}{shown}{mark}"


def _published(figures: list[Published]) -> str:
    return "; ".join(map(str, figures)) or _NONE


def _empty(content: Content, rows: Iterable[Missing]) -> list[dict[str, str]]:
    names = ("model", "with", "parameters", "epochs", "precision", "seeds", "error %")
    names = (*names, "torch twin %", "differ", "published %", "time", "device")
    return [
        {
            **dict.fromkeys(names, _NONE),
            "with": "",
            "model": row.model,
            "parameters": f"{parameters(content.data, row.model):,}",
            "error %": "not run",
            "published %": _published(published(content.data, row.model)),
        }
        for row in rows
    ]


def remarks(content: Content) -> list[str]:
    """What a reader of the table must know, one line each."""
    lines = [
        "error: of the last weights, in Flax and in the precision of training, mean ± sample "
        "standard deviation over the seeds; [±]: the standard error of an error on so many images, "
        "sqrt(p (1 - p) / n), which more seeds do not lessen.",
        "torch twin: the exported files in PyTorch, in float32; differ: images that they and Flax "
        "in float32 put into different classes, of all seeds together. time: wall time of a run, "
        "mean over the seeds; of runs that were trained at once, that of all of them.",
        "published: on the whole test set, after training on all images for the whole schedule.",
    ]
    groups = content.groups
    if any("of" in _epochs(group) for group in groups):
        lines.append(
            "epochs, `n of m`: the run is shorter or longer than the recipe's m epochs, warm-up "
            "and drops of the learning rate scaled in proportion: no match for a published figure."
        )
    if any(map(is_above_published, groups)):
        lines.append(
            f"{_MARK}: more than two published standard deviations above the published mean, by "
            "the whole schedule."
        )
    figures = [f for group in groups for f in group.published]
    figures += [f for row in content.missing for f in published(content.data, row.model)]
    cited = {figure.source for figure in figures}
    return lines + [f"{source}: {text}." for source, text in SOURCES.items() if source in cited]
