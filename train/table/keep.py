"""Small networks of the table as files, so that anyone can measure their errors again."""

from typing import Any

from train.results.groups import group_key
from train.results.runs import Run
from train.table.content import Content
from train.table.protocol import protocol_of

SEED = 111
MOST_BYTES = 2_000_000
_EXPORT = "model.safetensors"


def small_networks(content: Content) -> tuple[dict[str, dict[str, Any]], dict[str, bytes]]:
    """What the table says of the networks that are kept, and their files: name -> content.

    One for each model and protocol, of seed 111: where there are several, of the longest run. An
    entry of an older table stays while its run is the one to keep.
    """
    best: dict[str, Run] = {}
    for group in content.groups:
        for run in group.finished:
            if run.seed == SEED:
                name = f"weights/{run.config.model}-{protocol_of(run)}.safetensors"
                best[name] = max(best.get(name, run), run, key=_length)
    entries: dict[str, dict[str, Any]] = {}
    files: dict[str, bytes] = {}
    for name, run in best.items():
        source, key = run.folder / _EXPORT, group_key(run)
        if run.metrics and source.is_file():  # a run of an older table has no folder here
            if source.stat().st_size <= MOST_BYTES:
                files[name], entries[key] = source.read_bytes(), _entry(name, run)
        elif key in content.weights:
            entries[key] = content.weights[key]
    return entries, files


def _length(run: Run) -> tuple[int, bool]:
    return run.total_steps, run.config.precision == "f32"


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
