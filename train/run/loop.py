"""A training run from its configuration to its exported weights; or several, seed by seed."""

import contextlib
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from train.config import FIRST_PROFILED, LAST_PROFILED, Config, unused_fields
from train.data.dataset import Dataset
from train.data.load import load_dataset
from train.errors import AbandonedError, DivergedError, StoppedError
from train.run import compile_cache, export, run_folder
from train.run.display import Display
from train.run.evaluation import evaluate
from train.run.progress import Progress
from train.run.saved_state import (
    compare_classes,
    compare_normalisations,
    compare_sizes,
    unsaid,
)
from train.run.seeds import arrange
from train.run.signals import StopSignals
from train.run.trainer import Trainer, count_steps, describe
from train.run.training_run import Result, Run, common_states, finish
from train.run.watch import Watch
from train.step import parallel, processes
from train.step.batch_norm_groups import begun_with
from train.step.functional import Arrays
from train.step.optimizer import unreached
from train.step.train_step import TrainState, averaged

__all__ = ["evaluate", "train"]


def train(
    config: Config,
    *,
    recipe: str | None = None,
    asked: dict[str, Any] | None = None,
    given: Collection[str] | None = None,
) -> list[Result]:
    """Trains, tests, exports and checks the export, for each seed.

    Returns:
        The results of the seeds that were trained; none in processes other than the first.

    Args:
        config: what is trained.
        recipe: the name of the recipe that it comes from; a new run records it in `config.json`.
        asked: the same of the options of `resnet-train table`, for a row of a table.
        given: the fields that count more than a preprocessing, see `settle_preprocessing`.

    Raises:
        UserError: the configuration does not fit the data, the devices or the run's folder.
        DivergedError: a loss was not finite; the checkpoints before it are kept, and the other
            seeds that are trained in turn have their results.
        StoppedError: a signal came; what was trained is saved.
    """
    compile_cache.use(config.compile_cache)
    with (
        processes.joined(config),
        StopSignals() as signals,  # after JAX's own handler for processes
        Display(enabled=processes.is_first_process()) as display,
        contextlib.ExitStack() as claims,
    ):
        start_time = time.perf_counter()
        config, _, note = export.settle_preprocessing(config, given)
        if config.seeds is None or config.seeds_mode != "devices":
            parallel.check_batch_size(config, jax.device_count())
        config = begun_with(config, jax.device_count())
        folder, devices = run_folder.choose_folder(config), parallel.describe_devices()
        processes.in_first_process(lambda: run_folder.check_folder(folder, config))
        display.say(
            f"{config.model} on {config.data}, {devices}, run folder {folder}; reading images"
        )
        dataset = load_dataset(config)
        display.say(
            f"{len(dataset.train)} training images, {len(dataset.test)} test images "
            f"({dataset.test_name}){dataset.missing()}"
        )
        if note:
            display.say(note)
        for line in unused_fields(config, Config()):  # a recipe's, or of an older run
            display.say(f"not used: {line}")
        resolved = config.resolved(len(dataset.train))
        total_steps = count_steps(resolved, len(dataset.train))
        if line := unreached(resolved, total_steps):
            display.say(line)
        processes.in_first_process(
            lambda: run_folder.check_length(folder, resolved, len(dataset.train))
        )
        seeds = run_folder.unfinished_seeds(folder, config, total_steps)
        if not seeds:
            display.say(f"the runs of all seeds are finished, after {total_steps} steps")
            return []
        weights = _first_weights(resolved, dataset, folder, display)
        mode, trainer = arrange(
            resolved, dataset, seeds, weights, run_folder.saved_mode(folder), display.say
        )
        facts = {
            "train_images": len(dataset.train),
            "test_images": len(dataset.test),
            "test_name": dataset.test_name,
            "total_steps": total_steps,
            "devices": devices,
            "mode": mode,
            "recipe": recipe,
            "asked": asked,
        }
        processes.in_first_process(lambda: _begin(folder, config, facts, claims))
        groups = [[seed] for seed in seeds] if mode == "turns" else [seeds]
        session = Session(config, trainer, folder, facts, display, signals, start_time)
        return session.train_groups(groups)


def _begin(
    folder: Path, config: Config, facts: dict[str, Any], claims: contextlib.ExitStack
) -> None:
    claims.enter_context(run_folder.claimed(folder, config))
    if config.resume:
        run_folder.check_same_data(folder, facts["train_images"])
    with run_folder.seeds_locked(folder):
        if not config.resume:
            run_folder.begin_folder(folder, config, **facts)


def _first_weights(config: Config, dataset: Dataset, folder: Path, display: Display) -> Arrays:
    """The weights of `init_from`, if some run has no checkpoint yet."""
    folders = [run_folder.seed_folder(folder, config, seed) for seed in config.seed_list]
    if config.init_from is None or (config.resume and all(map(run_folder.has_checkpoint, folders))):
        return {}
    weights = export.load_weights(config, describe(config, dataset))
    said, here = weights.preprocessing, dataset.preprocessing
    differences = [
        *([] if said or config.preprocessing else [unsaid(here)]),
        *compare_normalisations(said, here),
        *compare_sizes(said, here, is_resized=dataset.is_streamed),
    ]
    if "head.kernel" in weights.arrays:
        differences += compare_classes(said, here)
    source = export.shown(config.init_from)
    for note in (*weights.notes, *(f"{source} {text}" for text in differences)):
        display.say(note)
    return weights.arrays


@dataclass(frozen=True)
class Session:
    """One call of `train`, with all checks passed: what its runs share.

    Attributes:
        config: as it was given; the trainer's has all numbers in steps.
        folder: of the run, or of the runs of several seeds.
        facts: for `config.json`, see `run_folder.note_start`.
        start_time: of the call, by `time.perf_counter`.
    """

    config: Config
    trainer: Trainer
    folder: Path
    facts: dict[str, Any]
    display: Display
    signals: StopSignals
    start_time: float

    def train_groups(self, groups: Sequence[Sequence[int]]) -> list[Result]:
        """Trains groups of seeds in turn; a run that diverges ends only its own group."""
        results: list[Result] = []
        diverged: list[DivergedError] = []
        stops = self.signals.asker()
        for seeds in groups:
            if bool(stops()):
                whose = "" if self.config.seeds is None else f" of seed {seeds[0]}"
                raise self.signals.stopped(f"before the first step{whose}", self.folder)
            try:
                results += self._train_group(seeds)
            except DivergedError as error:
                diverged.append(error)
                if len(groups) > 1:
                    self.display.say(f"{error}")
        if diverged:
            raise diverged[0]
        return results

    def _train_group(self, seeds: Sequence[int]) -> list[Result]:
        """The runs of some seeds side by side, from their first step to their results."""
        trainer, say = self.trainer, self.display.say
        with contextlib.ExitStack() as stack:
            folders = [run_folder.seed_folder(self.folder, self.config, seed) for seed in seeds]
            runs = [
                stack.enter_context(Run(seed, folder, trainer, say))
                for seed, folder in zip(seeds, folders, strict=True)
            ]
            states = common_states(runs, trainer)
            first_step = int(states[0].step)
            for run in runs:
                run.begin(first_step)
            self._tell_start(runs, first_step)
            watch = Watch(trainer.config, seeds, say)
            state = self._train_steps(runs, states, watch)
            try:
                # the weights that are exported, whose checkpoint is on disk
                scores = trainer.test(averaged(state), stops=self.signals.asker())
                results = [
                    finish(run, trainer, host, score, say, stops=self.signals.ends_alone)
                    for run, host, score in zip(runs, trainer.to_host(state), scores, strict=True)
                    if run.seed not in watch.diverged
                ]
            except AbandonedError as error:
                raise self._stopped(trainer.total_steps) from error
            watch.raise_diverged()
            return [result for result in results if result is not None]

    def _tell_start(self, runs: Sequence[Run], step: int) -> None:
        """Notes a resumed start that has steps left, says what comes, and starts the bar."""
        trainer, seeds = self.trainer, [run.seed for run in runs]
        if self.config.resume and step < trainer.total_steps:
            weights = runs[0].weights
            if step and (line := run_folder.rounding(self.folder, self.facts["devices"])):
                self.display.say(line)
            processes.in_first_process(
                lambda: run_folder.note_start(
                    self.folder, self.config, seeds, step, weights, **self.facts
                )
            )
        whose = f"seed {', '.join(map(str, seeds))}: " if self.config.seeds is not None else ""
        resumed = f", resumed at {step}" if step else ""
        is_deep = sum(trainer.classifier.network.stage_depths) > 80 and not self.config.scan_blocks
        hint = ", which --scan-blocks makes shorter" if is_deep else ""
        self.display.say(f"{whose}{trainer.total_steps} steps{resumed}; compiling{hint}")
        self.display.begin(trainer.total_steps, step)

    def _train_steps(
        self, runs: Sequence[Run], states: Sequence[TrainState], watch: Watch
    ) -> TrainState:
        """The steps that are left, with metrics, tests and checkpoints on the way."""
        trainer, first_step = self.trainer, int(states[0].step)
        progress = Progress(
            trainer,
            runs,
            self.display,
            diverged=watch.diverged,
            first_step=first_step,
            start_time=self.start_time,
        )
        stops = self.signals.asker()
        milestones = Milestones(trainer, runs, progress, watch, stops)
        batches = trainer.batches([run.seed for run in runs], first_step)
        state = trainer.place(states)
        with (
            contextlib.closing(batches),
            Profile(trainer.config, runs[0].folder, first_step) as profile,
        ):
            milestones.resume(first_step, state)
            if watch.must_stop:
                raise self._stopped(first_step, runs)
            for step, batch in enumerate(batches, start=first_step + 1):
                profile.step(step)
                state, metrics = trainer.step(state, batch)
                watch.step(step, metrics, stops())
                progress.step(step, metrics)
                milestones.reach(step, state)
                if watch.must_stop:
                    raise self._stopped(step, runs)
            watch.settle()
        for run in runs:
            run.wait()
        return state

    def _stopped(self, step: int, runs: Sequence[Run] = ()) -> StoppedError:
        """The error for a signal, once the runs' last checkpoints are on disk."""
        for run in runs:
            run.wait()
        return self.signals.stopped(
            f"after step {step}{', which is saved' if step else ''}", self.folder
        )


class Milestones:
    """The tests and checkpoints on the way of runs side by side.

    A signal that comes during a test does not wait for its end: the checkpoint is saved without
    the test's error, and the resumed run makes the test before anything else.

    Args:
        stops: whether a signal came, see `Trainer.test`.
    """

    def __init__(
        self, trainer: Trainer, runs: Sequence[Run], progress: Progress, watch: Watch, stops: Any
    ):
        self._trainer, self._runs, self._stops = trainer, runs, stops
        self._progress, self._watch = progress, watch

    def resume(self, step: int, state: TrainState) -> None:
        """Makes the test of a restored state that was abandoned before."""
        if step == 0 or not self._trainer.ends_period(step):
            return
        is_untested = np.array(any(run.is_untested for run in self._runs))
        if processes.from_first_process(lambda: is_untested):
            with self._progress.paused(step):
                self._save(state, self._test(step, state))

    def reach(self, step: int, state: TrainState) -> None:
        """Tests and saves what is due after a step or a signal.

        DivergedError if no run is finite; OSError if the checkpoint before could not be written.
        """
        is_tested = self._trainer.ends_period(step)
        every = self._trainer.config.checkpoint_every_steps
        if is_tested or self._watch.must_stop or (every is not None and step % every == 0):
            self._watch.settle()
            with self._progress.paused(step):
                self._save(state, self._test_or_save(step, state) if is_tested else None)

    def _test_or_save(self, step: int, state: TrainState) -> list[float] | None:
        """As `_test`; the steps before a test that fails are not lost, and the resumed run tests.

        Of several processes, the others may wait for the one that failed.
        """
        try:
            return self._test(step, state)
        except Exception:
            if processes.is_only_process():
                self._save(state, None)
            raise

    def _test(self, step: int, state: TrainState) -> list[float] | None:
        """Tests the newest weights and their average, if any; returns the errors that count."""
        if self._watch.must_stop:
            return None
        try:
            averages = None
            if state.ema is not None:
                averages = self._trainer.test(averaged(state), stops=self._stops)
            scores = self._trainer.test(state, stops=self._stops)
        except AbandonedError:
            self._watch.must_stop = True
            return None
        return self._progress.test(step, scores, averages)

    def _save(self, state: TrainState, errors: Sequence[float] | None) -> None:
        """Starts writing a checkpoint of each run that did not diverge."""
        known = errors or [None] * len(self._runs)
        for run, host, error in zip(self._runs, self._trainer.to_host(state), known, strict=True):
            if self._watch.is_finite(run.seed, host):
                run.save(host, error)


class Profile:
    """Writes JAX's profile of steps 10 to 20 into `profile/` of a run, if that is asked for."""

    def __init__(self, config: Config, folder: Path, first_step: int):
        self._folder = folder / "profile"
        self._first, self._last = first_step + FIRST_PROFILED, first_step + LAST_PROFILED
        self._is_wanted, self._is_on = config.profile and processes.is_first_process(), False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop()

    def step(self, step: int) -> None:
        """Step `step` is about to start."""
        if self._is_wanted and step == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._is_on = True
        elif step == self._last + 1:
            self._stop()

    def _stop(self) -> None:
        if self._is_on:
            jax.profiler.stop_trace()
            self._is_on = False
