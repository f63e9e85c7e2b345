"""Checkpoints of a run: written by Orbax in the background, restored into a state of the same form.

A checkpoint is four items. `model`: parameters and statistics by name; `description`: which
network they are, and the preprocessing of its images; `optimizer`: momentum by the parameter's
name, and the step of the schedule; `ema`: the average of what is in `model`, where the run keeps
one. The converter reads and writes them all; weights that it only imported have the first two:
training starts from them at step 0.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array

from resnet_spec import ClassifierSpec, Preprocessing
from train.errors import UserError
from train.folder import CHECKPOINTS
from train.optimizer import fill_state, named_state
from train.step import TrainState

_KEPT = 2
_SHOWN = 5  # of the arrays that do not fit
_ARRAY_ITEMS = ("model", "optimizer", "ema")

Items = dict[str, dict[str, Array]]


class Checkpoints:
    """The checkpoints in a run's folder; a context manager that waits for the last write."""

    def __init__(self, run_dir: Path, classifier: ClassifierSpec, preprocessing: Preprocessing):
        self.folder = (run_dir / CHECKPOINTS).resolve()
        self.classifier = classifier
        self.preprocessing = preprocessing
        self.description = {**classifier.to_json(), "preprocessing": preprocessing.to_json()}
        handlers: dict[str, Any] = {name: ocp.StandardCheckpointHandler() for name in _ARRAY_ITEMS}
        handlers["description"] = ocp.JsonCheckpointHandler()
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=_KEPT, cleanup_tmp_directories=True, create=True
            ),
            item_handlers=handlers,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def save(self, state: TrainState) -> None:
        """Starts writing `state`; an error of the write before is raised here."""
        self._manager.check_for_errors()
        # copied here: a step takes the memory of its state, and Orbax slices what is on many
        # devices, compiling anew for each shape
        arrays = jax.tree.map(np.array, _as_items(state))
        items: dict[str, Any] = {name: ocp.args.StandardSave(arrays[name]) for name in arrays}
        items["description"] = ocp.args.JsonSave(self.description)
        self._manager.save(int(state.step), args=ocp.args.Composite(**items))

    def wait(self) -> None:
        """Until all is on disk; an error of a write is raised here."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

    def restore(self, fresh: TrainState) -> TrainState:
        """The newest checkpoint, placed as the arrays of `fresh`, a state of the same form.

        Imported weights have neither optimizer nor average: those are as at the start of a run.

        Raises:
            UserError: there is none, it is of another model, run or version, or it is damaged.
        """
        step = self._manager.latest_step()
        if step is None:
            raise UserError(f"{self.folder} holds no checkpoint to resume from")
        place = self.folder / str(step)
        try:
            self._check_description(step, place)
            wanted = _as_items(fresh)
            if step == 0 and not (place / "optimizer").is_dir():
                wanted = {"model": wanted["model"]}
            self._check_arrays(step, place, wanted)
            args = {name: ocp.args.StandardRestore(_abstract(a)) for name, a in wanted.items()}
            found: Items = dict(self._manager.restore(step, args=ocp.args.Composite(**args)))
        except UserError:
            raise
        except Exception as error:  # Orbax raises bare Exception, among others, for damaged files
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"{place} cannot be restored: {reason}") from error
        return _from_items(fresh, found, step)

    def _check_description(self, step: int, place: Path) -> None:
        items = self._manager.restore(
            step, args=ocp.args.Composite(description=ocp.args.JsonRestore())
        )
        found = ClassifierSpec.from_json(items["description"])
        if found != self.classifier:
            raise UserError(f"{place} is of another model: {found}, not {self.classifier}")
        fields = items["description"].get("preprocessing")
        here = self.preprocessing
        if fields is not None and (fields["mean"], fields["std"]) != (
            list(here.mean),
            list(here.std),
        ):
            raise UserError(
                f"{place} was trained on images of mean {fields['mean']} and standard deviation "
                f"{fields['std']}, this data set is normalised by {list(here.mean)} and "
                f"{list(here.std)}: import the weights with "
                "--preprocessing none to go on with these"
            )

    def _check_arrays(self, step: int, place: Path, wanted: Items) -> None:
        """Raises a UserError unless names, shapes and dtypes fit: Orbax would cast silently."""
        metadata: Any = self._manager.item_metadata(step)
        problems = []
        for item in _ARRAY_ITEMS:
            is_there, is_wanted = (place / item).is_dir(), item in wanted
            if is_there and is_wanted:
                problems += [
                    f"{item}: {problem}"
                    for problem in _compare(dict(metadata[item].tree), wanted[item])
                ]
            elif is_there != is_wanted:
                problems.append(f"the item {item} is {'left over' if is_there else 'missing'}")
        if problems:
            more = f"; {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            raise UserError(
                f"{place} is no checkpoint of a run with these fields and this version: "
                + "; ".join(problems[:_SHOWN])
                + more
            )


def _as_items(state: TrainState) -> Items:
    """A state as named arrays, item by item."""
    model = {**state.params, **state.statistics}
    items = {"model": model, "optimizer": named_state(state.optimizer)}
    return items if state.ema is None else {**items, "ema": state.ema}


def _from_items(fresh: TrainState, items: Items, step: int) -> TrainState:
    model, ema, optimizer = items["model"], fresh.ema, fresh.optimizer
    if ema is not None:  # copied: a step takes the memory of its state, array by array
        ema = items.get("ema") or jax.tree.map(jnp.copy, model)
    if "optimizer" in items:
        optimizer = fill_state(optimizer, items["optimizer"])
    return TrainState(
        step=jax.device_put(jnp.asarray(step, fresh.step.dtype), fresh.step.sharding),
        params={name: model[name] for name in fresh.params},
        statistics={name: model[name] for name in fresh.statistics},
        optimizer=optimizer,
        ema=ema,
    )


def _compare(found: dict[str, Any], wanted: dict[str, Array]) -> list[str]:
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} is left over" for name in found if name not in wanted]
    for name, array in ((n, array) for n, array in wanted.items() if n in found):
        shape, dtype = found[name].shape, found[name].dtype
        if shape != array.shape:
            problems.append(f"{name} has the shape {shape}, not {array.shape}")
        elif jnp.promote_types(dtype, array.dtype) != array.dtype:
            problems.append(f"{name} is {dtype}, which {array.dtype} cannot hold")
    return problems


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), tree)
