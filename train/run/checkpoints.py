"""The checkpoints of a run: Orbax writes them in the background; the newest good one is restored.

`convert.runs.disk_format` describes their contents.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, LatestN

from convert.runs.disk_format import (
    ARRAY_ITEMS,
    CHECKPOINTS,
    DESCRIPTION,
    PREPROCESSING,
    PROGRESS,
    DamageError,
    seal,
    shorten,
)
from convert.runs.orbax_access import log_no_tracebacks, patient_loops, save_arguments
from resnet_spec import ClassifierSpec, Preprocessing
from train.errors import UserError
from train.run.retention import Best, add_error, find_best, list_steps, read_errors
from train.run.saved_state import as_items, fill, find_misfits, read
from train.step.train_step import TrainState

_NEWEST = 2  # kept beside the best: if one is damaged, the run goes on from the other
_WAY_OUT = "another run can start from its weights: --init-from {} with a new --run-dir"


class Checkpoints:
    """The checkpoints in a run's folder; a context manager that waits for the last write.

    It keeps the two newest and the one with the lowest test error. States are on the host: the
    caller of `restore` places them on its devices, however many. If a run has several processes,
    one of them has this object, and sends the others what it restored.

    Args:
        say: receives a line about each damaged checkpoint; by default it is printed on stderr.

    Attributes:
        restored: the progress in the restored checkpoint; empty if it has none.
        weights: a name for imported weights, if these were restored and not a state of this run.

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
        self._description = {**classifier.to_json(), PREPROCESSING: preprocessing.to_json()}
        self.folder.mkdir(parents=True, exist_ok=True)
        log_no_tracebacks()
        self._errors = read_errors(self.folder)
        self._manager = self._make_manager()
        self._loops = patient_loops()

    def _make_manager(self) -> ocp.CheckpointManager:
        handlers: dict[str, Any] = {name: ocp.StandardCheckpointHandler() for name in ARRAY_ITEMS}
        handlers |= {name: ocp.JsonCheckpointHandler() for name in (DESCRIPTION, PROGRESS)}
        options = ocp.CheckpointManagerOptions(
            create=False,  # it exists, and Orbax would wait for the other processes
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
            self._say(str(failure))  # another error is being raised
        finally:
            with contextlib.suppress(Exception):  # it raises that of the write again
                self._manager.close()
            self._loops.__exit__(None, None, None)

    def save(self, state: TrainState, *, error: float | None = None, seconds: float = 0) -> None:
        """Starts writing `state`; all of it is copied before this returns.

        `error` is the test error of exactly this state, None if it was not tested; `seconds` the
        wall time of the training so far. If this very state is saved already, only an `error` that
        it lacks is added.

        Raises:
            OSError: it cannot be written, the write before failed, or there is another state of
                this step.
        """
        step, items = int(state.step), as_items(state)
        counts = {"seed": int(state.seed), "skipped": int(state.skipped)}
        progress = {**counts, "error": error, "seconds": seconds}
        sealed = seal(progress, self._description, items)
        if self._is_there(step, sealed):
            with self._naming_failures():
                self._errors |= add_error(self.folder, step, error)
            return
        if error is not None:
            self._errors[step] = error
        with self._naming_failures():
            arguments = save_arguments(items, self._description, sealed)
            self._manager.save(step, args=arguments, force=True)

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
            OSError: a write failed; the checkpoints before it are unchanged.
        """
        with self._naming_failures():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def restore(self, fresh: TrainState, *, step: int | None = None) -> TrainState:
        """The newest good checkpoint, or that of one `step`, as NumPy arrays in `fresh`'s form.

        Newer ones that are damaged are reported, and renamed to `<step>.damaged`.

        Raises:
            UserError: there is none, none is good, or it does not fit the run; all is listed.
            OSError: one cannot be read; nothing is renamed.
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
        """Deletes the newer ones: a run that goes on from `step` will save them again."""
        for other in [other for other in self._manager.all_steps() if other > step]:
            self._manager.delete(other)
            self._errors.pop(other, None)

    def latest_step(self) -> int | None:
        """The newest, perhaps still being written; None if there is none."""
        return self._manager.latest_step()

    def best(self) -> tuple[int, float] | None:
        """Step and test error of the best, the newest if equal; None if none was tested."""
        step = find_best(self._errors, self._manager.all_steps())
        return None if step is None else (step, self._errors[step])

    def _is_there(self, step: int, sealed: dict[str, Any]) -> bool:
        """Whether this state is on disk; a damaged one of the same step is renamed.

        Raises:
            OSError: another state of the step is on disk.
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
        """Reports damaged checkpoints and renames them: their steps will be saved again."""
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
                "those before it are unchanged"
            ) from error


def _free_name(place: Path) -> Path:
    names = (place.with_name(f"{place.name}.damaged{n}") for n in ("", *map(str, range(1, 1000))))
    return next(name for name in names if not name.exists())


def _print_error(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
