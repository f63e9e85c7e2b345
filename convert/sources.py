"""Anything that holds weights, read alike: a file, a training run, a Hugging Face folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from convert import checkpoints, files, folders
from convert.errors import ConversionError
from convert.weights import Weights


@dataclass(frozen=True)
class Source:
    """What was read, the form that it was in, and whose names it had, where the form says it.

    The weights of a model folder are under our names already.
    """

    weights: Weights
    form: str
    layout: str | None = None


def read_source(
    path: Path,
    *,
    step: int | None = None,
    average: Literal["raw", "ema"] | None = None,
    reset_counters: bool = False,
    allow_nonfinite: bool = False,
) -> Source:
    """The weights at a path.

    Args:
        path: a file of weights, the folder of a training run, or a Hugging Face folder.
        step: of a run's checkpoint; None is the newest.
        average: the run's newest weights or their moving average; None is the average if any.
        reset_counters: take missing `num_batches_tracked` of a model folder as zero.
        allow_nonfinite: take NaN and infinite values too.

    Raises:
        ConversionError: it is none of these, or it is damaged.
        OSError: it cannot be read.
    """
    path.stat()  # a clear FileNotFoundError or PermissionError before any guess at its form
    is_hugging_face = folders.is_model_folder(path)
    is_run = path.is_dir() and not is_hugging_face
    if not is_run and (step is not None or average is not None):
        raise ConversionError(f"--step and --weights are for a run's folder, and {path} is none")
    if is_hugging_face:
        weights = folders.read_folder(
            path, reset_counters=reset_counters, allow_nonfinite=allow_nonfinite
        )
        layout = folders.layout_of(path)
        return Source(weights, f"model folder of {layout or 'ours'}", layout)
    if is_run:
        return Source(
            checkpoints.read_run(path, step, average, allow_nonfinite=allow_nonfinite),
            "training run (Orbax)",
        )
    weights = files.read_weights(path, allow_nonfinite=allow_nonfinite)
    return Source(weights, f"{path.suffix} file")
