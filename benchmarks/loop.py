"""B7: what the loop costs: a real run of `resnet-train` beside its bare step."""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

from benchmarks.bare_step import BareStep, make_trainer
from benchmarks.measure import Row, Size, clock
from train.__main__ import parse
from train.config import Config
from train.data.load import load_dataset
from train.run.metrics import FILE, read_metrics


def run(size: Size) -> list[Row]:
    """Images a second of real runs, from the first step that is compiled to the last."""
    is_gpu = jax.default_backend() == "gpu"
    precision = ["--precision", "bf16"] if is_gpu else []
    digits = ["digits", "--epochs", "1000", "--eval-every-epochs", "1000", *precision]
    if size == "tiny":
        small = ["--model", "WideResNet16-1-0.0", "--global-batch-size", "16"]
        return [_measure([*digits, *small], steps=4, log_every=2, repetitions=1)]
    steps, repetitions = (2_000, 2) if is_gpu else (100, 1)
    rows = [_measure(digits, steps=steps, log_every=100, repetitions=repetitions)]
    if "TFDS_DATA_DIR" in os.environ:
        steps, repetitions = (2_000, 3) if is_gpu else (20, 1)
        cifar = ["cifar10", "--eval-every-epochs", "1000", *precision]
        log_every = min(steps, 100)
        rows.append(_measure(cifar, steps=steps, log_every=log_every, repetitions=repetitions))
    else:
        rows.append(Row("cifar10", "images/s", None, "bare step", note="needs TFDS_DATA_DIR"))
    return rows


def _measure(arguments: list[str], *, steps: int, log_every: int, repetitions: int) -> Row:
    """A real run between bare steps of as many images, so that both see the same machine."""
    arguments = [*arguments, "--max-steps", str(steps), "--log-every-steps", str(log_every)]
    config = parse(arguments)
    bare_steps = max(steps // 2, 1)
    trainer = make_trainer(config, load_dataset(config))
    bare = BareStep(trainer, [config.seed], bare_steps)
    bare()  # compiles
    before, pairs = clock(bare), []
    for _ in range(repetitions):
        real = _rate_of_run(arguments, config)
        after = clock(bare)
        pairs.append((real, 2 * bare_steps * config.global_batch_size / (before + after)))
        before = after
    return Row(
        f"{config.model} on {config.data}, batch {config.global_batch_size}, {steps} steps",
        "images/s",
        statistics.median(real for real, _ in pairs),
        "bare step",
        statistics.median(bare for _, bare in pairs),
        statistics.median(real / bare for real, bare in pairs),
        ">= 0.97" if jax.default_backend() == "gpu" else ">= 0.95",
        f"metrics each {log_every} steps; tests and checkpoints are not counted",
    )


def _rate_of_run(arguments: list[str], config: Config) -> float:
    """What the run itself has measured and logged, all lines together."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        command = [sys.executable, "-m", "train", *arguments, "--run-dir", str(folder)]
        subprocess.run(command, check=True, capture_output=True)
        lines = [line for line in read_metrics(folder / FILE) if line["kind"] == "train"]
    images, seconds, last = 0, 0.0, 1  # the first step is the one that compiles
    for line in lines:
        trained = (line["step"] - last) * config.global_batch_size
        images, last = images + trained, line["step"]
        seconds += trained / line["images_per_second"]
    return images / seconds
