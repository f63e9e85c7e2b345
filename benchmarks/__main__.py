"""`python -m benchmarks`: every benchmark in a process of its own, then the machine's tables."""

import argparse
import dataclasses
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.apart import call_apart
from benchmarks.machine import describe_machine
from benchmarks.measure import Row
from benchmarks.table import write_results

# name of the module -> what it measures; in the order of the tables
BENCHMARKS: dict[str, str] = {
    "train_step": "The training step, beside torch's and linen's",
    "recipe": "A whole CIFAR recipe, from the command to the exported weights",
    "seeds": "Five seeds in one program, beside one",
    "depth": "Depth: the first step, the next ones and their memory, 20 to 1202 layers",
    "inference": "Inference: latency and throughput of both twins and of ONNX",
    "input": "Input: JPEGs to batches on one core; augmentation on the device",
    "loop": "The loop around the step: a real run beside the bare step",
    "startup": "Start-up: imports, the command line, building a model",
    "devices": "Many devices: a step at constant work a device",
    "convert": "The converter beside torch's own loading and saving",
    "parity": "Parity: two networks compared layer by layer, beside the passes alone",
}
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Runs the benchmarks that are named, all without a name, and writes their tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--tiny", action="store_true", help="only show that the code works")
    parser.add_argument(
        "--out", type=Path, help="folder of the results; default: benchmarks/results"
    )
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(
            f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}"
        )
    if options.tiny and not options.out and not options.rows:
        parser.error("--tiny measures nothing that is worth keeping: give --out FOLDER")
    if options.rows:
        _run_here(options.names[0], options.tiny, options.rows)
        return
    folder = options.out or RESULTS
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {folder}: {error}")
    # a GPU's memory is not taken at once: torch, and processes that a benchmark starts, want some
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    machine = call_apart(describe_machine)  # a process that has asked JAX keeps the accelerator
    failed = []
    for name in options.names or BENCHMARKS:
        started = time.perf_counter()
        print(f"{name}: {BENCHMARKS[name]}", flush=True)
        try:
            rows = _run_apart(name, options.tiny)
        except subprocess.CalledProcessError:  # which has said why
            failed.append(name)
            continue
        for row in rows:
            print(f"  {row}")
        seconds = time.perf_counter() - started
        path = write_results(folder, machine, name, BENCHMARKS, rows, seconds)
        print(f"  {seconds:.0f} s; {path}", flush=True)
    if failed:
        sys.exit(f"failed, and nothing written of them: {', '.join(failed)}")


def _run_apart(name: str, tiny: bool) -> list[Row]:
    """The rows of one benchmark, whose memory, threads and caches nobody else has touched."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        size = ["--tiny"] if tiny else []
        command = [sys.executable, "-m", "benchmarks", name, *size, "--rows", str(path)]
        subprocess.run(command, check=True)
        return [Row(**row) for row in json.loads(path.read_text())]


def _run_here(name: str, tiny: bool, path: Path) -> None:
    module: Any = importlib.import_module(f"benchmarks.{name}")
    rows = module.run("tiny" if tiny else "full")
    path.write_text(json.dumps([dataclasses.asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
