"""The runs that lie below some folders, as their files tell of them."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.config import Config
from train.results.published import DATA
from train.run.json_files import read_json, read_own_json
from train.run.metrics import FILE as METRICS
from train.run.metrics import read_metrics
from train.run.starts import find_changes

_CONFIG, _RESULT = "config.json", "result.json"
_NOT_RUNS = ("checkpoints", "tensorboard", "wandb", "profile")  # in the folder of a run


class UnreadableError(ValueError):
    """A file that is damaged or not ours: which, and why."""


@dataclass(frozen=True)
class Outcome:
    """What a finished run reached; errors are fractions of the test images.

    Attributes:
        error: of the exported weights. best_error, best_step: the least error of any test, and
            after which step.
        torch_error, different_predictions: of the export in the torch twin, and how many images it
            puts in another class; None where it was not checked.
        seconds: wall time of all starts.
    """

    error: float
    best_error: float
    best_step: int
    torch_error: float | None
    different_predictions: int | None
    seconds: float


@dataclass(frozen=True)
class Run:
    """A run's folder.

    Attributes:
        test_images: how many it was tested on, None where no file says so.
        step: the last one that its metrics tell of. total_steps: where it ends.
        metrics: the lines of `metrics.jsonl`.
        outcome: None until it is finished.
        changes: of its configuration between two of its steps, one text each.
        weights: that it began with, where a file's were imported into its folder.
    """

    folder: Path
    config: Config
    train_images: int
    test_name: str
    test_images: int | None
    devices: str
    step: int
    total_steps: int
    metrics: list[dict[str, Any]]
    outcome: Outcome | None
    changes: tuple[str, ...] = ()
    weights: str | None = None

    @property
    def is_plain(self) -> bool:
        """Whether its configuration alone made it, from random weights."""
        return not self.changes and self.weights is None and self.config.init_from is None

    @property
    def seed(self) -> int:
        return self.config.seed

    def epoch(self, step: int) -> float:
        """Passes over the training set after so many steps."""
        return step * self.config.global_batch_size / self.train_images


def find_runs(folders: Iterable[Path]) -> tuple[list[Run], dict[Path, str]]:
    """All runs in and below the folders, each once, in the order of their paths; what is skipped.

    A run's folder is one with a `config.json`. Files that are damaged or not of this trainer are
    skipped, with the reason.
    """
    runs: dict[Path, Run] = {}
    skipped: dict[Path, str] = {}

    def skip(error: OSError) -> None:
        skipped[Path(error.filename)] = f"it cannot be read: {error.strerror}"

    for top in folders:
        if not top.is_dir():
            skipped[top] = "there is no such folder"
            continue
        for folder in _folders_with_config(top, skip):
            try:
                runs.setdefault(folder.resolve(), _read_run(folder))
            except UnreadableError as error:
                skipped[folder] = str(error)
    return list(runs.values()), skipped


def _folders_with_config(top: Path, skip: Callable[[OSError], None]) -> list[Path]:
    """In the order of their paths; what a link leads to only where no other path does."""
    found: list[Path] = []
    seen: set[Path] = set()
    tops = [top]
    while tops:
        links: list[Path] = []
        for start in tops:
            for name, names, files in os.walk(start, onerror=skip):
                path = Path(name)
                if path.resolve() in seen:  # been there, as in a circle of links
                    names.clear()
                    continue
                seen.add(path.resolve())
                if _CONFIG in files:
                    found.append(path)
                    names[:] = [name for name in names if name not in _NOT_RUNS]
                links += [path / name for name in sorted(names) if (path / name).is_symlink()]
        tops = links
    return sorted(found)


def _read_run(folder: Path) -> Run:
    with _naming(_CONFIG):
        content = read_own_json(folder / _CONFIG)
        config = Config.from_json(content["config"])
        train_images, total_steps = _count(content["train_images"]), _count(content["total_steps"])
        devices = str(content["devices"])
        held_out = config.validation_size is not None
        test_name = content.get("test_name", f"train[{train_images}:]" if held_out else "test")
        if not isinstance(test_name, str):
            raise TypeError(f"a test set called {test_name}")
        tested = None if content.get("test_images") is None else _count(content["test_images"])
        starts = content.get("starts", [])
        changes = find_changes(starts, config)
        weights = next((str(s["weights"]) for s in starts if s.get("weights")), None)
    with _naming(METRICS):
        metrics = read_metrics(folder / METRICS)
    step = max((line["step"] for line in metrics), default=0)
    with _naming(_RESULT):
        result = read_json(folder / _RESULT) if (folder / _RESULT).exists() else {}
        outcome = _outcome(result, metrics, step, total_steps) if result else None
        test_images = _count_test_images(tested, config, result)
    return Run(
        folder=folder,
        config=dataclasses.replace(config, overwrite=False),
        train_images=train_images,
        test_name=test_name,
        test_images=test_images,
        devices=devices,
        step=step,
        total_steps=total_steps,
        metrics=metrics,
        outcome=outcome,
        changes=tuple(changes),
        weights=weights,
    )


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Whatever a foreign file makes of us as an error that names it."""
    try:
        yield
    except KeyError as error:
        raise UnreadableError(
            f"{name} is damaged or of another version: it lacks {error}"
        ) from error
    except (OSError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UnreadableError(f"{name} is damaged or of another version: {error}") from error


def _count_test_images(tested: int | None, config: Config, result: dict[str, Any]) -> int | None:
    parity = result.get("parity") or {}
    whole = DATA[config.data].test_images if config.data == "digits" else None
    # what was really tested first: damaged images do not count
    known = (result.get("images"), tested, parity.get("images"), config.validation_size, whole)
    return next((_count(count) for count in known if count is not None), None)


def _outcome(
    result: dict[str, Any], metrics: list[dict[str, Any]], step: int, total_steps: int
) -> Outcome | None:
    """What `result.json` says; None where it is of before the run went on to more steps."""
    if int(result.get("step", step)) < total_steps:
        return None
    error, seconds = _fraction(result["error"]), float(result["seconds"])
    if not 0 <= seconds < math.inf:  # nor NaN
        raise ValueError(f"a time of {seconds}")
    best_error, best_step = result.get("best_error"), result.get("best_step")
    if best_error is None or best_step is None:
        best_error, best_step = _best(result, metrics)
    parity = result.get("parity") or {}
    torch_error, different = parity.get("torch_error"), parity.get("different_predictions")
    return Outcome(
        error=error,
        best_error=_fraction(best_error),
        best_step=int(best_step),
        torch_error=None if torch_error is None else _fraction(torch_error),
        different_predictions=None if different is None else int(different),
        seconds=seconds,
    )


def _count(value: Any) -> int:
    if not 1 <= int(value) < 2**31:
        raise ValueError(f"a count of {value}")
    return int(value)


def _fraction(value: Any) -> float:
    if not 0 <= float(value) <= 1:  # nor NaN
        raise ValueError(f"an error of {value}")
    return float(value)


def _best(result: dict[str, Any], metrics: list[dict[str, Any]]) -> tuple[float, int]:
    """(error, step) of the best test of the weights that are exported, of equal ones the first."""
    name = "ema_error" if result.get("weights") == "ema" else "error"
    tests = [line for line in metrics if line["kind"] == "test" and line.get(name) is not None]
    reached = [(float(line[name]), int(line["step"])) for line in tests]
    last = (float(result["error"]), max((step for _, step in reached), default=0))
    return min([*reached, last])


def finite(value: Any) -> float:
    """A number of a line of metrics; NaN for what JSON could not hold."""
    return float(value) if value is not None and math.isfinite(value) else math.nan
