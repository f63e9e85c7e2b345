"""The folder of a training run: its checkpoints are read, and a new run is written.

Nothing is computed by JAX: arrays stay NumPy's, in their own dtypes.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from convert.arrays import same_bits, value_problems
from convert.atomic import check_text, sync_folder, sync_tree
from convert.description import parse_description
from convert.errors import ConversionError
from convert.leaves import as_flax, as_torch
from convert.models import check
from convert.runs.disk_format import (
    CHECKPOINTS,
    DESCRIPTION,
    EMA,
    MODEL,
    PREPROCESSING,
    PROGRESS,
    read_documents,
    shorten,
)
from convert.runs.orbax_access import read_items, write_step
from convert.weights import Weights
from resnet_spec import ClassifierSpec, Preprocessing

# Files that Orbax of any version writes into each of its checkpoints.
_OF_ORBAX = ("_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt")

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Checkpoint:
    """One step of a run.

    Attributes:
        items: arrays with Flax's names and axes.
        seconds: wall time of the training so far.
    """

    step: int
    classifier: ClassifierSpec
    items: Mapping[str, Arrays]
    preprocessing: Preprocessing | None = None
    seconds: float = 0.0


def read_run(
    run: Path,
    step: int | None = None,
    weights: Literal["raw", "ema"] | None = None,
    *,
    allow_nonfinite: bool = False,
) -> Weights:
    """The weights of a run's newest checkpoint, or of one `step`, with torch's names and axes.

    `weights` are the newest ones or their moving average. The default is what the run itself
    exports: the average, if it keeps one.

    Raises:
        ConversionError: there is no such checkpoint or average, it is damaged, or a value is NaN,
            infinite or a negative variance.
    """
    folder = find_checkpoint(run, step)
    averaged = has_average(folder)
    if weights == "ema" and not averaged:
        raise ConversionError(f"{folder} holds no moving average of the weights")
    item = EMA if averaged and weights != "raw" else MODEL
    checkpoint = read_checkpoint(folder, (item,))
    arrays = as_torch(checkpoint.items[item])
    check_values(f"{folder} holds values that weights must not have:", arrays, allow_nonfinite)
    return Weights(arrays, checkpoint.classifier, checkpoint.preprocessing)


def find_checkpoint(run: Path, step: int | None = None) -> Path:
    """The folder of a run's newest checkpoint, or of that of one `step`.

    Raises:
        ConversionError: there is none, or another program wrote it.
    """
    folder = run / CHECKPOINTS if (run / CHECKPOINTS).is_dir() else run
    if not folder.is_dir():
        raise ConversionError(f"{run} is not the folder of a training run")
    steps = sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())
    if not steps:
        _check_own(folder)
    if not steps or (step is not None and step not in steps):
        wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise ConversionError(f"{run} holds {wanted}; steps there: {steps or 'none'}")
    found = folder / str(steps[-1] if step is None else step)
    _check_own(found)
    return found


def _check_own(folder: Path) -> None:
    """Raises a ConversionError if a folder is Orbax's, but nothing in it is this trainer's."""
    paths = list(folder.iterdir()) if folder.is_dir() else []
    if any(path.name in (DESCRIPTION, PROGRESS) for path in paths):
        return
    if any((place / name).exists() for place in (folder, *paths) for name in _OF_ORBAX):
        raise ConversionError(
            f"{folder} is an Orbax checkpoint, but not one of this trainer: restore it with the "
            "program that wrote it, and pass its tree to `convert.from_layout`, or write its "
            "arrays by numpy.savez with names like params/conv_init/kernel, and import that .npz"
        )


def has_average(folder: Path) -> bool:
    """Whether a checkpoint's folder was written with a moving average of the weights.

    Raises:
        ConversionError: it is damaged.
    """
    with _naming_damage(folder):
        return EMA in read_documents(folder).array_items


def read_checkpoint(folder: Path, items: tuple[str, ...]) -> Checkpoint:
    """These items of one checkpoint's folder; checksums are verified, if it has any.

    Raises:
        ConversionError: an item is missing or damaged.
    """
    with _naming_damage(folder):
        documents = read_documents(folder)
        if missing := [name for name in items if name not in documents.array_items]:
            raise ConversionError(f"{folder} holds no {' nor '.join(missing)}")
        found = read_items(folder, documents, items)
        classifier = parse_description(documents.description, len(found[items[0]]))
        preprocessing = documents.description.get(PREPROCESSING)
        if preprocessing is not None:
            preprocessing = Preprocessing.from_json(preprocessing)
            preprocessing.check(classifier)
        seconds = float(documents.progress.get("seconds", 0.0))
        return Checkpoint(int(folder.name), classifier, found, preprocessing, seconds)


def write_run(run: Path, weights: Weights, *, allow_nonfinite: bool = False) -> None:
    """Writes a new run with these weights at step 0; `resnet-train --resume` continues it.

    Raises:
        ConversionError: the folder is not empty, the model is not described, or a value is NaN,
            infinite or a negative variance.
        OSError: the folder cannot be written.
    """
    if weights.classifier is None:
        raise ConversionError("these weights do not say which model they are: give --model")
    check(weights.classifier, weights.arrays)
    weights.check_preprocessing()
    check_values(f"{run} is not written:", weights.arrays, allow_nonfinite)
    with new_run(run) as folder:
        items = {MODEL: as_flax(weights.arrays)}
        checkpoint = Checkpoint(0, weights.classifier, items, weights.preprocessing)
        write_checkpoint(folder, checkpoint)


@contextlib.contextmanager
def new_run(run: Path) -> Iterator[Path]:
    """A temporary folder that becomes `run` when the block ends without an error.

    Raises:
        ConversionError: the run's folder exists and is not empty.
        OSError: it cannot be written.
    """
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise ConversionError(f"{run} is not empty: give a new folder")
    check_text(run)
    run = run.resolve()
    run.parent.mkdir(parents=True, exist_ok=True)
    temporary = run.with_name(f".{run.name}.new-{os.getpid()}")
    try:
        temporary.mkdir()
        yield temporary
        sync_tree(temporary)
        temporary.replace(run)
        sync_folder(run.parent)
    except (ConversionError, ImportError):
        raise
    except Exception as error:  # Orbax and TensorStore raise anything
        raise OSError(f"{run} could not be written ({shorten(error)}); nothing is left") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    """Writes one checkpoint into a run's folder, and reads it back.

    Raises:
        ConversionError: it reads back differently.
    """
    description = checkpoint.classifier.to_json()
    if checkpoint.preprocessing is not None:
        description[PREPROCESSING] = checkpoint.preprocessing.to_json()
    progress = {"seconds": checkpoint.seconds} if checkpoint.seconds else {}
    write_step(run / CHECKPOINTS, checkpoint.step, checkpoint.items, description, progress)
    folder = find_checkpoint(run, checkpoint.step)
    found = read_checkpoint(folder, tuple(checkpoint.items))
    wrong = [
        f"{item}: {name}"
        for item, arrays in checkpoint.items.items()
        for name, array in arrays.items()
        if name not in found.items[item] or not same_bits(found.items[item][name], array)
    ]
    if wrong:
        raise ConversionError(f"{folder} reads back differently from what was written:", wrong)


def check_values(what: str, arrays: Arrays, allow_nonfinite: bool = False) -> None:
    """Raises a ConversionError that lists arrays with NaN, infinite or negative-variance values."""
    problems = [
        problem
        for name, array in arrays.items()
        for problem in value_problems(name, array, allow_nonfinite=allow_nonfinite)
    ]
    if problems:
        raise ConversionError(what, problems)


@contextlib.contextmanager
def _naming_damage(folder: Path) -> Iterator[None]:
    try:
        yield
    except (ConversionError, ImportError):
        raise
    except Exception as error:  # a description may be damaged in any way
        raise ConversionError(f"{folder} is not a whole checkpoint: {shorten(error)}") from error
