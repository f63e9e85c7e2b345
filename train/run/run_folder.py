"""The folder of a run: checked before anything is computed, claimed, written and overwritten."""

import contextlib
import dataclasses
import fcntl
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from train.config import Config, check_resumable
from train.errors import UserError
from train.run.json_files import leftovers, read_own_json, write_json
from train.run.starts import (
    STARTED_BY,
    changed_fields,
    earlier_starts,
    rounds_otherwise,
    this_start,
)

CHECKPOINTS = "checkpoints"
RESULT = "result.json"
SEEDS = "seeds.json"  # what config.json is, for the runs of several seeds, which have a folder each
_CONFIG = "config.json"
# All that a run leaves, which --overwrite deletes; last the file that makes the folder a run's.
_FOLDERS = (CHECKPOINTS, "tensorboard", "profile", "wandb")
_OF_RESULTS = (  # `resnet-train results`
    *("results.json", "results.md", "results.html", "curves.png", "curves.svg"),
)
_FILES = (
    *(RESULT, "metrics.jsonl", "model.safetensors", "wandb_id", *_OF_RESULTS, _CONFIG, SEEDS),
)


def choose_folder(config: Config) -> Path:
    """The folder of a run, or of the runs of several seeds."""
    data = Path(config.data.partition(":")[2] or config.data).name  # folder:/images/birds -> birds
    when = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"  # unique within a second, too
    return config.run_dir or Path("runs") / f"{config.model}-{data}-{when}"


def check_folder(folder: Path, config: Config) -> None:
    """Raises a UserError unless a run can begin or go on here; changes nothing."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--run-dir {folder} is a file, not a folder")
    if config.resume:
        if not folder.is_dir():
            raise UserError(f"--run-dir {folder} does not exist: there is no run to resume")
        if saved := saved_config(folder):
            check_resumable(saved, config)
        elif not has_checkpoint(folder):
            raise UserError(f"--run-dir {folder} holds no run to resume")
        elif any(map(_is_of_a_run, _list_checkpoints(folder))):
            raise UserError(
                f"--run-dir {folder}: its checkpoints are of a run whose {_CONFIG} is missing: put "
                f"it back, or start another run from its weights: --init-from {folder} with a new "
                "--run-dir"
            )
    elif folder.is_dir() and _holds_files(folder):
        if not config.overwrite:
            raise UserError(
                f"--run-dir {folder} is not empty: go on with --resume, start anew with "
                "--overwrite, or name another folder"
            )
        if not _is_own(folder):
            raise UserError(f"--overwrite: {folder} is no run of this trainer, nothing deleted")


def seed_folder(folder: Path, config: Config, seed: int) -> Path:
    """The folder of one seed's run: `folder` itself, or one of several in it."""
    return folder if config.seeds is None else folder / f"seed-{seed}"


def own_config(config: Config, seed: int, folder: Path) -> Config:
    """The configuration of one seed's run, as if it were alone."""
    if config.seeds is None:
        return config
    return dataclasses.replace(config, seed=seed, seeds=None, seeds_mode="auto", run_dir=folder)


def has_checkpoint(folder: Path) -> bool:
    """Whether a run can go on from a checkpoint."""
    return bool(_list_checkpoints(folder))


def _list_checkpoints(folder: Path) -> list[Path]:
    return [path for path in (folder / CHECKPOINTS).glob("*") if path.name.isdigit()]


def _is_of_a_run(checkpoint: Path) -> bool:
    """False for imported weights, which have taken no step: any run may begin with them."""
    from convert.runs.disk_format import OPTIMIZER  # not at the start of each command

    return int(checkpoint.name) > 0 or (checkpoint / OPTIMIZER).exists()


def check_length(folder: Path, config: Config, train_images: int) -> None:
    """Raises a UserError if a run has taken more steps than it is to have."""
    steps = math.ceil(config.epochs * train_images / config.global_batch_size)
    limits = {f"--epochs {config.epochs}": steps}
    if config.max_steps is not None:
        limits[f"--max-steps {config.max_steps}"] = config.max_steps
    for seed in config.seed_list if config.resume else ():
        place = seed_folder(folder, config, seed)
        step = max((int(path.name) for path in _list_checkpoints(place)), default=0)
        short = [f"{option} ({steps} steps)" for option, steps in limits.items() if steps < step]
        if short:
            raise UserError(
                f"{place} is at step {step}, beyond the end that {' and '.join(short)} "
                f"{'set' if len(short) > 1 else 'sets'}: give more"
            )


def unfinished_seeds(folder: Path, config: Config, total_steps: int) -> list[int]:
    """The seeds whose runs have steps left to train."""
    seeds = list(config.seed_list)
    if config.seeds is None or not config.resume:
        return seeds
    return [s for s in seeds if _steps_done(seed_folder(folder, config, s)) < total_steps]


def _steps_done(folder: Path) -> int:
    """Number of steps of a run that has its result, else -1."""
    try:
        return int(json.loads((folder / RESULT).read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def begin_folder(folder: Path, config: Config, **facts: Any) -> None:
    """Makes the folder and those of its seeds, overwrites a run; UserError if it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if config.overwrite:
            _delete_run(folder)
        for seed in config.seed_list:
            seed_folder(folder, config, seed).mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"--run-dir {folder}: {error}") from error
    note_start(folder, config, config.seed_list, 0, **facts)


def note_start(
    folder: Path,
    config: Config,
    seeds: Iterable[int],
    step: int,
    weights: str | None = None,
    **facts: Any,
) -> None:
    """Writes into `config.json` how the runs of these seeds go on from `step`.

    It says the versions, commit and command of the newest start, in `starts` those of each start
    with its step and changed fields (oldest first), and `facts`: number of images and steps, and
    devices. `weights` names imported weights that a run began with. UserError if it cannot.
    """
    facts |= this_start(facts.get("devices"))
    if config.resume and _config_file(folder).exists():
        facts |= saved_origin(folder)
    start = {**{name: facts[name] for name in STARTED_BY}, "step": step}
    if weights is not None:
        start["weights"] = weights
    try:
        if config.seeds is not None:
            _write_config(folder / SEEDS, config, facts, start)
        for seed in seeds:
            place = seed_folder(folder, config, seed)
            _write_config(place / _CONFIG, own_config(config, seed, place), facts, start)
    except OSError as error:
        raise UserError(f"--run-dir {folder}: {error}") from error


def rounding(folder: Path, devices: str) -> str:
    """What `rounds_otherwise` says of the runs in a folder."""
    return rounds_otherwise(_config_file(folder), devices)


def _write_config(path: Path, config: Config, facts: dict[str, Any], start: dict[str, Any]) -> None:
    earlier, changed = [], {}
    if config.resume:
        earlier, changed = earlier_starts(path), changed_fields(path, config)
    starts = [*earlier, {**start, "changed": changed} if changed else start]
    write_json(path, {"config": config.to_json(), **facts, "starts": starts})


def saved_config(folder: Path) -> Config | None:
    """A folder's configuration, None beside imported weights; UserError if it is damaged."""
    if not _config_file(folder).exists():
        return None
    try:
        fields = _read_own(folder)["config"]
        return Config.from_json(fields)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{_config_file(folder)} cannot be resumed from: {error or type(error).__name__}"
        ) from error


def saved_mode(folder: Path) -> str | None:
    """How the seeds' runs in a folder were trained, None if there are none."""
    try:
        return _read_own(folder).get("mode")
    except (OSError, ValueError, TypeError):
        return None


def saved_origin(folder: Path) -> dict[str, Any]:
    """The `recipe` that a run began with and what a table `asked` for; None if not recorded."""
    try:
        content = _read_own(folder)
    except (OSError, ValueError, TypeError):
        content = {}
    return {name: content.get(name) for name in ("recipe", "asked")}


def check_same_data(folder: Path, train_images: int) -> None:
    """Raises a UserError if the number of images, which decides their order, has changed."""
    if not _config_file(folder).exists():
        return  # imported weights
    try:
        before = _read_own(folder).get("train_images", train_images)
    except (OSError, ValueError) as error:
        raise UserError(f"{_config_file(folder)} cannot be resumed from: {error}") from error
    if before != train_images:
        raise UserError(
            f"{folder} trains on {before} images, and there are {train_images} now: name the data "
            "that it began with by --data-dir"
        )


def _config_file(folder: Path) -> Path:
    several = folder / SEEDS
    return several if several.exists() else folder / _CONFIG


def _read_own(folder: Path) -> dict[str, Any]:
    """The file that this trainer wrote for a run or several; ValueError if it is another's."""
    return read_own_json(_config_file(folder))


def _holds_files(folder: Path) -> bool:
    """Whether there is more than a run leaves that was killed before its configuration."""
    files = (path for path in folder.rglob("*") if not path.is_dir())
    unfinished = {*leftovers(folder / _CONFIG), *leftovers(folder / SEEDS)}
    return any(path not in unfinished for path in files)


def _is_own(folder: Path) -> bool:
    try:
        return bool(_read_own(folder))
    except (OSError, ValueError, TypeError):
        return False


@contextlib.contextmanager
def claimed(folder: Path, config: Config) -> Iterator[None]:
    """Makes, locks and checks a folder; UserError as in `locked` and `check_folder`."""
    if config.resume:
        check_folder(folder, config)
    else:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--run-dir {folder}: {error}") from error
    with locked(folder):
        check_folder(folder, config)
        yield


@contextlib.contextmanager
def seeds_locked(folder: Path) -> Iterator[None]:
    """Locks the folders of all seeds against processes that train one of them alone."""
    with contextlib.ExitStack() as stack:
        for place in sorted(folder.glob("seed-*")):
            if place.is_dir():
                stack.enter_context(locked(place))
        yield


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a run's folder while the process lasts; UserError if another one is training there.

    Deletes what killed processes left half-written there.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder}: another process is training this run") from error
        _delete_leftovers(folder)
        yield
    finally:
        os.close(descriptor)


def watch_place(folder: Path) -> Callable[[], None]:
    """A function that raises an OSError if the folder was moved or deleted since now.

    After a move, open files are written in one folder and new files in another.
    """
    before = os.stat(folder)

    def check() -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if os.path.samestat(os.stat(folder), before):
                return
        raise OSError(
            f"{folder}: the run's folder was moved or deleted while it was trained; where it is "
            "now, --resume --run-dir FOLDER goes on from its newest checkpoint"
        )

    return check


def _delete_run(folder: Path) -> None:
    """Deletes a run and those of its seeds; other files stay, other runs among them.

    The folder stays, too: it may be locked, a link, or another file system. What makes it a run's
    is deleted last, so that an interrupted deletion can be repeated.
    """
    for path in folder.glob("seed-*"):
        if path.is_dir() and not path.is_symlink():
            _delete_run(path)
            if not any(path.iterdir()):
                path.rmdir()
    for name in _FOLDERS:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    _delete_leftovers(folder)
    for name in _FILES:
        path = folder / name
        if path.is_symlink() or not path.is_dir():  # a folder of this name is not the run's
            path.unlink(missing_ok=True)


def _delete_leftovers(folder: Path) -> None:
    """Deletes what killed processes left half-written in a run's folder."""
    for name in _FILES:
        for path in leftovers(folder / name):
            path.unlink(missing_ok=True)
