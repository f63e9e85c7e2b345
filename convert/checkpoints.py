"""The checkpoints in a training run's folder: `<run>/checkpoints/<step>`.

What is in one is said in `resnet_spec.checkpoints`. Nothing of JAX computes here: arrays stay
NumPy's, in their own dtypes.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from convert.arrays import same_bits, value_problems
from convert.atomic import check_text, sync_folder, sync_tree
from convert.description import parse_description
from convert.errors import ConversionError
from convert.files import Weights
from convert.leaves import as_flax, as_torch
from convert.models import check
from convert.orbax_folders import check_own
from resnet_spec import ClassifierSpec, Preprocessing
from resnet_spec.checkpoints import (
    DESCRIPTION,
    EMA,
    MODEL,
    PROGRESS,
    log_no_tracebacks,
    patient_loops,
    read_documents,
    seal,
    shorten,
)

FOLDER = "checkpoints"

_PREPROCESSING = "preprocessing"

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Checkpoint:
    """One step of a run; `items` are arrays with Flax's names and axes.

    `preprocessing` is a field of the description, beside the model's.
    """

    step: int
    classifier: ClassifierSpec
    items: Mapping[str, Arrays]
    preprocessing: Preprocessing | None = None


def read_run(
    run: Path,
    step: int | None = None,
    weights: Literal["raw", "ema"] | None = None,
    *,
    allow_nonfinite: bool = False,
) -> Weights:
    """The weights of a run's newest checkpoint, or of one `step`, with torch's names and axes.

    `weights` are the newest ones or their moving average; by default what the run itself exports,
    the average where it keeps one.

    Raises:
        ConversionError: there is no such checkpoint or average, it is damaged, or a value is NaN
            or infinite.
    """
    folder = find_checkpoint(run, step)
    averaged = has_average(folder)
    if weights == "ema" and not averaged:
        raise ConversionError(f"{folder} holds no moving average of the weights")
    item = EMA if averaged and weights != "raw" else MODEL
    checkpoint = read_checkpoint(folder, (item,))
    arrays = as_torch(checkpoint.items[item])
    check_values(f"{folder} holds what no weights should:", arrays, allow_nonfinite)
    return Weights(arrays, checkpoint.classifier, checkpoint.preprocessing)


def find_checkpoint(run: Path, step: int | None = None) -> Path:
    """The folder of a run's newest checkpoint, or of that of one `step`.

    Raises:
        ConversionError: there is none, or it is another program's.
    """
    folder = run / FOLDER if (run / FOLDER).is_dir() else run
    if not folder.is_dir():
        raise ConversionError(f"{run} is no folder of a training run")
    steps = sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())
    if not steps:
        check_own(folder)
    if not steps or (step is not None and step not in steps):
        wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise ConversionError(f"{run} holds {wanted}; steps there: {steps or 'none'}")
    found = folder / str(steps[-1] if step is None else step)
    check_own(found)
    return found


def has_average(folder: Path) -> bool:
    """Whether a checkpoint's folder was written with a moving average of the weights.

    Raises:
        ConversionError: it is damaged.
    """
    with _naming_damage(folder):
        return EMA in read_documents(folder).array_items


def read_checkpoint(folder: Path, items: tuple[str, ...]) -> Checkpoint:
    """These items of one checkpoint's folder, with their checksums verified where it has any.

    Raises:
        ConversionError: one is not there or damaged.
    """
    with _naming_damage(folder):
        documents = read_documents(folder)
        if missing := [name for name in items if name not in documents.array_items]:
            raise ConversionError(f"{folder} holds no {' nor '.join(missing)}")
        with patient_loops():
            found = {name: _read_arrays(folder / name) for name in items}
        documents.verify(found)
        classifier = parse_description(documents.description, len(found[items[0]]))
        preprocessing = documents.description.get(_PREPROCESSING)
        if preprocessing is not None:
            preprocessing = Preprocessing.from_json(preprocessing)
            preprocessing.check(classifier)
        return Checkpoint(int(folder.name), classifier, found, preprocessing)


def write_run(run: Path, weights: Weights, *, allow_nonfinite: bool = False) -> None:
    """A new run's folder with these weights at step 0; `resnet-train --resume` goes on from it.

    Raises:
        ConversionError: the folder is not empty, the model is not described, or a value is NaN or
            infinite.
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
    """A folder to fill, which becomes `run` when all went well.

    Raises:
        ConversionError: the run's folder is there already, and is not empty.
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
        ConversionError: it reads back otherwise than written.
    """
    import orbax.checkpoint as ocp

    items: dict[str, Any] = {
        name: ocp.args.StandardSave(dict(arrays)) for name, arrays in checkpoint.items.items()
    }
    description = checkpoint.classifier.to_json()
    if checkpoint.preprocessing is not None:
        description[_PREPROCESSING] = checkpoint.preprocessing.to_json()
    items[DESCRIPTION] = ocp.args.JsonSave(description)
    items[PROGRESS] = ocp.args.JsonSave(seal({}, description, checkpoint.items))
    log_no_tracebacks()
    with (
        patient_loops(),
        contextlib.closing(ocp.CheckpointManager((run / FOLDER).resolve())) as manager,
    ):
        manager.save(checkpoint.step, args=ocp.args.Composite(**items))
        manager.wait_until_finished()
        manager.check_for_errors()
    folder = find_checkpoint(run, checkpoint.step)
    found = read_checkpoint(folder, tuple(checkpoint.items))
    wrong = [
        f"{item}: {name}"
        for item, arrays in checkpoint.items.items()
        for name, array in arrays.items()
        if name not in found.items[item] or not same_bits(found.items[item][name], array)
    ]
    if wrong:
        raise ConversionError(f"{folder} reads back otherwise than written:", wrong)


def check_values(what: str, arrays: Arrays, allow_nonfinite: bool = False) -> None:
    """Raises a ConversionError that lists every array with values that are none of a weight."""
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
    except Exception as error:  # Orbax raises bare Exception, among others, for damaged files
        raise ConversionError(f"{folder} is not a whole checkpoint: {shorten(error)}") from error


def _read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """By the item's handler: a manager would read, and could refuse, what is beside it."""
    import jax
    import orbax.checkpoint as ocp
    from etils import epath  # Orbax's own kind of path

    handler, place = ocp.PyTreeCheckpointHandler(), epath.Path(folder.resolve())
    tree: Any = dict(handler.metadata(place).tree)
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return dict(handler.restore(place, args=ocp.args.PyTreeRestore(restore_args=as_numpy)))
