"""Small networks of the table as files, so that anyone can measure their errors again."""

import hashlib
from typing import Any

from train.results.collect import Run
from train.results.content import Content
from train.results.groups import Group, group_key
from train.results.plan import is_usual, row_name
from train.results.protocol import protocol_of

SEED = 111
MOST_BYTES = 2_000_000
_EXPORT = "model.safetensors"
_DIGITS = 8  # of what tells unusual rows apart


def file_stem(group: Group) -> str:
    """What the files of a row are called: as the folder of its runs, no two rows alike."""
    run = group.first
    name = f"{run.config.data}-{row_name(run.config, protocol_of(run))}"
    if is_usual(run):
        return name
    return f"{name}-{hashlib.sha256(group_key(run).encode()).hexdigest()[:_DIGITS]}"


def small_networks(content: Content) -> tuple[dict[str, dict[str, Any]], dict[str, bytes]]:
    """What the table says of the networks that are kept, and their files: name -> content.

    That of seed 111 in each row. An entry of an older table stays where its run is not here.
    """
    entries: dict[str, dict[str, Any]] = {}
    files: dict[str, bytes] = {}
    for group in content.groups:
        for run in group.finished:
            if run.seed != SEED:
                continue
            source, key = run.folder / _EXPORT, group_key(run)
            if run.metrics and source.is_file():  # a run of an older table has no folder here
                if source.stat().st_size <= MOST_BYTES:
                    name = f"weights/{file_stem(group)}.safetensors"
                    files[name], entries[key] = source.read_bytes(), _entry(name, run)
            elif key in content.weights:
                entries[key] = content.weights[key]
    return entries, files


def _entry(name: str, run: Run) -> dict[str, Any]:
    """The error is that of the file in torch, in float32; without torch, that of the run."""
    assert run.outcome is not None
    torch_error = run.outcome.torch_error
    return {
        "file": name,
        "seed": run.seed,
        "error": round(run.outcome.error if torch_error is None else torch_error, 6),
        "different_predictions": run.outcome.different_predictions,
        "test_images": run.test_images,
    }
