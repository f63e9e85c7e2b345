"""What the table holds, and the same as JSON: enough to make the table again from it alone."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from resnet_spec import find_spec
from train.config import Config, computed_fields
from train.errors import UserError
from train.results.collect import Outcome, Run
from train.results.groups import Group, group_key, group_runs
from train.results.plan import find_origin, image_cost
from train.results.protocol import HELD_OUT, PART, protocol_of
from train.results.published import DATA, published, published_models
from train.results.record import group_fields

_ALWAYS = ("model", "data", "epochs", "precision")  # said even where they are the usual ones
_FRACTIONS = ("error", "best_error", "torch_error")
_DEVIATIONS = 2  # above the published mean: then the reason must be found


@dataclass(frozen=True)
class Missing:
    """A network that was not run under a protocol."""

    model: str
    protocol: str


@dataclass(frozen=True)
class Content:
    """The table.

    Attributes:
        groups: of runs, finished or not; no figure comes from anywhere else.
        missing: rows without a run.
        weights: by `group_key`, the network that is kept of a group: `file`, `seed`, and the
            `error` that its file has in torch on so many `test_images`.
    """

    data: str
    groups: list[Group]
    missing: list[Missing]
    weights: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


def collect(found: Iterable[Run], before: Content, protocol: str, models: Iterable[str]) -> Content:
    """The table of the runs in the folders, and of the finished ones that an older table tells of.

    Only of runs that one configuration trained, from random weights. A run that is found takes the
    place of the same run in the older table. Rows of the protocol are missing for those of
    `models`, and of the published ones, that have no run.
    """
    data = before.data
    runs = [_as_recorded(run) for run in found if run.config.data == data and run.is_plain]
    known = {(group_key(run), run.seed) for run in runs if run.outcome is not None}
    old = [run for group in before.groups for run in group.finished]
    groups = group_runs([*runs, *(r for r in old if (group_key(r), r.seed) not in known)])
    present = {(find_spec(g.first.config.model), protocol_of(g.first)) for g in groups}
    asked = [Missing(name, protocol) for name in [*models, *published_models(data)]]
    rows = {(find_spec(row.model), row.protocol): row for row in [*before.missing, *asked]}
    # asked for as a part, the test set was whole, or a part of another size
    present |= {(spec, PART) for spec, label in present if not label.startswith(HELD_OUT)}
    missing = [row for key, row in rows.items() if key not in present]
    missing.sort(key=lambda row: (row.protocol, image_cost(row.model, data)))
    return Content(data, groups, missing, before.weights)


def _as_recorded(run: Run) -> Run:
    """With the digits that the JSON keeps: the table of a run and of its record are the same."""
    if run.outcome is None:
        return run
    seconds = round(run.outcome.seconds, 1)
    return dataclasses.replace(run, outcome=dataclasses.replace(run.outcome, seconds=seconds))


def is_whole_schedule(group: Group) -> bool:
    """Whether the runs are a recipe as it stands, not a shorter or longer one."""
    origin = find_origin(group.first)
    return origin is not None and abs(group.epochs - origin.epochs) < 1


def is_above_published(group: Group) -> bool:
    """Whether the mean is more than two of the published deviations above the published mean.

    Only of whole schedules, and where a deviation is published.
    """
    error = group.statistics("error")
    if error is None or not is_whole_schedule(group):
        return False
    return any(
        100 * error.mean > figure.error + _DEVIATIONS * figure.std
        for figure in group.published
        if figure.std is not None
    )


def to_json(content: Content, place: Callable[[Path], str]) -> dict[str, Any]:
    """The table; errors are fractions of the test images. `place` says how a folder is named."""
    rows = [_row(group, content.weights, place) for group in content.groups]
    missing = [_missing_row(content.data, row) for row in content.missing]
    return {"data": content.data, "rows": rows + missing}


def _row(
    group: Group, weights: dict[str, dict[str, Any]], place: Callable[[Path], str]
) -> dict[str, Any]:
    run, origin = group.first, find_origin(group.first)
    usual = Config().to_json()
    computed = computed_fields(run.config)
    counts = [o.different_predictions for o in group.outcomes]
    differing = [count for count in counts if count is not None]
    seconds = [outcome.seconds for outcome in group.outcomes]
    return {
        "protocol": protocol_of(run),
        "status": "measured" if group.finished else "unfinished",
        "recipe": origin and origin.recipe,
        "recipe_epochs": origin and round(origin.epochs, 3),
        "schedule": None if origin is None else ("whole" if is_whole_schedule(group) else "scaled"),
        "precision": run.config.precision,
        **group_fields(group, place),
        "different_predictions": sum(differing) if differing else None,
        "seconds": round(fmean(seconds), 1) if seconds else None,
        "above_published": is_above_published(group),
        "weights": weights.get(group_key(run)),
        "configuration": {k: v for k, v in computed.items() if k in _ALWAYS or v != usual[k]},
    }


def _missing_row(data: str, missing: Missing) -> dict[str, Any]:
    return {
        "protocol": missing.protocol,
        "status": "not run",
        "model": missing.model,
        "parameters": parameters(data, missing.model),
        "data": data,
        "published_percent": [vars(figure) for figure in published(data, missing.model)],
    }


def parameters(data: str, model: str) -> int:
    """Trained values of a network with a head for the classes of a data set."""
    spec = dataclasses.replace(find_spec(model), in_planes=DATA[data].channels)
    return spec.count_parameters(DATA[data].classes)


def from_json(content: dict[str, Any]) -> Content:
    """The inverse of `to_json`, but for the curves of the runs.

    Raises:
        UserError: it is damaged, or of another version.
    """
    try:
        rows = [row for row in content["rows"] if row["status"] != "not run"]
        runs = [_restore(row, fields) for row in rows for fields in row["runs"]]
        by_row = [(group_key(_restore(row, row["runs"][0])), row["weights"]) for row in rows]
        missing = [
            Missing(row["model"], row["protocol"])
            for row in content["rows"]
            if row["status"] == "not run"
        ]
        weights = {key: entry for key, entry in by_row if entry is not None}
        return Content(content["data"], group_runs(runs), missing, weights)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"it is damaged or of another version: {error!r}") from error


def _restore(row: dict[str, Any], fields: dict[str, Any]) -> Run:
    config = Config.from_json({**row["configuration"], "seed": fields["seed"]})
    outcome = None
    if fields["finished"]:
        told = {f.name: fields[f.name] for f in dataclasses.fields(Outcome)}
        for name in _FRACTIONS:  # a count of images, before it was rounded
            if told[name] is not None:
                told[name] = round(told[name] * row["test_images"]) / row["test_images"]
        outcome = Outcome(**told)
    return Run(
        folder=Path(fields["folder"]),
        config=config,
        train_images=row["train_images"],
        test_name=row["tested_on"],
        test_images=row["test_images"],
        devices=fields["devices"],
        step=fields["step"],
        total_steps=row["steps"],
        metrics=[],
        outcome=outcome,
    )
