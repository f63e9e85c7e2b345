"""Real runs killed at random moments: `python -m tests.torture --kills 200 --commit-kills 20`.

Each run is killed by SIGKILL and resumed, again and again, until it is done; then it must equal the
uninterrupted one bit for bit: parameters, statistics, momentum, average, exported file, and the
metrics without gap or repeat. Some kills fall into the commit of a checkpoint: Orbax's temporary
folder is then there, and is still there when the process is dead. The others fall anywhere, from
the start of Python to the last export.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from convert.arrays import same_bits

STEPS = 80
COMMAND = (
    *(sys.executable, "-m", "train", "digits", "--model", "WideResNet16-1-0.0"),
    *("--global-batch-size", "16", "--max-steps", str(STEPS), "--ema-decay", "0.9"),
    *("--log-every-steps", "1", "--checkpoint-every-steps", "3"),
)
_PATIENCE = 300.0  # seconds for a run that nobody kills
_GLANCE = 0.001  # seconds between two looks at a folder
_LONGEST_COMMIT = 0.15  # seconds after which a kill would come too late for it
_LONGEST_TRAINING = 2.0  # seconds that a process trains before its kill, about a quarter of a run


class Torture:
    """Kills runs until there were enough kills, of both kinds.

    Attributes:
        kills: how many, by what they hit.
        runs: how many came to their end and were compared.
    """

    def __init__(self, folder: Path, *, kills: int, commit_kills: int, seed: int):
        self.folder, self.rng = folder, random.Random(seed)
        self.wanted, self.wanted_in_commit = kills, commit_kills
        self.kills: collections.Counter[str] = collections.Counter()
        self.runs = 0
        self._wait(self._start(folder / "whole"))
        self._seconds_to_begin = 5.0  # from the start of Python to the first step; measured later

    def torture(self) -> None:
        """Raises an AssertionError that says what an interrupted run lost."""
        start = time.perf_counter()
        while self.kills.total() < self.wanted or self.kills["commit"] < self.wanted_in_commit:
            run = self.folder / f"run-{self.runs}"
            while not self._is_done(run):
                process = self._start(run)
                enough = self.kills.total() >= self.wanted
                if enough and self.kills["commit"] >= self.wanted_in_commit:
                    self._wait(process)
                else:
                    self._kill(process, run)
            compare(self.folder / "whole", run)
            self.runs += 1
            shutil.rmtree(run)
            print(
                f"{self.runs} runs equal, {self.kills.total()} kills {dict(self.kills)}, "
                f"{time.perf_counter() - start:.0f} s",
                flush=True,
            )

    def _start(self, run: Path) -> subprocess.Popen[str]:
        """A run that goes on where it can, as a script around it would."""
        has_checkpoint = any(p.name.isdigit() for p in (run / "checkpoints").glob("*"))
        how = "--resume" if has_checkpoint else "--overwrite"
        with (self.folder / "stderr").open("w") as errors:
            return subprocess.Popen(
                [*COMMAND, "--run-dir", str(run), how],
                env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"},
                stdout=subprocess.DEVNULL,
                stderr=errors,
                text=True,
            )

    def _kill(self, process: subprocess.Popen[str], run: Path) -> None:
        if self.rng.random() < max(0.5, self.wanted_in_commit / self.wanted):
            is_hit = self._await_commit(process, run)
            time.sleep(self.rng.uniform(0, _LONGEST_COMMIT) if is_hit else 0)
        else:
            self._await_steps(process, run)
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            self._check(process)  # it came to its end first
        elif _temporary_folders(run):
            self.kills["commit"] += 1
        else:
            self.kills["elsewhere"] += 1

    def _await_commit(self, process: subprocess.Popen[str], run: Path) -> bool:
        """Until a checkpoint is being written; one of those to come, not always the first."""
        before = len(_temporary_folders(run))  # what an earlier kill left
        to_pass = self.rng.randrange(5)
        was_there = before > 0
        while process.poll() is None:
            is_there = bool(_temporary_folders(run))
            if is_there and not was_there:
                if to_pass == 0:
                    return True
                to_pass -= 1
            was_there = is_there
            time.sleep(_GLANCE)
        return False

    def _await_steps(self, process: subprocess.Popen[str], run: Path) -> None:
        """Some time from its start, or as often from the first step that it makes."""
        start, seconds = time.perf_counter(), self._seconds_to_begin
        if self.rng.random() < 0.5:
            before = _size(run / "metrics.jsonl")
            while process.poll() is None and _size(run / "metrics.jsonl") <= before:
                time.sleep(0.05)
            self._seconds_to_begin = time.perf_counter() - start
            seconds = _LONGEST_TRAINING
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self.rng.uniform(0, seconds))

    def _wait(self, process: subprocess.Popen[str]) -> None:
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"a run hangs: not done after {_PATIENCE:.0f} s") from None
        self._check(process)

    def _check(self, process: subprocess.Popen[str]) -> None:
        errors = (self.folder / "stderr").read_text()
        assert process.returncode == 0, f"exit code {process.returncode}: {errors}"
        assert "damaged" not in errors, errors  # a kill leaves nothing half-written behind

    @staticmethod
    def _is_done(run: Path) -> bool:
        return (run / "result.json").is_file()


def compare(whole: Path, run: Path) -> None:
    """Raises an AssertionError unless both runs ended in the same state and told the same."""
    from train.run.saved_state import read

    ends = [read(folder / "checkpoints" / str(STEPS)) for folder in (whole, run)]
    assert ends[0].items.keys() == ends[1].items.keys() == {"model", "optimizer", "ema"}
    for item, arrays in ends[0].items.items():
        _compare_arrays(item, arrays, ends[1].items[item])
    assert _documents(ends[0]) == _documents(ends[1])
    # arrays, not bytes: safetensors writes its metadata in a random order
    exports = [load_file(folder / "model.safetensors") for folder in (whole, run)]
    _compare_arrays("export", *exports)
    assert _metrics(whole) == _metrics(run)


def _documents(end: Any) -> tuple[Any, ...]:
    """What a checkpoint says about itself, but for how long it took."""
    told = end.documents
    progress = {k: v for k, v in told.progress.items() if k not in ("seconds", "checksum")}
    return told.description, told.array_items, progress


def _compare_arrays(what: str, one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys(), what
    for name, array in one.items():
        assert same_bits(array, other[name]), f"{what}: {name}"


def _metrics(run: Path) -> list[dict[str, Any]]:
    """The lines without their times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [*range(1, STEPS + 1)]
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


def _temporary_folders(run: Path) -> list[Path]:
    with contextlib.suppress(FileNotFoundError):  # a run that begins anew deletes what was there
        return list((run / "checkpoints").glob("*.orbax-checkpoint-tmp*"))
    return []


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--commit-kills", type=int, default=20, help="at least so many of them")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/jax")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        torture = Torture(
            Path(folder), kills=options.kills, commit_kills=options.commit_kills, seed=options.seed
        )
        torture.torture()
    print(
        f"{torture.kills.total()} kills, {torture.kills['commit']} of them inside the commit of a "
        f"checkpoint, in {torture.runs} runs: all equal to the uninterrupted one, bit for bit"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
