"""One run: its checkpoints and metrics, and its result."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from train.data.dataset import image_dtype
from train.errors import UserError
from train.run import elsewhere, export
from train.run.checkpoints import Checkpoints
from train.run.json_files import write_json
from train.run.metrics import MetricsLog
from train.run.retention import list_steps
from train.run.run_folder import RESULT, locked, own_config, watch_place
from train.run.trainer import Score, Trainer
from train.step import processes
from train.step.train_step import TrainState, averaged

Say = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """The result of a run, `result.json`.

    Attributes:
        weights: the tested and exported ones: `ema` for the average, `raw` for the newest.
        error: fraction of wrong test images after `step` steps.
        best_step, best_error: of the checkpoint with the lowest error, which is kept, too.
        seconds: wall time of all starts; of a killed one up to the checkpoint that was resumed.
        skipped_steps: number of steps whose loss or gradient was not finite.
        skipped_images: damaged images that this process met, each with the reason.
        digest: of the exported weights, as `resnet-convert inspect` prints it.
        other_packages: the export in other packages, by their own pipelines; of streamed data.
    """

    seed: int
    weights: str
    step: int
    error: float
    loss: float
    images: int
    best_step: int
    best_error: float
    seconds: float
    skipped_steps: int
    skipped_images: dict[str, str]
    exported: str
    digest: str
    parity: export.Parity | None
    other_packages: list[elsewhere.Elsewhere]


class Run:
    """The files of one seed's run; a context manager. Only the first process has any."""

    def __init__(self, seed: int, folder: Path, trainer: Trainer, say: Say):
        self.seed, self.folder = seed, folder
        self._trainer, self._say = trainer, say
        self._start_time = time.perf_counter()
        self._files = contextlib.ExitStack()
        self.checkpoints: Checkpoints | None = None
        self._metrics: MetricsLog | None = None
        self._check_place: Callable[[], None] = lambda: None

    def __enter__(self) -> "Run":
        if processes.is_first_process():
            if self._trainer.config.seeds is not None:  # in the folder that is claimed
                self.folder.mkdir(exist_ok=True)
                self._files.enter_context(locked(self.folder))
            preprocessing = self._trainer.dataset.preprocessing
            self.checkpoints = self._files.enter_context(
                Checkpoints(self.folder, self._trainer.classifier, preprocessing, say=self._say)
            )
            self._check_place = watch_place(self.folder)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._files.__exit__(*exception)

    def restore(self, fresh: TrainState) -> TrainState:
        """The newest good checkpoint, in all processes; `fresh` if there is none."""

        def read() -> TrainState:
            if self.checkpoints is None:  # another process than the first
                return fresh
            if self.checkpoints.latest_step() is None:
                self._say(f"{self.folder} holds no checkpoint yet: it starts from the beginning")
                return fresh
            return self.checkpoints.restore(fresh)

        return processes.from_first_process(read)

    def holds(self, step: int) -> bool:
        """Whether there is a checkpoint of this step."""

        def look() -> np.ndarray:
            return np.array(self.checkpoints is None or step in list_steps(self.checkpoints.folder))

        return bool(processes.from_first_process(look))

    def go_back(self, fresh: TrainState, step: int) -> TrainState:
        """The checkpoint of an earlier step; deletes the newer ones."""

        def read() -> TrainState:
            if self.checkpoints is None:
                return fresh
            state = self.checkpoints.restore(fresh, step=step)
            self.checkpoints.delete_after(step)
            self._say(f"{self.folder} goes back to step {step}, the last one that all seeds have")
            return state

        return processes.from_first_process(read)

    @property
    def _restored(self) -> Mapping[str, Any]:
        return {} if self.checkpoints is None else self.checkpoints.restored

    @property
    def weights(self) -> str | None:
        """The name of imported weights that it begins with, else None."""
        return None if self.checkpoints is None else self.checkpoints.weights

    @property
    def is_untested(self) -> bool:
        """Whether the restored state was saved without a test."""
        return self._restored.get("error", 0.0) is None  # imported weights have no such entry

    @property
    def seconds(self) -> float:
        """Wall time so far, earlier starts included."""
        before = self._restored.get("seconds", 0.0)
        return round(before + time.perf_counter() - self._start_time, 3)

    @property
    def best_error(self) -> float:
        """The lowest test error of a checkpoint so far, infinity before the first."""
        best = None if self.checkpoints is None else self.checkpoints.best()
        return math.inf if best is None else best[1]

    def begin(self, first_step: int) -> None:
        """Opens the metrics and drops those after `first_step`."""
        if processes.is_first_process():
            config = own_config(self._trainer.config, self.seed, self.folder)
            self._metrics = self._files.enter_context(
                MetricsLog(
                    self.folder,
                    start_step=first_step,
                    is_tested=not self.is_untested,
                    config=config,
                )
            )

    def log(self, step: int, kind: str, values: dict[str, float]) -> None:
        """Writes a line of metrics; `kind` is train or test."""
        if self._metrics is not None:
            self._check_place()
            self._metrics.write(step, kind, values)

    def save(self, state: TrainState, error: float | None) -> None:
        """Starts writing a host state with its test error, if known."""
        if self.checkpoints is not None:
            self._check_place()
            self.checkpoints.save(state, error=error, seconds=self.seconds)

    def wait(self) -> None:
        """Waits until all is on disk; OSError if a write failed or the run's folder was moved."""
        if self.checkpoints is not None:
            self._check_place()
            self.checkpoints.wait()


def common_states(runs: Sequence[Run], trainer: Trainer) -> list[TrainState]:
    """The first states of runs side by side: initial, or of the newest step that all saved."""
    fresh = trainer.first_states([run.seed for run in runs])
    if not trainer.config.resume:
        return fresh
    states = [run.restore(state) for run, state in zip(runs, fresh, strict=True)]
    steps = {run.seed: int(state.step) for run, state in zip(runs, states, strict=True)}
    step = min(steps.values())
    if step == 0 < max(steps.values()):
        raise UserError(
            f"the seeds' runs are at the steps {steps}: go on with --seeds-mode turns, which "
            "trains each by itself"
        )
    if lacking := [run.seed for run in runs if step and not run.holds(step)]:
        raise UserError(
            f"the seeds' runs are at the steps {steps}, and of seed {lacking[0]} no checkpoint of "
            f"step {step} is left, because a run that diverged stays behind: go on with "
            "--seeds-mode turns, which trains each by itself"
        )
    return [
        state if int(state.step) == step else run.go_back(first, step)
        for run, state, first in zip(runs, states, fresh, strict=True)
    ]


def finish(
    run: Run,
    trainer: Trainer,
    state: TrainState,
    score: Score,
    say: Say,
    *,
    stops: Callable[[], bool],
) -> Result | None:
    """Exports and checks a run, writes `result.json`; AbandonedError if `stops` says yes before."""
    if run.checkpoints is None:
        return None
    run.wait()
    config, dataset = trainer.config, trainer.dataset
    model = trainer.model(averaged(state))
    exported, digest = export.export(run.folder, model, dataset.preprocessing)
    weights = "raw" if config.ema_decay is None else "ema"
    say(f"exported {exported}{', averaged weights' if weights == 'ema' else ''}")
    parity = None
    if export.has_torch():
        parity = export.check_parity(exported, model, dataset, image_dtype(config), stops=stops)
        say(str(parity or "no parity check: none of the first test images can be read"))
    else:
        say("no parity check: install flax-resnet[torch] to run the torch twin")
    others = []
    if dataset.is_streamed and export.has_torch() and config.precision != "f64":
        others = elsewhere.check_exports(exported, dataset.test, stops=stops)
    for other in others:
        say(str(other))
    best_step, best_error = run.checkpoints.best() or (int(state.step), score.error)
    streams = (dataset.train, dataset.test) if dataset.is_streamed else ()
    result = Result(
        seed=run.seed,
        weights=weights,
        step=int(state.step),
        error=score.error,
        loss=score.loss,
        images=score.images,
        best_step=best_step,
        best_error=best_error,
        seconds=run.seconds,
        skipped_steps=int(state.skipped),
        skipped_images={name: why for s in streams for name, why in s.skipped.items()},
        exported=exported.name,
        digest=digest,
        parity=parity,
        other_packages=[other for other in others if isinstance(other, elsewhere.Elsewhere)],
    )
    write_json(run.folder / RESULT, dataclasses.asdict(result))
    say(
        f"test error {score.error:.2%} (best {best_error:.2%} after step {best_step}), "
        f"{result.seconds:.0f} s in all"
    )
    return result
