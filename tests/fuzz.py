"""Damaged files by the thousand: `python -m tests.fuzz --count 100000 --seed 0`.

Each is read as a user's file would be, a `config.json` with its folder around it. What may happen
is that it is accepted, or refused with a ConversionError; in 5 s, and in three times the file and
200 MB of memory.
"""

import argparse
import collections
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from convert.errors import ConversionError
from convert.files import read_weights
from convert.models import check
from convert.sources import read_source
from tests.fuzz_cases import cases, hypothesis_cases, write_model_folder

SECONDS = 5.0
MEGABYTES = 200
# Share of all files.
KINDS = {
    "safetensors": 0.15,
    "npz": 0.15,
    "pt": 0.15,
    "pickle": 0.1,
    "hdf5": 0.1,
    "msgpack": 0.05,
    "config": 0.1,
    "folder": 0.05,
    "safetensors by hypothesis": 0.075,
    "config by hypothesis": 0.075,
}
_BATCH = 2500
_PATIENCE = 60.0  # for one batch to report something, before its process is ended


@dataclass
class Summary:
    """What happened to so many files; `failures` are what must not."""

    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    slowest: float = 0.0
    largest_megabytes: float = 0.0
    failures: list[str] = field(default_factory=list)

    def add(self, other: "Summary") -> None:
        self.outcomes += other.outcomes
        self.slowest = max(self.slowest, other.slowest)
        self.largest_megabytes = max(self.largest_megabytes, other.largest_megabytes)
        self.failures += other.failures


class _HangError(BaseException):
    """Raised by the alarm, past whatever catches an Exception."""


def run_case(path: Path, content: bytes) -> tuple[str, float, float]:
    """(outcome, seconds, megabytes) of one file; an outcome that must not be begins with "!".

    A JSON file is read with the model folder that it is in.
    """
    path.write_bytes(content)
    before = _reset_peak()
    start = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, 2 * SECONDS)
    try:
        if path.suffix == ".json":
            weights = read_source(path.parent).judged().weights
        else:
            weights = read_weights(path)
        if weights.classifier is not None:
            check(weights.classifier, weights.arrays)
        outcome = "accepted"
    except ConversionError as error:
        str(error)
        outcome = f"refused, {type(error.__cause__).__name__ if error.__cause__ else 'by us'}"
    except BaseException as error:
        outcome = f"! {type(error).__name__}: {error}"[:300]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    seconds = time.monotonic() - start
    megabytes = (_peak() - before) / 1e6
    if seconds > SECONDS:
        outcome = f"! {seconds:.1f} s, {outcome}"
    if megabytes > 3 * len(content) / 1e6 + MEGABYTES:
        outcome = f"! {megabytes:.0f} MB, {outcome}"
    return outcome, seconds, megabytes


def _reset_peak() -> int:
    """Makes the largest resident memory the present one, in bytes, and returns it."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def run_batch(kind: str, seed: int, start: int, count: int, pipe: Any, folder: Path) -> None:
    """In a process of its own: sends each case's number before it runs, a Summary at the end."""

    def alarm(*_: Any) -> None:
        raise _HangError("it does not end")

    signal.signal(signal.SIGALRM, alarm)
    limit = 16 * 2**30  # protects the machine; what is touched of it is what counts
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    warnings.simplefilter("ignore")
    summary, number = Summary(), start

    def run(suffix: str, content: bytes) -> None:
        nonlocal number
        path = folder / f"case-{os.getpid()}{suffix}"
        if "/" in suffix:  # a file of a model folder, whose others are sound
            write_model_folder(path.parent, suffix.partition("/")[0].lstrip("-"))
        pipe.send(number)
        outcome, seconds, megabytes = run_case(path, content)
        summary.outcomes["failed" if outcome.startswith("!") else f"{kind}: {outcome}"] += 1
        summary.slowest = max(summary.slowest, seconds)
        summary.largest_megabytes = max(summary.largest_megabytes, megabytes)
        if outcome.startswith("!"):
            name = suffix.replace("/", "-")
            kept = path.replace(folder / f"failure-{kind.replace(' ', '-')}-{number}{name}")
            summary.failures.append(f"{kind}, seed {seed}, case {number}: {outcome} ({kept})")
        number += 1

    if kind.endswith("hypothesis"):
        hypothesis_cases(kind, seed, start, count, run)
    else:
        for suffix, content in cases(kind, seed, start, count):
            run(suffix, content)
    pipe.send(summary)


def guard_batch(kind: str, seed: int, start: int, count: int, folder: Path) -> Summary:
    """A batch in a process of its own, whose end or silence is a failure of the case it was at."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    arguments = (kind, seed, start, count, sender, folder)
    process = multiprocessing.get_context("fork").Process(target=run_batch, args=arguments)
    process.start()
    sender.close()
    latest: Any = start
    try:
        while not isinstance(latest, Summary):
            if not receiver.poll(_PATIENCE):
                raise EOFError("silent")
            latest = receiver.recv()
        return latest
    except EOFError:
        process.kill()
        process.join()
        what = f"{kind}, seed {seed}, case {latest}: the process ended with {process.exitcode}"
        return Summary(collections.Counter({"failed": 1}), failures=[what])
    finally:
        process.join()
        receiver.close()


def fuzz(count: int, seed: int, folder: Path) -> Summary:
    """So many files of all kinds, with progress on stderr."""
    summary, start = Summary(), time.monotonic()
    for kind, share in KINDS.items():
        total = round(count * share)
        for first in range(0, total, _BATCH):
            batch = min(_BATCH, total - first)
            summary.add(guard_batch(kind, seed, first, batch, folder))
            done = summary.outcomes.total()
            print(f"{done} files, {time.monotonic() - start:.0f} s, {kind}", file=sys.stderr)
    return summary


def main() -> int:
    """Prints the summary; exit code 1 where anything failed."""
    parser = argparse.ArgumentParser(description="read damaged files of weights")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    summary = fuzz(options.count, options.seed, folder)
    for outcome, number in sorted(summary.outcomes.items()):
        print(f"{number:8d}  {outcome}")
    print(f"{summary.outcomes.total():8d}  files, seed {options.seed}")
    print(f"slowest {summary.slowest:.3f} s; largest memory {summary.largest_megabytes:.1f} MB")
    if not summary.failures:  # which are kept to be looked at
        shutil.rmtree(folder)
    print("\n".join([f"{len(summary.failures)} failures", *summary.failures[:50]]))
    return 1 if summary.failures else 0


if __name__ == "__main__":
    sys.exit(main())
