"""The table of published networks: the rows that were run and those that were not; its JSON."""

import dataclasses
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_spec import find_spec
from train.config import Config
from train.errors import UserError
from train.results.collect import RecordedRun
from train.results.groups import Group, count_parameters, group_key, group_runs
from train.results.plan import image_cost
from train.results.published import published, published_models
from train.results.record import from_record, to_record

_NOT_RUN = "not run"


@dataclass(frozen=True)
class Missing:
    """A network that was not run under a protocol."""

    model: str
    protocol: str


@dataclass(frozen=True)
class Table:
    """What the table shows.

    Attributes:
        groups: of runs, finished or not; all measured figures come from them.
        missing: rows without a run.
        weights: the network that is kept of a group, by `group_key`: `file`, `seed`, and the
            `error` that the file has in torch on `test_images` images.
    """

    data: str
    groups: list[Group] = dataclasses.field(default_factory=list)
    missing: list[Missing] = dataclasses.field(default_factory=list)
    weights: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


def make_table(
    found: Iterable[RecordedRun], before: Table, protocol: str, models: Iterable[str]
) -> Table:
    """The table of the runs that were found and of the finished runs of an older table.

    Only runs from random weights by one configuration count. A run that was found replaces the
    same run of the older table. Under the protocol, all `models` and published models without a
    run are missing.
    """
    data = before.data
    runs = [run for run in found if run.config.data == data and run.is_plain]
    runs = [run for run in runs if run.test_images is not None]  # unfinished, of an old version
    known = {(group_key(run), run.seed) for run in runs if run.outcome is not None}
    old = [run for group in before.groups for run in group.finished]
    groups = group_runs([*runs, *(r for r in old if (group_key(r), r.seed) not in known)])
    present = {(find_spec(g.first.config.model), g.first.protocol) for g in groups}
    asked = [Missing(name, protocol) for name in [*models, *published_models(data)]]
    rows = {(find_spec(row.model), row.protocol): row for row in [*before.missing, *asked]}
    missing = [row for key, row in rows.items() if key not in present]
    missing.sort(key=lambda row: (row.protocol, image_cost(row.model, data)))
    return Table(data, groups, missing, before.weights)


def to_json(table: Table, place: Callable[[Path], str]) -> dict[str, Any]:
    """The table with all that is needed to make it again; `place` returns the name of a folder."""
    rows = [
        {**to_record(group, place), "weights": table.weights.get(group_key(group.first))}
        for group in table.groups
    ]
    missing = [
        {
            "protocol": row.protocol,
            "status": _NOT_RUN,
            "model": row.model,
            "parameters": count_parameters(Config(data=table.data, model=row.model)),
            "data": table.data,
            "published_percent": [vars(figure) for figure in published(table.data, row.model)],
        }
        for row in table.missing
    ]
    return {"data": table.data, "rows": rows + missing}


def from_json(content: dict[str, Any]) -> Table:
    """The inverse of `to_json`, but for the metrics of the runs.

    Raises:
        UserError: it is damaged, or of another version.
    """
    try:
        rows = [row for row in content["rows"] if row["status"] != _NOT_RUN]
        absent = [row for row in content["rows"] if row["status"] == _NOT_RUN]
        runs = [[from_record(row, fields) for fields in row["runs"]] for row in rows]
        kept = [(group_key(r[0]), row["weights"]) for r, row in zip(runs, rows, strict=True)]
        return Table(
            content["data"],
            group_runs(run for members in runs for run in members),
            [Missing(row["model"], row["protocol"]) for row in absent],
            {key: entry for key, entry in kept if entry is not None},
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"it is damaged or of another version: {error!r}") from error


def read_table(path: Path, data: str) -> Table:
    """A table that was written before; an empty one if there is none.

    Raises:
        UserError: it is damaged, or of another version.
    """
    if not path.exists():
        return Table(data)
    try:
        return from_json(json.loads(path.read_text()))
    except (UserError, OSError, ValueError) as error:
        raise UserError(f"{path}: {error}; repair it, or write elsewhere by --out") from error
