"""A training run from its configuration to its exported weights."""

import collections
import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from train import export, parallel
from train.checkpoint import Checkpoints
from train.config import Config
from train.data import image_dtype, load_dataset
from train.errors import DivergedError
from train.folder import (
    begin_folder,
    check_same_data,
    choose_folder,
    write_config,
    write_json,
)
from train.report import Report, Stopwatch
from train.step import Metrics, TrainState, averaged
from train.trainer import Trainer

_IN_FLIGHT = 8  # steps handed to the device and not yet done; more only fill its queue


@dataclass(frozen=True)
class Result:
    """What a run ends with.

    Attributes:
        weights: which are tested and exported: the average (`ema`) where the run keeps one, else
            the newest (`raw`).
        error: the fraction of test images that they get wrong.
    """

    weights: str
    error: float
    seconds: float
    exported: Path
    parity: export.Parity | None


def train(config: Config) -> Result:
    """Trains, tests, exports and checks the export.

    Raises:
        UserError: the configuration does not fit the data, the devices or the run's folder.
    """
    start_time = time.perf_counter()
    devices = parallel.describe_devices()
    parallel.check_batch_size(config.global_batch_size)
    folder = choose_folder(config)
    print(
        f"{config.model} on {config.data}, {devices}, run folder {folder}; reading images",
        flush=True,
    )
    dataset = load_dataset(config)
    trainer = Trainer(config, dataset)

    begin_folder(folder, config)
    with Checkpoints(folder, trainer.classifier, dataset.preprocessing) as checkpoints:
        state = trainer.first_state
        if config.resume:
            check_same_data(folder, len(dataset.train))
            state = checkpoints.restore(state)
        write_config(
            folder,
            config,
            devices=devices,
            train_images=len(dataset.train),
            total_steps=trainer.total_steps,
        )
        first_step = int(state.step)
        with Report(folder, start_step=first_step, total_steps=trainer.total_steps) as report:
            report.say(
                f"{len(dataset.train)} images to train, {len(dataset.test)} of "
                f"{dataset.test_name} to test{dataset.missing()}"
            )
            resumed = f", resumed at {first_step}" if first_step else ""
            report.say(f"{trainer.total_steps} steps{resumed}; compiling")
            state = _train_steps(trainer, state, first_step, report, checkpoints, start_time)
            checkpoints.wait()
            kept = averaged(state)
            error = trainer.test(kept)[1]

    result = _hand_over(trainer, kept, folder, error, start_time)
    write_json(folder / "result.json", _as_json(result))
    print(f"test error {error:.2%}, {result.seconds:.0f} s in all", flush=True)
    return result


def _train_steps(
    trainer: Trainer,
    state: TrainState,
    first_step: int,
    report: Report,
    checkpoints: Checkpoints,
    start_time: float,
) -> TrainState:
    """The steps from `first_step` to the last, with tests and checkpoints on the way."""
    batch_size = trainer.config.global_batch_size
    pending: collections.deque[Metrics] = collections.deque()
    stopwatch = Stopwatch()
    for step in range(first_step + 1, trainer.total_steps + 1):
        state, metrics = trainer.step(state, step - 1)
        pending.append(metrics)
        if len(pending) > _IN_FLIGHT:
            jax.block_until_ready(pending.popleft())
        if step == first_step + 1:
            jax.block_until_ready(metrics)
            report.say(f"first step done after {time.perf_counter() - start_time:.1f} s")
            stopwatch = Stopwatch()
        if step % trainer.config.log_every_steps == 0:
            values = {
                "loss": float(metrics.loss),
                "error": float(metrics.error),
                "learning_rate": trainer.learning_rate(step - 1),
                "images_per_second": stopwatch.read((step - first_step - 1) * batch_size),
            }
            report.metrics(step, "train", values)
            _check_finite(step, values["loss"])
        report.advance(step)
        if trainer.ends_period(step):
            values = _test(trainer, state)
            report.metrics(step, "test", values)
            average = f"averaged {values['ema_error']:7.2%}  " if "ema_error" in values else ""
            report.say(
                f"epoch {step * batch_size / len(trainer.dataset.train):6.2f}  step {step:6d}  "
                f"test loss {values['loss']:.4f}  test error {values['error']:7.2%}  {average}"
                f"{time.perf_counter() - start_time:6.0f} s"
            )
            _check_finite(
                step, values["loss"]
            )  # before the checkpoint: the one before stays the newest
            checkpoints.save(state)
    return state


def _test(trainer: Trainer, state: TrainState) -> dict[str, float]:
    """Loss and error of the newest weights, and of their average where the run keeps one."""
    loss, error = trainer.test(state)
    values = {"loss": loss, "error": error}
    if state.ema is not None:
        values["ema_loss"], values["ema_error"] = trainer.test(averaged(state))
    return values


def _check_finite(step: int, loss: float) -> None:
    if not math.isfinite(loss):
        raise DivergedError(
            f"the loss is {loss} at step {step}: lower --learning-rate, lengthen --warmup-steps, "
            "or go on from the newest checkpoint with --resume and other fields"
        )


def _hand_over(
    trainer: Trainer, state: TrainState, folder: Path, error: float, start_time: float
) -> Result:
    model = trainer.model(state)
    exported = export.export(folder, model, trainer.dataset.preprocessing)
    weights = "raw" if trainer.config.ema_decay is None else "ema"
    remark = ", averaged weights" if weights == "ema" else ""
    print(f"exported {exported}{remark}", flush=True)
    parity = None
    if export.has_torch():
        parity = export.check_parity(exported, model, trainer.dataset, image_dtype(trainer.config))
        print(parity, flush=True)
    else:
        print("no parity check: install flax-resnet[torch] to run the torch twin", flush=True)
    return Result(weights, error, time.perf_counter() - start_time, exported, parity)


def _as_json(result: Result) -> dict[str, Any]:
    return {**dataclasses.asdict(result), "exported": result.exported.name}
