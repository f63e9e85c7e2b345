"""The folder of a run: checked before anything is computed, written only when a run begins."""

import dataclasses
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from train.config import Config
from train.config.resume import check_resumable
from train.errors import UserError
from train.run.json_files import read_own_json, temporary_of, write_json
from train.run.overwriting import delete_run
from train.run.starts import STARTED_BY, changed_fields, earlier_starts, this_start

CHECKPOINTS = "checkpoints"
RESULT = "result.json"
_CONFIG = "config.json"
SEEDS = "seeds.json"  # the same for the runs of several seeds, which have a folder each


def choose_folder(config: Config) -> Path:
    """The folder of a run, or of the runs of several seeds."""
    when = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"  # of several in one second, too
    return config.run_dir or Path("runs") / f"{config.model}-{_short(config.data)}-{when}"


def check_folder(folder: Path, config: Config) -> None:
    """Nothing is written or deleted yet.

    Raises:
        UserError: it cannot be used as the configuration asks, or holds a run of something else.
    """
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


def _short(data: str) -> str:
    """`folder:/images/birds/` -> `birds`."""
    return Path(data.partition(":")[2] or data).name


def seed_folder(folder: Path, config: Config, seed: int) -> Path:
    """Where the run of one seed is: the folder itself, or one of several within."""
    return folder if config.seeds is None else folder / f"seed-{seed}"


def own_config(config: Config, seed: int, folder: Path) -> Config:
    """The configuration of the run of one of several seeds, as if it were alone."""
    if config.seeds is None:
        return config
    return dataclasses.replace(config, seed=seed, seeds=None, seeds_mode="auto", run_dir=folder)


def has_checkpoint(folder: Path) -> bool:
    """Whether a run has one to go on from."""
    return bool(_list_checkpoints(folder))


def _list_checkpoints(folder: Path) -> list[Path]:
    return [path for path in (folder / CHECKPOINTS).glob("*") if path.name.isdigit()]


def _is_of_a_run(checkpoint: Path) -> bool:
    """Not of weights that were imported, which have taken no step: any run may begin with them."""
    from convert.runs.disk_format import OPTIMIZER  # not at the start of each command

    return int(checkpoint.name) > 0 or (checkpoint / OPTIMIZER).exists()


def check_length(folder: Path, config: Config, limits: Mapping[str, int]) -> None:
    """No run that is resumed may be further than it is to go: steps, by the option that sets them.

    Raises:
        UserError: one is; all that would end it before are named.
    """
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
    """The seeds whose runs are to be trained: where they are resumed, those not yet at the end."""
    seeds = list(config.seed_list)
    if config.seeds is None or not config.resume:
        return seeds
    return [s for s in seeds if _steps_done(seed_folder(folder, config, s)) < total_steps]


def _steps_done(folder: Path) -> int:
    """Of a run that has its result; -1 before."""
    try:
        return int(json.loads((folder / RESULT).read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def begin_folder(folder: Path, config: Config, **facts: Any) -> None:
    """Makes the folder and those of its seeds' runs, without the run that it is to overwrite.

    Raises:
        UserError: a folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if config.overwrite:
            delete_run(folder)
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
    """Says in `config.json` what goes on from `step` in the runs of these seeds.

    By which versions, commit and command (of the newest start, and in `starts` of each, oldest
    first, with the step and the fields that changed there), and `facts`: on how much data, for how
    many steps, on which devices. `weights` that a run began with are not its own.

    Raises:
        UserError: a file cannot be written.
    """
    facts |= this_start(facts.get("devices"))
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


def _write_config(path: Path, config: Config, facts: dict[str, Any], start: dict[str, Any]) -> None:
    earlier, changed = [], {}
    if config.resume:
        earlier, changed = earlier_starts(path), changed_fields(path, config)
    starts = [*earlier, {**start, "changed": changed} if changed else start]
    write_json(path, {"config": config.to_json(), **facts, "starts": starts})


def saved_config(folder: Path) -> Config | None:
    """The configuration that a run's folder holds; None where weights were only imported.

    Raises:
        UserError: the file is damaged, or of another version.
    """
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
    """How the seeds' runs of a folder were trained, None where there are none."""
    try:
        return _read_own(folder).get("mode")
    except (OSError, ValueError, TypeError):
        return None


def check_same_data(folder: Path, train_images: int) -> None:
    """The order of images is a function of their number: a run goes on with as many as it began.

    Raises:
        UserError: the folder says that there were more or fewer.
    """
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
    """What this trainer wrote of a run or of several; a ValueError if it did not."""
    return read_own_json(_config_file(folder))


def _holds_files(folder: Path) -> bool:
    """Whether there is more than a run leaves behind that ended before its configuration."""
    files = (path for path in folder.rglob("*") if not path.is_dir())
    unfinished = [temporary_of(folder / name) for name in (_CONFIG, SEEDS)]
    return any(path not in unfinished for path in files)


def _is_own(folder: Path) -> bool:
    try:
        return bool(_read_own(folder))
    except (OSError, ValueError, TypeError):
        return False
