"""B2: a whole CIFAR recipe, from the command to the exported weights, beside two torch loops.

Every run is a process of its own, which imports, reads the images and compiles from nothing.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import jax

from benchmarks.measure import Row, Size
from train.__main__ import parse
from train.config import Config
from train.run.trainer import count_steps

_PEERS = {"plain": "plain torch loop", "good": "good torch loop"}
_LOOPS = "benchmarks.peers.torch_loop"
_TRAIN_IMAGES = {"cifar10": 50_000, "digits": 1_437}


@dataclass(frozen=True)
class Timing:
    """Of one run: seconds until its weights are on disk, and its rate once it was compiled."""

    seconds: float
    images_per_second: float

    def of_whole(self, config: Config, steps: int) -> float:
        """Seconds of the whole recipe: the steps that are left go at the same rate."""
        whole = count_steps(config, _TRAIN_IMAGES[config.data])
        return self.seconds + (whole - steps) * config.global_batch_size / self.images_per_second


def run(size: Size) -> list[Row]:
    """Minutes of the whole recipe and seconds of what was run, beside each torch loop."""
    is_gpu = jax.default_backend() == "gpu"
    arguments = ["cifar10", "--model", "ResNet20"]
    if size == "tiny":
        arguments = ["digits", "--model", "WideResNet16-1-0.0", "--global-batch-size", "16"]
    elif "TFDS_DATA_DIR" not in os.environ:
        arguments = ["digits", "--model", "ResNet20"]
    config = parse(arguments)
    # tiny, as many as in `loop`, whose compiled step this one then is
    steps = {"tiny": 4, "full": 3_910 if is_gpu else 24}[size]
    steps = min(steps, count_steps(config, _TRAIN_IMAGES[config.data]))
    arguments += ["--max-steps", str(steps)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        precision = ["--precision", "bf16"] if is_gpu else []
        environment = _environment(size, folder)
        ours = _time(
            ["train", *arguments, *precision, "--run-dir", str(folder / "run")], environment
        )
        timings = {
            kind: _time([_LOOPS, kind, str(folder / f"{kind}.pt"), *arguments], environment)
            for kind in _PEERS
        }
    return [row for kind in timings for row in _rows(config, steps, kind, ours, timings[kind])]


def _rows(
    config: Config, steps: int, kind: str, ours: Timing | str, theirs: Timing | str
) -> list[Row]:
    is_gpu = jax.default_backend() == "gpu"
    case, peer = f"{config.model} on {config.data}, batch {config.global_batch_size}", _PEERS[kind]
    if isinstance(ours, str) or isinstance(theirs, str):
        note = "; ".join(f"not run: {what}" for what in (ours, theirs) if isinstance(what, str))
        return [Row(case, "s", None, peer, note=note)]
    whole = count_steps(config, _TRAIN_IMAGES[config.data])
    ours_whole, theirs_whole = (t.of_whole(config, steps) for t in (ours, theirs))
    bar = {"plain": "<= 0.1", "good": "<= 0.667"}[kind] if is_gpu else ""
    return [
        Row(
            f"{case}, {steps} steps",
            "s",
            ours.seconds,
            peer,
            theirs.seconds,
            ours.seconds / theirs.seconds,
        ),
        Row(
            f"{case}, {whole:,} steps",
            "s",
            ours_whole,
            peer,
            theirs_whole,
            ours_whole / theirs_whole,
            bar,
            f"{whole - steps:,} steps taken to go as the {steps:,} that were run, without tests",
        ),
    ]


def _environment(size: Size, folder: Path) -> dict[str, str]:
    """In which nobody finds what was compiled before; tiny, torch does not compile at all."""
    if size == "tiny":
        return {**os.environ, "TORCHDYNAMO_DISABLE": "1"}
    kept = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    return {
        **kept,
        "XDG_CACHE_HOME": str(folder / "caches"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
    }


def _time(command: list[str], environment: dict[str, str]) -> Timing | str:
    """Runs a module with arguments; what was wrong where it failed."""
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines, seconds, rate = [], None, None
        for line in process.stdout:
            lines.append(line.strip())
            if line.startswith("exported "):
                seconds = time.perf_counter() - start
            elif found := re.search(r"([\d,]+) images/s", line):
                rate = float(found[1].replace(",", ""))
    if process.returncode or seconds is None or rate is None:
        return lines[-1] if lines else f"exit code {process.returncode}"
    return Timing(seconds, rate)
