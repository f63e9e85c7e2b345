"""A training run from its configuration to its exported weights; or several, seed by seed."""

import contextlib
import dataclasses
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from train import export, parallel
from train.claims import claimed, seeds_locked
from train.config import Config
from train.data import Dataset, load_dataset
from train.errors import AbandonedError, DivergedError, UserError
from train.folder import (
    begin_folder,
    check_folder,
    check_same_data,
    choose_folder,
    has_checkpoint,
    saved_mode,
    seed_folder,
    unfinished_seeds,
)
from train.milestones import Milestones
from train.network import Arrays
from train.optimizer import unreached
from train.profile import Profile
from train.progress import Progress
from train.report import Display
from train.runs import Result, Run, common_states, finish
from train.saved_state import compare_classes, compare_normalisations
from train.seeds import arrange
from train.signals import StopSignals
from train.step import TrainState, averaged
from train.trainer import Score, Trainer, count_steps, describe
from train.unused import unused_fields
from train.watch import Watch


def train(config: Config) -> list[Result]:
    """Trains, tests, exports and checks the export, for each seed; in the first process.

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
        }
        parallel.in_first_process(lambda: _begin(folder, config, facts, claims))
        groups = [[seed] for seed in seeds] if mode == "turns" else [seeds]
        return _train_groups(trainer, groups, folder, display, signals, start_time)


def evaluate(config: Config) -> list[Score]:
    """Tests the weights of `init_from`, or those that runs would export, and says the errors.

    Raises:
        UserError: the configuration does not fit the weights or the data.
    """
    with parallel.processes(config), Display(enabled=parallel.is_first_process()) as display:
        dataset = load_dataset(config)
        config = config.resolved(len(dataset.train))
        sources = {config.seed: config.init_from}
        if config.resume and config.run_dir is not None:
            sources = {s: seed_folder(config.run_dir, config, s) for s in config.seed_list}
        scores = []
        for seed, source in sources.items():
            layout = None if config.resume else config.init_layout  # a run's names are ours
            found = dataclasses.replace(config, init_from=source, init_layout=layout)
            weights = export.load_weights(found, describe(config, dataset))
            if "head.kernel" not in weights.arrays:
                raise UserError(f"{source} has no head of {dataset.num_classes} classes to test")
            _check_images(f"{source}", weights.preprocessing, dataset, display)
            trainer = Trainer(config, dataset, weights=weights.arrays)
            state = trainer.place(trainer.first_states([seed]))
            scores += trainer.test(averaged(state))
            display.say(
                f"{source}: test loss {scores[-1].loss:.4f}, test error {scores[-1].error:.2%} "
                f"of {scores[-1].images} images of {dataset.test_name}{dataset.missing()}"
            )
        return scores


def _check_images(
    source: str, found: dict[str, Any] | None, dataset: Dataset, display: Display
) -> None:
    """Weights of other classes, or of images normalised otherwise, would have a wrong error.

    Words and the numbers of WordNet's synsets are two ways to call ImageNet's classes.
    """
    here = dataset.preprocessing
    problems, classes = compare_normalisations(found, here), compare_classes(found, here)
    names = (found or {}).get("class_names") or ()
    if classes and _are_synsets(names) != _are_synsets(here.class_names or ()):
        display.say(f"{source} {classes[0]}: they are taken to be the same, in the same order")
        classes = []
    if problems := [*problems, *classes]:
        raise UserError("; ".join(f"{source} {problem}" for problem in problems))


def _are_synsets(names: Sequence[str]) -> bool:
    return all(re.fullmatch(r"n\d{8}", name) for name in names)


def _begin(
    folder: Path, config: Config, facts: dict[str, Any], claims: contextlib.ExitStack
) -> None:
    claims.enter_context(claimed(folder, config))
    if config.resume:
        check_same_data(folder, facts["train_images"])
    with seeds_locked(folder):
        begin_folder(folder, config, **facts)


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
            raise signals.stopped(f"before seed {seeds[0]}")
        try:
            results += _train_together(trainer, seeds, folder, display, signals, start_time)
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
        if first_step > trainer.total_steps:
            raise UserError(
                f"{runs[0].folder} is at step {first_step}, beyond the {trainer.total_steps} of "
                "this run: give more --epochs or --max-steps"
            )
        for run in runs:
            run.begin(first_step)
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
            raise signals.stopped(f"after step {trainer.total_steps}") from error
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
            _stop(runs, signals, first_step)
        for step, batch in enumerate(batches, start=first_step + 1):
            profile.step(step)
            state, metrics = trainer.step(state, batch)
            watch.step(step, metrics, stops())
            progress.step(step, metrics)
            milestones.reach(step, state)
            if watch.must_stop:
                _stop(runs, signals, step)
        watch.settle()
    for run in runs:
        run.wait()
    return state


def _stop(runs: Sequence[Run], signals: StopSignals, step: int) -> NoReturn:
    for run in runs:
        run.wait()
    raise signals.stopped(f"after step {step}")
