"""Groups of runs as JSON: what the table shows, and each run of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from train.results.collect import Run
from train.results.groups import Group, Statistics

_DIGITS = 6  # of fractions


def as_json(
    groups: list[Group], skipped: dict[Path, str], place: Callable[[Path], str]
) -> dict[str, Any]:
    """All that is in the table and where it comes from; errors are fractions of the test images.

    `place` says how a folder is named.
    """
    return {
        "results": [group_fields(group, place) for group in groups],
        "skipped": {place(path): reason for path, reason in sorted(skipped.items())},
    }


def group_fields(group: Group, place: Callable[[Path], str]) -> dict[str, Any]:
    """A row of the table, with each of its runs."""
    run = group.first
    return {
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
        "runs": [_run_fields(run, place) for run in group.runs],
        "not_counted": [place(run.folder) for run in group.repeats],
        "error": _rounded(group.statistics("error")),
        "standard_error": _round(group.standard_error()),
        "best_error": _rounded(group.statistics("best_error")),
        "torch_error": _rounded(group.statistics("torch_error")),
        "published_percent": [vars(figure) for figure in group.published],
    }


def _run_fields(run: Run, place: Callable[[Path], str]) -> dict[str, Any]:
    fields = {"folder": place(run.folder), "seed": run.seed, "step": run.step}
    fields |= {"finished": run.outcome is not None, "devices": run.devices}
    if run.outcome is not None:
        fields |= {name: _round(value) for name, value in vars(run.outcome).items()}
        fields["seconds"] = round(run.outcome.seconds, 1)
    return fields


def _rounded(statistics: Statistics | None) -> dict[str, Any] | None:
    if statistics is None:
        return None
    return {name: _round(value) for name, value in vars(statistics).items()}


def _round(value: Any) -> Any:
    return round(value, _DIGITS) if isinstance(value, float) else value
