"""Anything that holds weights, read alike: a file, a training run, a Hugging Face folder."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from convert import files, folders, programs
from convert.errors import ConversionError
from convert.runs.saved_run import read_run
from convert.weights import Weights
from resnet_spec import Preprocessing, ResNetSpec


@dataclass(frozen=True)
class Source:
    """What was read, the form that it was in, and whose names it had, where the form says it.

    The weights of a model folder are under our names already. `beside` is the network of a file
    without a description, as the `config.json` in its folder has it.
    """

    weights: Weights
    form: str
    layout: str | None = None
    beside: ResNetSpec | None = None

    def check_beside(self, path: Path, spec: ResNetSpec) -> None:
        """Raises a ConversionError where the user states another network than is said beside."""
        if self.beside is not None and (problems := spec.differences(self.beside)):
            raise ConversionError(
                f"the config.json beside {path} says that it is of another network (move the file "
                "away if that is not its configuration):",
                problems,
            )


def read_source(
    path: Path,
    *,
    step: int | None = None,
    average: Literal["raw", "ema"] | None = None,
    entry: str = "",
    prefix: str = "",
    reset_counters: bool = False,
    allow_nonfinite: bool = False,
    judge_values: bool = True,
    needs_preprocessing: bool = True,
    believes_beside: bool = True,
) -> Source:
    """The weights at a path.

    Args:
        path: a file of weights, the folder of a training run, or a Hugging Face folder.
        step: of a run's checkpoint; None is the newest.
        average: the run's newest weights or their moving average; None is the average if any.
        entry: of the state dicts in what `torch.save` wrote, the one to take.
        prefix: of a file take only the tensors whose names begin so, and take it off.
        reset_counters: take missing `num_batches_tracked` of a model folder as zero.
        allow_nonfinite: take NaN, infinite values and negative variances, too.
        judge_values: False takes them, and empty tensors of a file: the caller lists them.
        needs_preprocessing: False leaves out a model folder's that the table cannot say, with a
            note.
        believes_beside: False takes the file of a folder whose `config.json` is of a network that
            the table has not, with a note.

    Raises:
        ConversionError: it is none of these, or it is damaged, or the `config.json` beside a file
            describes a network that the table has not.
        OSError: it cannot be read.
    """
    path.stat()  # a clear FileNotFoundError or PermissionError before any guess at its form
    is_hugging_face = folders.is_model_folder(path)
    is_run = path.is_dir() and not is_hugging_face
    if not is_run and (step is not None or average is not None):
        raise ConversionError(f"--step and --weights are for a run's folder, and {path} is none")
    allow_nonfinite |= not judge_values
    for option, value in (("--entry", entry), ("--prefix", prefix)):
        if value and path.is_dir():
            raise ConversionError(
                f"{option} is for a file of weights, and {path} is a folder: name the file in it"
            )
    if is_hugging_face:
        weights = folders.read_folder(
            path,
            reset_counters=reset_counters,
            allow_nonfinite=allow_nonfinite,
            needs_preprocessing=needs_preprocessing,
        )
        layout = folders.layout_of(path)
        return Source(weights, f"model folder of {layout or 'ours'}", layout)
    if is_run:
        return Source(
            read_run(path, step, average, allow_nonfinite=allow_nonfinite),
            "training run (Orbax)",
        )
    weights = files.read_weights(
        path,
        entry=entry,
        prefix=prefix,
        allow_nonfinite=allow_nonfinite,
        judge_values=judge_values,
    )
    beside = None
    try:
        if weights.classifier is None:
            beside = folders.network_beside(path, weights)
    except ConversionError as error:
        if believes_beside:
            raise
        weights = replace(weights, notes=(*weights.notes, f"refused by `import`: {error}"))
    if beside is not None:
        note = (
            f"left out: how images were prepared and what the classes are called, as far as the "
            f"folder says it: give the folder, {path.parent}, to take that too"
        )
        weights = replace(weights, notes=(*weights.notes, note))
    return Source(weights, f"{path.suffix} file", beside=beside)


def load_preprocessing(path: str | os.PathLike[str]) -> Preprocessing | None:
    """How images were prepared, as a file, a run, a folder or a model for inference says it.

    Returns:
        None where it says nothing.

    Raises:
        ConversionError: the path is none of these, or what it says is damaged, or a Hugging Face
            folder prepares images as `Preprocessing` cannot say it.
        OSError: it cannot be read.
    """
    return _read_description(Path(path), needs_preprocessing=True).preprocessing


def load_statistics_batch_size(path: str | os.PathLike[str]) -> int | None:
    """Images that each running variance was taken over, None where the source says nothing of it.

    Raises: as `load_preprocessing`.
    """
    classifier = _read_description(Path(path), needs_preprocessing=False).classifier
    return None if classifier is None else classifier.statistics_batch_size


def _read_description(path: Path, *, needs_preprocessing: bool) -> Weights:
    if path.is_dir():
        return read_source(
            path,
            reset_counters=True,
            judge_values=False,
            needs_preprocessing=needs_preprocessing,
        ).weights
    if programs.is_program(path):
        return programs.read_description(path)
    return files.read_description(path)
