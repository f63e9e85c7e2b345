"""The checkpoints in a training run's folder: Orbax items of named arrays, and the model they are.

The layout is `train.checkpoint`'s: `<run>/checkpoints/<step>/{model,description,optimizer,ema}`.
Nothing of JAX computes here: arrays stay NumPy's, in their own dtypes.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from convert import leaves
from convert.arrays import same_bits, value_problems
from convert.atomic import sync_folder, sync_tree
from convert.description import parse_description
from convert.errors import ConversionError
from convert.files import Weights
from convert.models import check
from resnet_spec import ClassifierSpec, Preprocessing

FOLDER = "checkpoints"
MODEL, DESCRIPTION, OPTIMIZER, EMA = "model", "description", "optimizer", "ema"

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
    has_average = (folder / EMA).is_dir()
    if weights == "ema" and not has_average:
        raise ConversionError(f"{folder} holds no moving average of the weights")
    item = EMA if has_average and weights != "raw" else MODEL
    checkpoint = read_checkpoint(folder, (item,))
    arrays = as_torch(checkpoint.items[item])
    check_values(f"{folder} holds what no weights should:", arrays, allow_nonfinite)
    return Weights(arrays, checkpoint.classifier, checkpoint.preprocessing)


def find_checkpoint(run: Path, step: int | None = None) -> Path:
    """The folder of a run's newest checkpoint, or of that of one `step`.

    Raises:
        ConversionError: there is none.
    """
    folder = run / FOLDER if (run / FOLDER).is_dir() else run
    if not folder.is_dir():
        raise ConversionError(f"{run} is no folder of a training run")
    steps = sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())
    if not steps or (step is not None and step not in steps):
        wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise ConversionError(f"{run} holds {wanted}; steps there: {steps or 'none'}")
    return folder / str(steps[-1] if step is None else step)


def read_checkpoint(folder: Path, items: tuple[str, ...]) -> Checkpoint:
    """These items of one checkpoint's folder.

    Raises:
        ConversionError: one is not there or damaged.
    """
    import jax
    import orbax.checkpoint as ocp

    step = int(folder.name)
    there = [name for name in (MODEL, OPTIMIZER, EMA) if (folder / name).is_dir()]
    handlers: Any = {name: ocp.PyTreeCheckpointHandler() for name in {*there, *items}}
    handlers[DESCRIPTION] = ocp.JsonCheckpointHandler()
    try:
        with ocp.CheckpointManager(folder.parent.resolve(), item_handlers=handlers) as manager:
            metadata = manager.item_metadata(step)
            args: dict[str, Any] = {DESCRIPTION: ocp.args.JsonRestore()}
            for name in items:
                tree = dict(metadata[name].tree)
                as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
                args[name] = ocp.args.PyTreeRestore(restore_args=as_numpy)
            found = manager.restore(step, args=ocp.args.Composite(**args))
        description = found[DESCRIPTION]
        classifier = parse_description(description, len(found[items[0]]))
        preprocessing = description.get(_PREPROCESSING)
        if preprocessing is not None:
            preprocessing = Preprocessing.from_json(preprocessing)
            preprocessing.check(classifier)
    except Exception as error:  # Orbax raises bare Exception, among others, for damaged files
        reason = str(error).strip().partition("\n")[0]
        raise ConversionError(f"{folder} is not a whole checkpoint: {reason}") from error
    return Checkpoint(step, classifier, {name: found[name] for name in items}, preprocessing)


def write_run(run: Path, weights: Weights, *, allow_nonfinite: bool = False) -> None:
    """A new run's folder with these weights at step 0; `resnet-train --resume` goes on from it.

    Raises:
        ConversionError: the folder is not empty, the model is not described, or a value is NaN or
            infinite.
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
    """
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise ConversionError(f"{run} is not empty: give a new folder")
    run = run.resolve()
    run.parent.mkdir(parents=True, exist_ok=True)
    temporary = run.with_name(f".{run.name}.new-{os.getpid()}")
    try:
        temporary.mkdir()
        yield temporary
        sync_tree(temporary)
        temporary.replace(run)
        sync_folder(run.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    """Writes one checkpoint into a run's folder, and reads it back.

    Raises:
        ConversionError: it reads back otherwise than written: Orbax has no checksums of its own.
    """
    import orbax.checkpoint as ocp

    items: dict[str, Any] = {
        name: ocp.args.StandardSave(dict(arrays)) for name, arrays in checkpoint.items.items()
    }
    description = checkpoint.classifier.to_json()
    if checkpoint.preprocessing is not None:
        description[_PREPROCESSING] = checkpoint.preprocessing.to_json()
    items[DESCRIPTION] = ocp.args.JsonSave(description)
    manager = ocp.CheckpointManager((run / FOLDER).resolve())
    with contextlib.closing(manager):
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
    """Raises a ConversionError that lists every array with NaN or infinite values."""
    problems = [
        problem
        for name, array in arrays.items()
        for problem in value_problems(name, array, allow_nonfinite=allow_nonfinite)
    ]
    if problems:
        raise ConversionError(what, problems)


def as_torch(arrays: Arrays) -> dict[str, np.ndarray]:
    """Arrays with Flax's names and axes in torch's, as views where that can be."""
    return {leaves.torch_name(name): leaves.to_torch(name, array) for name, array in arrays.items()}


def as_flax(arrays: Arrays) -> dict[str, np.ndarray]:
    """Arrays with torch's names and axes in Flax's, of memory of their own; counters are int32.

    Raises:
        ConversionError: a counter is too large.
    """
    named: dict[str, np.ndarray] = {}
    too_large = []
    for torch_name, array in arrays.items():
        name = leaves.flax_name(torch_name, array.ndim)
        if np.issubdtype(array.dtype, np.integer):
            if array.max() > np.iinfo(np.int32).max:
                too_large.append(f"{torch_name} is {array.max()}")
            array = array.astype(np.int32)
        named[name] = np.array(leaves.to_flax(name, array), order="C")
    if too_large:
        raise ConversionError("Flax counts batches in 32 bits:", too_large)
    return named
