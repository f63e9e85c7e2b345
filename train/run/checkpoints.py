"""The checkpoints of a run: written by Orbax in the background, and the newest good one read back.

What is in one is said in `resnet_spec.checkpoints`.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, LatestN

from resnet_spec import ClassifierSpec, Preprocessing
from resnet_spec.checkpoints import (
    ARRAY_ITEMS,
    DESCRIPTION,
    PROGRESS,
    DamageError,
    log_no_tracebacks,
    patient_loops,
    seal,
    shorten,
)
from train.errors import UserError
from train.run.retention import Best, add_error, find_best, list_steps, read_errors
from train.run.run_folder import CHECKPOINTS
from train.run.saved_state import as_items, fill, find_misfits, read
from train.step.train_step import TrainState

_NEWEST = 2  # kept beside the best; if one is damaged, the other goes on
_WAY_OUT = "another run can start from its weights: --init-from {} with a new --run-dir"


class Checkpoints:
    """The checkpoints in a run's folder; a context manager that waits for the last write.

    Kept are the two newest and the one of the lowest test error. States are on the host: whoever
    restores one places it on the devices, as many as there are. Where a run has several processes,
    one of them has this, and tells the others what it restored.

    Args:
        say: is told of every damaged checkpoint; by default it is printed on stderr.

    Attributes:
        restored: what the restored checkpoint says of its progress; empty where there is none.
        weights: what was restored where it was weights alone, that are not this run's own.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(
        self,
        run_dir: Path,
        classifier: ClassifierSpec,
        preprocessing: Preprocessing,
        *,
        say: Callable[[str], None] | None = None,
    ):
        self.folder = (run_dir / CHECKPOINTS).resolve()
        self.classifier, self.preprocessing = classifier, preprocessing
        self._say = say or _print_error
        self.restored: Mapping[str, Any] = {}
        self.weights: str | None = None
        self._description = {**classifier.to_json(), "preprocessing": preprocessing.to_json()}
        self.folder.mkdir(parents=True, exist_ok=True)
        log_no_tracebacks()
        self._errors = read_errors(self.folder)
        self._manager = self._make_manager()
        self._loops = patient_loops()

    def _make_manager(self) -> ocp.CheckpointManager:
        handlers: dict[str, Any] = {name: ocp.StandardCheckpointHandler() for name in ARRAY_ITEMS}
        handlers |= {name: ocp.JsonCheckpointHandler() for name in (DESCRIPTION, PROGRESS)}
        options = ocp.CheckpointManagerOptions(
            create=False,  # it is there, and Orbax would wait for the other processes
            cleanup_tmp_directories=True,
            lightweight_initialize=True,
            preservation_policy=AnyPreservationPolicy([LatestN(_NEWEST), Best(self._errors)]),
            multiprocessing_options=ocp.options.MultiprocessingOptions(active_processes={0}),
        )
        return ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def __enter__(self) -> "Checkpoints":
        self._loops.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except OSError as failure:
            if kind is None:
                raise
            self._say(str(failure))  # another error is on its way
        finally:
            with contextlib.suppress(Exception):  # that of the write, once more
                self._manager.close()
            self._loops.__exit__(None, None, None)

    def save(self, state: TrainState, *, error: float | None = None, seconds: float = 0) -> None:
        """Starts writing `state`; all of it is copied before this returns.

        `error` is the test error of exactly this state, None where it was not tested; `seconds`
        the wall time that it took.

        Raises:
            OSError: it cannot be written, or the write before failed; or there is another state of
                this step. A state that is there already is left as it is, but for an error that was
                not known.
        """
        step, items = int(state.step), as_items(state)
        counts = {"seed": int(state.seed), "skipped": int(state.skipped)}
        progress = {**counts, "error": error, "seconds": seconds}
        sealed = seal(progress, self._description, items)
        if self._is_there(step, sealed):
            with self._naming_failures():
                self._errors |= add_error(self.folder, step, error)
            return
        args: dict[str, Any] = {name: ocp.args.StandardSave(items[name]) for name in items}
        args[DESCRIPTION] = ocp.args.JsonSave(self._description)
        args[PROGRESS] = ocp.args.JsonSave(sealed)
        if error is not None:
            self._errors[step] = error
        with self._naming_failures():
            self._manager.save(step, args=ocp.args.Composite(**args), force=True)

    def wait(self) -> None:
        """Until all is on disk.

        Raises:
            OSError: a write failed; the checkpoints before are as they were.
        """
        with self._naming_failures():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def restore(self, fresh: TrainState, *, step: int | None = None) -> TrainState:
        """The newest good checkpoint, or that of one `step`, as NumPy arrays in `fresh`'s form.

        Damaged ones that are newer are named, and renamed to `<step>.damaged`.

        Raises:
            UserError: there is none, none is good, or it does not fit the run; all is listed.
            OSError: one cannot be read; all are left as they are.
        """
        self.wait()
        steps = list_steps(self.folder)
        if not steps or step not in (None, *steps):
            wanted = "to resume from" if step is None else f"of step {step}; there are {steps}"
            raise UserError(f"{self.folder} holds no checkpoint {wanted}")
        damaged: dict[int, str] = {}
        for candidate in reversed(steps) if step is None else [step]:
            try:
                saved = read(self.folder / str(candidate))
            except DamageError as damage:
                damaged[candidate] = str(damage)
                continue
            misfits = find_misfits(saved, self.classifier, self.preprocessing, fresh)
            if misfits:
                raise UserError(
                    f"{self.folder / str(candidate)} does not fit this run:\n  "
                    + "\n  ".join([*misfits, _WAY_OUT.format(self.folder.parent)])
                )
            self._set_aside(damaged, candidate)
            self.restored = saved.documents.progress
            if saved.is_imported:
                self.weights = f"imported weights {self.restored.get('checksum', '')[:8]}".strip()
            return fill(fresh, saved)
        lines = [f"{self.folder / str(number)}: {what}" for number, what in damaged.items()]
        raise UserError("\n  ".join(["no checkpoint is good; each is damaged:", *lines]))

    def delete_after(self, step: int) -> None:
        """Deletes those that are newer: a run that goes on from `step` makes them anew."""
        newer = [other for other in self._manager.all_steps() if other > step]
        for other in newer:
            self._manager.delete(other)
            self._errors.pop(other, None)

    def latest_step(self) -> int | None:
        """The newest, that being written among them; None where there is none."""
        return self._manager.latest_step()

    def best(self) -> tuple[int, float] | None:
        """Step and test error of the best, the newest of several; None where none was tested."""
        step = find_best(self._errors, self._manager.all_steps())
        return None if step is None else (step, self._errors[step])

    def _is_there(self, step: int, sealed: dict[str, Any]) -> bool:
        """Whether this state is on disk; one of the step that is damaged is set aside.

        Raises:
            OSError: another state of the step is there.
        """
        if step not in {*self._manager.all_steps(), *list_steps(self.folder)}:
            return False
        self.wait()
        place = self.folder / str(step)
        try:
            found = read(place).documents.progress.get("checksums")
        except DamageError as damage:
            self._set_aside({step: str(damage)})
            return False
        if found not in (None, sealed["checksums"]):
            raise FileExistsError(f"{place} holds another state of step {step}: nothing written")
        return True

    def _set_aside(self, damaged: dict[int, str], newest_good: int | None = None) -> None:
        """Names damaged checkpoints, and renames them: their steps will be saved again."""
        if not damaged:
            return
        for step, damage in damaged.items():
            place = self.folder / str(step)
            line = f"{place} is damaged ({damage})"
            try:
                kept = _free_name(place)
                place.rename(kept)
                line += f", renamed to {kept.name}"
            except OSError as error:
                line += f", and cannot be renamed ({error})"
            going_on = "" if newest_good is None else f"; going on from step {newest_good}"
            self._say(line + going_on)
            self._errors.pop(step, None)
        self._manager.reload()

    @contextlib.contextmanager
    def _naming_failures(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise anything
            raise OSError(
                f"{self.folder}: a checkpoint could not be written ({shorten(error)}); "
                "those before it are as they were"
            ) from error


def _free_name(place: Path) -> Path:
    names = (place.with_name(f"{place.name}.damaged{n}") for n in ("", *map(str, range(1, 1000))))
    return next(name for name in names if not name.exists())


def _print_error(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
