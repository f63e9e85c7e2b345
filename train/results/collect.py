"""Collects runs: finds their folders and reads what the files in them say."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.config import Config
from train.results.plan import Asked
from train.results.protocol import find_protocol
from train.results.published import DATA
from train.run.json_files import read_json, read_own_json
from train.run.metrics import FILE as METRICS
from train.run.metrics import read_metrics
from train.run.starts import find_changes, find_devices

_CONFIG, _RESULT = "config.json", "result.json"
_NOT_RUNS = ("checkpoints", "tensorboard", "wandb", "profile")  # inside a run's folder


class UnreadableError(ValueError):
    """A file is damaged or was not written by this trainer; the message names it and says why."""


@dataclass(frozen=True)
class Outcome:
    """What a finished run reached. Errors are fractions of the test images.

    Attributes:
        error: of the exported weights. best_error, best_step: the lowest error of any test, and
            the step of that test.
        torch_error, different_predictions: the error of the export in the torch twin, and the
            number of images that the twin puts into another class; None if not checked.
        seconds: wall time of all starts.
    """

    error: float
    best_error: float
    best_step: int
    torch_error: float | None
    different_predictions: int | None
    seconds: float


@dataclass(frozen=True)
class RecordedRun:
    """A training run as its folder records it.

    Attributes:
        test_images: how many it was tested on; None if no file says.
        devices: what computed its steps, such as `1 cpu device, then torch`.
        step: the last step in its metrics. total_steps: the step at which it ends.
        metrics: the lines of `metrics.jsonl`.
        outcome: None until the run is finished.
        recipe: the name of the recipe that it began with; asked: the options of its row in
            `resnet-train table`. None if none was named, and in runs of older versions.
        changes: changes of its configuration between two of its steps, one text each.
        weights: the weights that it began with, if they were imported into its folder.
    """

    folder: Path
    config: Config
    train_images: int
    test_name: str
    test_images: int | None
    devices: str
    total_steps: int
    step: int = 0
    metrics: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    outcome: Outcome | None = None
    recipe: str | None = None
    asked: Asked | None = None
    changes: tuple[str, ...] = ()
    weights: str | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it was trained from random weights by one configuration throughout."""
        return not self.changes and self.weights is None and self.config.init_from is None

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def protocol(self) -> str:
        """The protocol that it followed; only for the data sets of the table."""
        return find_protocol(self.config.data, self.test_name, self.test_images)

    def epoch(self, step: int) -> float:
        """How often it had seen the training set after a step."""
        return step * self.config.global_batch_size / self.train_images


def find_runs(folders: Iterable[Path]) -> tuple[list[RecordedRun], dict[Path, str]]:
    """Finds all runs in and below the folders.

    A run's folder is one with a `config.json`.

    Returns:
        The runs, each once, sorted by path; and what was skipped, with the reason: files that are
        damaged, unreadable or not of this trainer.
    """
    runs: dict[Path, RecordedRun] = {}
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
    """Sorted by path. A folder that has a path without links is listed by that path only."""
    found: list[Path] = []
    seen: set[Path] = set()
    tops = [top]
    while tops:
        links: list[Path] = []
        for start in tops:
            for name, names, files in os.walk(start, onerror=skip):
                path = Path(name)
                if path.resolve() in seen:  # links can form a circle
                    names.clear()
                    continue
                seen.add(path.resolve())
                if _CONFIG in files:
                    found.append(path)
                    names[:] = [name for name in names if name not in _NOT_RUNS]
                links += [path / name for name in sorted(names) if (path / name).is_symlink()]
        tops = links
    return sorted(found)


def _read_run(folder: Path) -> RecordedRun:
    with _naming(_CONFIG):
        content = read_own_json(folder / _CONFIG)
        config = Config.from_json(content["config"])
        train_images, starts = _count(content["train_images"]), content.get("starts", [])
        newest = {**(starts[-1] if starts else {}), "devices": content["devices"]}
        held_out = f"train[{train_images}:]"  # of versions that did not record the name
        test_name = "test" if config.validation_size is None else held_out
        run = RecordedRun(
            folder=folder,
            config=dataclasses.replace(config, overwrite=False),
            train_images=train_images,
            test_name=_text(content.get("test_name", test_name)),
            test_images=_optional(_count, content.get("test_images")),
            devices=", then ".join(find_devices([*starts[:-1], newest])),
            total_steps=_count(content["total_steps"]),
            recipe=_optional(_text, content.get("recipe")),
            asked=_optional(read_asked, content.get("asked")),
            changes=tuple(find_changes(starts, config)),
            weights=next((str(s["weights"]) for s in starts if s.get("weights")), None),
        )
    with _naming(METRICS):
        metrics = read_metrics(folder / METRICS)
    step = max((line["step"] for line in metrics), default=0)
    run = dataclasses.replace(run, metrics=metrics, step=step)
    with _naming(_RESULT):
        result = read_json(folder / _RESULT) if (folder / _RESULT).exists() else {}
        outcome = _outcome(result, run) if result else None
        test_images = _count_test_images(run, result)
    return dataclasses.replace(run, test_images=test_images, outcome=outcome)


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Turns every error that a foreign file can cause into one that names the file."""
    try:
        yield
    except (OSError, LookupError, ValueError, TypeError, AttributeError, OverflowError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise UnreadableError(f"{name} is damaged or of another version: {reason}") from error


def read_asked(fields: dict[str, Any]) -> Asked:
    """Reads the `asked` of a JSON file; raises KeyError, TypeError or ValueError if damaged."""
    return Asked(
        data=_text(fields["data"]),
        protocol=_text(fields["protocol"]),
        recipe=_optional(_text, fields["recipe"]),
        epochs=_optional(_count, fields["epochs"]),
        max_steps=_optional(_count, fields["max_steps"]),
    )


def _count_test_images(run: RecordedRun, result: dict[str, Any]) -> int | None:
    parity, config = result.get("parity") or {}, run.config
    whole = DATA[config.data].test_images if config.data == "digits" else None
    # The result comes first: it does not count damaged images.
    known = (result.get("images"), run.test_images, parity.get("images"))
    known = (*known, config.validation_size, whole)
    return next((_count(count) for count in known if count is not None), None)


def _outcome(result: dict[str, Any], run: RecordedRun) -> Outcome | None:
    """The content of `result.json`; None if the run was continued beyond it."""
    if int(result.get("step", run.step)) < run.total_steps:
        return None
    error, seconds = _fraction(result["error"]), float(result["seconds"])
    if not 0 <= seconds < math.inf:  # NaN fails, too
        raise ValueError(f"a time of {seconds}")
    best_error, best_step = result.get("best_error"), result.get("best_step")
    if best_error is None or best_step is None:
        best_error, best_step = _best(result, run.metrics)
    parity = result.get("parity") or {}
    return Outcome(
        error=error,
        best_error=_fraction(best_error),
        best_step=int(best_step),
        torch_error=_optional(_fraction, parity.get("torch_error")),
        different_predictions=_optional(int, parity.get("different_predictions")),
        seconds=round(seconds, 1),
    )


def _optional(read: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None else read(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a name of {value}")
    return value


def _count(value: Any) -> int:
    if not 1 <= int(value) < 2**31:
        raise ValueError(f"a count of {value}")
    return int(value)


def _fraction(value: Any) -> float:
    if not 0 <= float(value) <= 1:  # NaN fails, too
        raise ValueError(f"an error of {value}")
    return float(value)


def _best(result: dict[str, Any], metrics: list[dict[str, Any]]) -> tuple[float, int]:
    """(error, step) of the best test of the exported weights; of equal ones the first."""
    name = "ema_error" if result.get("weights") == "ema" else "error"
    tests = [line for line in metrics if line["kind"] == "test" and line.get(name) is not None]
    reached = [(float(line[name]), int(line["step"])) for line in tests]
    last = (float(result["error"]), max((step for _, step in reached), default=0))
    return min([*reached, last])
