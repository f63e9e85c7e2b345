"""A training run from its configuration to its exported weights; or several, seed by seed."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from train import export, parallel
from train.config import Config
from train.data import Dataset, load_dataset
from train.errors import StoppedError
from train.folder import (
    begin_folder,
    check_same_data,
    choose_folder,
    seed_folder,
    unfinished_seeds,
)
from train.network import Arrays
from train.profile import Profile
from train.progress import Progress
from train.report import Display
from train.runs import Result, Run, common_states, finish
from train.seeds import arrange
from train.signals import StopSignals
from train.step import TrainState, averaged
from train.trainer import Score, Trainer, count_steps, describe
from train.watch import Watch


def train(config: Config) -> list[Result]:
    """Trains, tests, exports and checks the export, for each seed; in the first process.

    Raises:
        UserError: the configuration does not fit the data, the devices or the run's folder.
        DivergedError: a loss was not finite; the checkpoints before it are kept.
        StoppedError: a signal came; what was trained is saved.
    """
    with parallel.processes(config), Display(enabled=parallel.is_first_process()) as display:
        start_time = time.perf_counter()
        parallel.check_batch_size(config)
        folder = choose_folder(config)
        devices = parallel.describe_devices()
        display.say(
            f"{config.model} on {config.data}, {devices}, run folder {folder}; reading images"
        )
        dataset = load_dataset(config)
        config = config.resolved(len(dataset.train))
        display.say(
            f"{len(dataset.train)} images to train, {len(dataset.test)} of "
            f"{dataset.test_name} to test{dataset.missing()}"
        )
        weights = _first_weights(config, dataset, display)
        seeds = unfinished_seeds(folder, config, count_steps(config, len(dataset.train)))
        if config.resume:
            check_same_data(folder, len(dataset.train))
        trainer, groups = arrange(config, dataset, seeds, weights, display.say)
        if parallel.is_first_process():
            begin_folder(
                folder,
                trainer.config,
                train_images=len(dataset.train),
                test_images=len(dataset.test),
                test_name=dataset.test_name,
                total_steps=trainer.total_steps,
                devices=devices,
            )
        results = [_train_together(trainer, g, folder, display, start_time) for g in groups]
        return [result for group in results for result in group]


def evaluate(config: Config) -> list[Score]:
    """Tests the weights of `init_from`, or those of a run's newest checkpoint, and says the error.

    Raises:
        UserError: the configuration does not fit the weights or the data.
    """
    with parallel.processes(config), Display(enabled=parallel.is_first_process()) as display:
        dataset = load_dataset(config)
        config = config.resolved(len(dataset.train))
        trainer = Trainer(config, dataset, weights=_first_weights(config, dataset, display))
        scores = []
        for seed in config.seed_list:
            (state,) = trainer.first_states([seed])
            if config.run_dir is not None and config.resume:
                with Run(
                    seed, seed_folder(config.run_dir, config, seed), trainer, display.say
                ) as run:
                    state = run.restore(state)
            (score,) = trainer.test(averaged(trainer.place([state])))
            scores.append(score)
            display.say(
                f"step {int(state.step)}: test loss {score.loss:.4f}, test error {score.error:.2%} "
                f"of {score.images} images of {dataset.test_name}{dataset.missing()}"
            )
        return scores


def _first_weights(config: Config, dataset: Dataset, display: Display) -> Arrays:
    """Those of `init_from`; none where a run is resumed, whose checkpoint has them."""
    if config.init_from is None or config.resume:
        return {}
    weights, notes = export.load_weights(config, describe(config, dataset))
    for note in notes:
        display.say(note)
    return weights


def _train_together(
    trainer: Trainer, seeds: Sequence[int], folder: Path, display: Display, start_time: float
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
        whose = f"seed {', '.join(map(str, seeds))}: " if config.seeds is not None else ""
        resumed = f", resumed at {first_step}" if first_step else ""
        display.say(f"{whose}{trainer.total_steps} steps{resumed}; compiling")
        display.begin(trainer.total_steps, first_step)
        state = _train_steps(trainer, runs, states, display, start_time)
        for run in runs:
            run.wait()
        scores = trainer.test(averaged(state))
        return [
            result
            for run, host, score in zip(runs, trainer.to_host(state), scores, strict=True)
            if (result := finish(run, trainer, host, score, start_time, display.say))
        ]


def _train_steps(
    trainer: Trainer,
    runs: Sequence[Run],
    states: Sequence[TrainState],
    display: Display,
    start_time: float,
) -> TrainState:
    """The steps that are left, with metrics, tests and checkpoints on the way."""
    config, seeds, first_step = trainer.config, [run.seed for run in runs], int(states[0].step)
    progress = Progress(trainer, runs, display, first_step=first_step, start_time=start_time)
    watch, ask_all = Watch(config, seeds), parallel.any_process()
    state, batches = trainer.place(states), trainer.batches(seeds, first_step)
    profile = Profile(config, runs[0].folder, first_step)
    with StopSignals() as signals, contextlib.closing(batches), profile:
        for step, batch in enumerate(batches, start=first_step + 1):
            profile.step(step)
            state, metrics = trainer.step(state, batch)
            watch.step(step, metrics, ask_all(signals.received is not None))
            progress.step(step, metrics)
            is_tested, every = trainer.ends_period(step), config.checkpoint_every_steps
            if is_tested or watch.must_stop or (every is not None and step % every == 0):
                watch.settle()  # no test and no checkpoint of what is not finite
                errors = _test(trainer, state, step, progress) if is_tested else None
                _save(trainer, runs, state, errors)
            if watch.must_stop and step < trainer.total_steps:
                for run in runs:
                    run.wait()
                raise StoppedError(
                    f"stopped by {signals.received or 'another process'} after step {step}, which "
                    "is saved: go on with --resume --run-dir FOLDER"
                )
        watch.settle()
    return state


def _test(trainer: Trainer, state: TrainState, step: int, progress: Progress) -> list[float]:
    """Tests the newest weights, and their average where a run keeps one; the errors that count."""
    averages = None if state.ema is None else trainer.test(averaged(state))
    return progress.test(step, trainer.test(state), averages)


def _save(
    trainer: Trainer, runs: Sequence[Run], state: TrainState, errors: Sequence[float] | None
) -> None:
    """Starts writing a checkpoint of each run; an error of the one before is raised here."""
    known = errors or [None] * len(runs)
    for run, host, error in zip(runs, trainer.to_host(state), known, strict=True):
        run.save(host, error)
