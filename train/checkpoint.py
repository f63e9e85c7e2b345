"""Checkpoints of a run: written by Orbax in the background, restored into a state of the same form.

A checkpoint is three items. `model`: parameters and statistics by name; `description`: which
network they are, and the preprocessing of its images; `optimizer`: momentum and counters. The
converter reads the first two, and writes runs that have no third: training then starts from those
weights at step 0.
"""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from resnet_spec import ClassifierSpec, Preprocessing
from train.errors import UserError
from train.folder import CHECKPOINTS
from train.step import TrainState

_KEPT = 2


class Checkpoints:
    """The checkpoints in a run's folder; a context manager that waits for the last write."""

    def __init__(self, run_dir: Path, classifier: ClassifierSpec, preprocessing: Preprocessing):
        self.folder = (run_dir / CHECKPOINTS).resolve()
        self.classifier = classifier
        self.description = {**classifier.to_json(), "preprocessing": preprocessing.to_json()}
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=_KEPT, cleanup_tmp_directories=True, create=True
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def save(self, state: TrainState) -> None:
        """Starts writing `state`; an error of the write before is raised here."""
        self._manager.check_for_errors()
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                model=ocp.args.StandardSave({**state.params, **state.statistics}),
                description=ocp.args.JsonSave(self.description),
                optimizer=ocp.args.StandardSave(_as_tree(state.optimizer)),
            ),
        )

    def wait(self) -> None:
        """Until all is on disk; an error of a write is raised here."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

    def restore(self, fresh: TrainState) -> TrainState:
        """The newest checkpoint, placed as the arrays of `fresh`, a state of the same form.

        Raises:
            UserError: there is none, it is of another model, or it is damaged.
        """
        step = self._manager.latest_step()
        if step is None:
            raise UserError(f"{self.folder} holds no checkpoint to resume from")
        place = self.folder / str(step)
        try:
            self._check_description(step, place)
            restored = self._manager.restore(step, args=self._restore_args(fresh, step, place))
        except UserError:
            raise
        except Exception as error:  # Orbax raises bare Exception, among others, for damaged files
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"{place} cannot be restored: {reason}") from error
        model = restored["model"]
        optimizer = fresh.optimizer
        if "optimizer" in restored:
            structure = jax.tree.structure(fresh.optimizer)
            leaves = restored["optimizer"]
            optimizer = jax.tree.unflatten(structure, [leaves[name] for name in sorted(leaves)])
        return TrainState(
            step=jax.device_put(jax.numpy.asarray(step, fresh.step.dtype), fresh.step.sharding),
            params={name: model[name] for name in fresh.params},
            statistics={name: model[name] for name in fresh.statistics},
            optimizer=optimizer,
        )

    def _check_description(self, step: int, place: Path) -> None:
        items = self._manager.restore(
            step, args=ocp.args.Composite(description=ocp.args.JsonRestore())
        )
        found = ClassifierSpec.from_json(items["description"])
        if found != self.classifier:
            raise UserError(f"{place} is of another model: {found}, not {self.classifier}")

    def _restore_args(self, fresh: TrainState, step: int, place: Path) -> Any:
        model = _abstract({**fresh.params, **fresh.statistics})
        items: dict[str, Any] = {"model": ocp.args.StandardRestore(model)}
        if step > 0 or (place / "optimizer").is_dir():  # imported weights begin without one
            optimizer = _abstract(_as_tree(fresh.optimizer))
            items["optimizer"] = ocp.args.StandardRestore(optimizer)
        return ocp.args.Composite(**items)


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), tree)


def _as_tree(optimizer: Any) -> dict[str, Any]:
    """The leaves of an optimizer's state by number: Orbax keeps no named tuples."""
    return {f"{number:06d}": leaf for number, leaf in enumerate(jax.tree.leaves(optimizer))}
