"""Start-up: what a user waits for before anything is computed."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.apart import call_apart
from benchmarks.measure import Row, Size, clock, median_ratio, take_turns

# ours, and what it cannot do without
_IMPORTS = {"flax_resnet": "flax.nnx", "torch_resnet": "torch"}
_COMMANDS = {"resnet-train --help": "train", "resnet-convert --help": "convert"}
_DEPTHS = {"full": (50, 1001), "tiny": (20,)}


def run(size: Size) -> list[Row]:
    """Fresh processes, what they read in the disk's cache, imports in neighbouring pairs."""
    is_tiny = size == "tiny"
    rows = [_compare_imports(*pair, repetitions=1 if is_tiny else 7) for pair in _IMPORTS.items()]
    for command, module in _COMMANDS.items():
        seconds = _times([sys.executable, "-m", module, "--help"], 1 if is_tiny else 5)
        rows.append(Row(command, "s", statistics.median(seconds), bar="< 1"))
    for package in _IMPORTS:
        for depth in _DEPTHS[size]:
            # once: most of the first takes is compiling, which no second one would do again
            seconds = call_apart(build, package, depth)
            bar = "< 10" if depth == 1001 else ""
            note = "without the import; an empty compile cache"
            rows.append(Row(f"{package}: build ResNet{depth}", "s", seconds, bar=bar, note=note))
    return [*rows, _compare_starts("WideResNet16-1-0.0" if is_tiny else "ResNet20")]


def _compare_starts(model: str) -> Row:
    """A second start finds what the first has compiled."""
    with tempfile.TemporaryDirectory() as name:
        first, second = (_seconds_to_first_step(model, Path(name)) for _ in range(2))
    case, note = f"resnet-train digits, {model}, second start", "from the command; compile cache"
    return Row(
        case, "s to the first step", second, "first start", first, second / first, "<= 0.5", note
    )


def _seconds_to_first_step(model: str, folder: Path) -> float:
    arguments = ["digits", "--model", model, "--run-dir", str(folder / "run"), "--overwrite"]
    cache = ["--compile-cache", str(folder / "programs")]
    variables = {**os.environ, "PYTHONUNBUFFERED": "1"}
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "train", *arguments, *cache],
        env=variables,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            next(line for line in process.stdout if "first step done" in line)
            return time.perf_counter() - started
        finally:
            process.kill()


def _compare_imports(ours: str, needed: str, repetitions: int) -> Row:
    tasks = {name: lambda name=name: _start(f"import {name}") for name in (ours, needed)}
    seconds = take_turns(tasks, repetitions)
    return Row(
        f"import {ours}",
        "s",
        statistics.median(seconds[ours]),
        f"import {needed}",
        statistics.median(seconds[needed]),
        median_ratio(seconds[ours], seconds[needed]),
        "<= 1.1",
    )


def _start(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


def _times(command: Sequence[str], repetitions: int) -> list[float]:
    def task() -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    task()
    return [clock(task) for _ in range(repetitions)]


def build(package: str, depth: int) -> float:
    """Seconds from a seed to a network whose weights are drawn."""
    return {"flax_resnet": _build_flax, "torch_resnet": _build_torch}[package](f"ResNet{depth}")


def _build_flax(name: str) -> float:
    import jax
    from flax import nnx

    import flax_resnet

    started = time.perf_counter()
    model = flax_resnet.create(name, 10, rngs=nnx.Rngs(0))
    jax.block_until_ready(nnx.state(model))
    return time.perf_counter() - started


def _build_torch(name: str) -> float:
    import torch_resnet

    started = time.perf_counter()
    torch_resnet.create(name, 10)
    return time.perf_counter() - started
