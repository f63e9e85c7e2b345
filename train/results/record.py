"""The JSON record of a group of runs, and the run again from it; and files that appear whole."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convert.atomic import replacing
from train.config import Config, computed_fields
from train.errors import UserError
from train.results.collect import Outcome, RecordedRun, read_asked
from train.results.groups import Group, Statistics
from train.results.published import DATA

EXPORT = "model.safetensors"  # the network of a run, in its folder
_DIGITS = 6  # of fractions
_FRACTIONS = ("error", "best_error", "torch_error")
_ALWAYS = ("model", "data", "epochs", "precision")  # written even if they have their default


def to_record(group: Group, place: Callable[[Path], str]) -> dict[str, Any]:
    """What `results.json` and a table say of a group; errors are fractions of the test images.

    `place` returns the name to be written for a folder.
    """
    run, asked = group.first, group.asked
    has_protocol = run.config.data in DATA and run.test_images is not None
    different, seconds = group.values("different_predictions"), group.statistics("seconds")
    default = Config().to_json()
    fields = computed_fields(run.config)
    return {
        "protocol": run.protocol if has_protocol else None,
        "status": "measured" if group.finished else "unfinished",
        "recipe": asked and asked.recipe_of(run.config.model),
        "recipe_epochs": _round(group.recipe_epochs, 3),
        "schedule": asked and ("scaled" if group.is_scaled else "whole"),
        "precision": run.config.precision,
        "model": run.config.model,
        "options": group.options,
        "parameters": group.parameters,
        "data": run.config.data,
        "train_images": run.train_images,
        "tested_on": run.test_name,
        "test_images": run.test_images,
        "whole_test_size": group.whole_test_size,
        "epochs": round(group.epochs, 3),
        "steps": run.total_steps,
        "runs": [_run_record(run, place) for run in group.runs],
        "not_counted": [place(run.folder) for run in group.repeats],
        "error": _rounded(group.statistics("error")),
        "standard_error": _round(group.standard_error()),
        "best_error": _rounded(group.statistics("best_error")),
        "torch_error": _rounded(group.statistics("torch_error")),
        "published_percent": [vars(figure) for figure in group.published],
        "different_predictions": sum(different) if different else None,
        "seconds": seconds and _round(seconds.mean, 1),
        "above_published": group.is_above_published,
        "configuration": {k: v for k, v in fields.items() if k in _ALWAYS or v != default[k]},
    }


def _run_record(run: RecordedRun, place: Callable[[Path], str]) -> dict[str, Any]:
    return {
        "folder": place(run.folder),
        "seed": run.seed,
        "step": run.step,
        "finished": run.outcome is not None,
        "devices": run.devices,
        "recipe": run.recipe,
        "asked": run.asked and vars(run.asked),
        **({name: _round(v) for name, v in vars(run.outcome).items()} if run.outcome else {}),
    }


def _rounded(statistics: Statistics | None) -> dict[str, Any] | None:
    return statistics and {name: _round(value) for name, value in vars(statistics).items()}


def _round(value: Any, digits: int = _DIGITS) -> Any:
    return round(value, digits) if isinstance(value, float) else value


def from_record(row: dict[str, Any], fields: dict[str, Any]) -> RecordedRun:
    """A run of a row that `to_record` wrote, without its metrics; `fields` are its own.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is damaged.
    """
    outcome = None
    if fields["finished"]:
        known = {field.name: fields[field.name] for field in dataclasses.fields(Outcome)}
        for name in _FRACTIONS:  # undoes the rounding
            if known[name] is not None:
                known[name] = round(known[name] * row["test_images"]) / row["test_images"]
        outcome = Outcome(**known)
    asked = fields.get("asked")  # older tables have the recipe of the row only
    return RecordedRun(
        folder=Path(fields["folder"]),
        config=Config.from_json({**row["configuration"], "seed": fields["seed"]}),
        train_images=row["train_images"],
        test_name=row["tested_on"],
        test_images=row["test_images"],
        devices=fields["devices"],
        step=fields["step"],
        total_steps=row["steps"],
        outcome=outcome,
        recipe=fields.get("recipe", row["recipe"]),
        asked=asked and read_asked(asked),
    )


def encode(content: str | dict[str, Any]) -> bytes:
    """A text, or JSON, as a file's bytes in UTF-8, even if the name of a folder is not UTF-8."""
    if isinstance(content, str):
        return content.encode(errors="backslashreplace")
    return json.dumps(content, indent=2, allow_nan=False).encode() + b"\n"


def write_files(out: Path, contents: dict[str, bytes]) -> None:
    """Writes files into a folder, in their order, each whole or not at all.

    Raises:
        UserError: the folder cannot be written to.
    """
    try:
        for name, content in contents.items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_bytes(content)
    except OSError as error:
        raise UserError(f"{out} cannot be written to: {error}") from error
