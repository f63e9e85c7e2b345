"""A training run from its configuration to its exported weights; or several, seed by seed."""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from train.config import Config
from train.config.unused import unused_fields
from train.data.dataset import Dataset, load_dataset
from train.errors import AbandonedError, DivergedError
from train.run import export
from train.run.claims import claimed, seeds_locked
from train.run.display import Display
from train.run.evaluation import evaluate
from train.run.folder import (
    begin_folder,
    check_folder,
    check_length,
    check_same_data,
    choose_folder,
    has_checkpoint,
    note_start,
    saved_mode,
    seed_folder,
    unfinished_seeds,
)
from train.run.milestones import Milestones
from train.run.profile import Profile
from train.run.progress import Progress
from train.run.saved_state import compare_classes, compare_normalisations
from train.run.seeds import arrange
from train.run.signals import StopSignals
from train.run.trainer import Trainer, count_steps, describe
from train.run.training_run import Result, Run, common_states, finish
from train.run.watch import Watch
from train.step import parallel
from train.step.network import Arrays
from train.step.optimizer import unreached
from train.step.train_step import TrainState, averaged

__all__ = ["evaluate", "train"]

Note = Callable[[Sequence[Run], int], None]


def train(
    config: Config, *, recipe: str | None = None, asked: dict[str, Any] | None = None
) -> list[Result]:
    """Trains, tests, exports and checks the export, for each seed; in the first process.

    Args:
        config: what is trained.
        recipe: the name of the recipe that it comes from; a new run records it in `config.json`.
        asked: the same of the options of `resnet-train table`, for a row of a table.

    Raises:
        UserError: the configuration does not fit the data, the devices or the run's folder.
        DivergedError: a loss was not finite; the checkpoints before it are kept, and the other
            seeds that are trained in turn have their results.
        StoppedError: a signal came; what was trained is saved.
    """
    with (
        parallel.processes(config),
        StopSignals() as signals,  # after JAX's own handler for processes
        Display(enabled=parallel.is_first_process()) as display,
        contextlib.ExitStack() as claims,
    ):
        start_time = time.perf_counter()
        if config.seeds is None or config.seeds_mode != "devices":
            parallel.check_batch_size(config)
        folder, devices = choose_folder(config), parallel.describe_devices()
        parallel.in_first_process(lambda: check_folder(folder, config))
        display.say(
            f"{config.model} on {config.data}, {devices}, run folder {folder}; reading images"
        )
        dataset = load_dataset(config)
        display.say(
            f"{len(dataset.train)} images to train, {len(dataset.test)} of "
            f"{dataset.test_name} to test{dataset.missing()}"
        )
        for line in unused_fields(config, Config()):  # a recipe's, or of an older run
            display.say(f"not used: {line}")
        resolved = config.resolved(len(dataset.train))
        total_steps = count_steps(resolved, len(dataset.train))
        if line := unreached(resolved, total_steps):
            display.say(line)
        limits = _limits(resolved, len(dataset.train))
        parallel.in_first_process(lambda: check_length(folder, config, limits))
        seeds = unfinished_seeds(folder, config, total_steps)
        if not seeds:
            display.say(f"the runs of all seeds are finished, after {total_steps} steps")
            return []
        weights = _first_weights(resolved, dataset, folder, display)
        mode, trainer = arrange(resolved, dataset, seeds, weights, saved_mode(folder), display.say)
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
        parallel.in_first_process(lambda: _begin(folder, config, facts, claims))
        groups = [[seed] for seed in seeds] if mode == "turns" else [seeds]

        def note(runs: Sequence[Run], step: int) -> None:
            """Of a resumed run, once all is checked, and where there is a step left to take."""
            these, weights = [run.seed for run in runs], runs[0].weights
            if config.resume and step < total_steps:
                parallel.in_first_process(
                    lambda: note_start(folder, config, these, step, weights, **facts)
                )

        return _train_groups(trainer, groups, folder, note, display, signals, start_time)


def _begin(
    folder: Path, config: Config, facts: dict[str, Any], claims: contextlib.ExitStack
) -> None:
    claims.enter_context(claimed(folder, config))
    if config.resume:
        check_same_data(folder, facts["train_images"])
    with seeds_locked(folder):
        if not config.resume:
            begin_folder(folder, config, **facts)


def _limits(config: Config, images: int) -> dict[str, int]:
    """What ends a run: steps by the option that sets them."""
    steps = math.ceil(config.epochs * images / config.global_batch_size)
    limits = {f"--epochs {config.epochs}": steps}
    if config.max_steps is not None:
        limits[f"--max-steps {config.max_steps}"] = config.max_steps
    return limits


def _first_weights(config: Config, dataset: Dataset, folder: Path, display: Display) -> Arrays:
    """Those of `init_from`, where a run has no checkpoint yet to go on from."""
    folders = [seed_folder(folder, config, seed) for seed in config.seed_list]
    if config.init_from is None or (config.resume and all(map(has_checkpoint, folders))):
        return {}
    weights = export.load_weights(config, describe(config, dataset))
    differences = compare_normalisations(weights.preprocessing, dataset.preprocessing)
    if "head.kernel" in weights.arrays:
        differences += compare_classes(weights.preprocessing, dataset.preprocessing)
    for note in (*weights.notes, *(f"{config.init_from} {text}" for text in differences)):
        display.say(note)
    return weights.arrays


def _train_groups(
    trainer: Trainer,
    groups: Sequence[Sequence[int]],
    folder: Path,
    note: Note,
    display: Display,
    signals: StopSignals,
    start_time: float,
) -> list[Result]:
    """The runs of several seeds, one group after another; one that diverges ends only its own."""
    results: list[Result] = []
    diverged: list[DivergedError] = []
    stops = signals.asker()
    for seeds in groups:
        if bool(stops()):
            whose = "" if trainer.config.seeds is None else f" of seed {seeds[0]}"
            raise signals.stopped(f"before the first step{whose}", folder)
        try:
            results += _train_together(trainer, seeds, folder, note, display, signals, start_time)
        except DivergedError as error:
            diverged.append(error)
            if len(groups) > 1:
                display.say(f"{error}")
    if diverged:
        raise diverged[0]
    return results


def _train_together(
    trainer: Trainer,
    seeds: Sequence[int],
    folder: Path,
    note: Note,
    display: Display,
    signals: StopSignals,
    start_time: float,
) -> list[Result]:
    """The runs of some seeds side by side, from their first step to their results."""
    config = trainer.config
    with contextlib.ExitStack() as stack:
        runs = [
            stack.enter_context(Run(seed, seed_folder(folder, config, seed), trainer, display.say))
            for seed in seeds
        ]
        states = common_states(runs, trainer)
        first_step = int(states[0].step)
        for run in runs:
            run.begin(first_step)
        note(runs, first_step)
        whose = f"seed {', '.join(map(str, seeds))}: " if config.seeds is not None else ""
        resumed = f", resumed at {first_step}" if first_step else ""
        is_deep = sum(trainer.classifier.network.stage_depths) > 80 and not config.scan_blocks
        hint = ", which --scan-blocks makes shorter" if is_deep else ""
        display.say(f"{whose}{trainer.total_steps} steps{resumed}; compiling{hint}")
        display.begin(trainer.total_steps, first_step)
        watch = Watch(config, seeds, display.say)
        state = _train_steps(trainer, runs, states, watch, display, signals, start_time)
        try:
            # of the weights that are exported, whose checkpoint is on disk
            scores = trainer.test(averaged(state), stops=signals.asker())
            results = [
                finish(run, trainer, host, score, display.say, stops=signals.ends_alone)
                for run, host, score in zip(runs, trainer.to_host(state), scores, strict=True)
                if run.seed not in watch.diverged
            ]
        except AbandonedError as error:
            when = f"after step {trainer.total_steps}, which is saved"
            raise signals.stopped(when, folder) from error
        watch.raise_diverged()
        return [result for result in results if result is not None]


def _train_steps(
    trainer: Trainer,
    runs: Sequence[Run],
    states: Sequence[TrainState],
    watch: Watch,
    display: Display,
    signals: StopSignals,
    start_time: float,
) -> TrainState:
    """The steps that are left, with metrics, tests and checkpoints on the way."""
    config, seeds, first_step = trainer.config, [run.seed for run in runs], int(states[0].step)
    progress = Progress(
        trainer,
        runs,
        display,
        diverged=watch.diverged,
        first_step=first_step,
        start_time=start_time,
    )
    stops = signals.asker()
    milestones = Milestones(trainer, runs, progress, watch, stops)
    state, batches = trainer.place(states), trainer.batches(seeds, first_step)
    profile = Profile(config, runs[0].folder, first_step)
    with contextlib.closing(batches), profile:
        milestones.resume(first_step, state)
        if watch.must_stop:
            _stop(trainer, runs, signals, first_step)
        for step, batch in enumerate(batches, start=first_step + 1):
            profile.step(step)
            state, metrics = trainer.step(state, batch)
            watch.step(step, metrics, stops())
            progress.step(step, metrics)
            milestones.reach(step, state)
            if watch.must_stop:
                _stop(trainer, runs, signals, step)
        watch.settle()
    for run in runs:
        run.wait()
    return state


def _stop(trainer: Trainer, runs: Sequence[Run], signals: StopSignals, step: int) -> NoReturn:
    for run in runs:
        run.wait()
    is_one_of_several = trainer.config.seeds is not None
    folder = runs[0].folder.parent if is_one_of_several else runs[0].folder
    saved = ", which is saved" if step else ""
    raise signals.stopped(f"after step {step}{saved}", folder)
