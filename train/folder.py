"""The folder of a run: checked before anything is computed, written only when a run begins."""

import json
import platform
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from train.config import FOLDER, Config
from train.errors import UserError

CHECKPOINTS = "checkpoints"
_CONFIG = "config.json"
# What a run is of: which model learns what from which images, in which order; and the form of its
# state. Two changes among these would make a run that is none of the two.
FIXED = (
    *("model", "shortcut", "zero_init_residual", "stochastic_depth", "frozen_stages"),
    *("padding", "stem_padding", "bottleneck_stride", "running_variance"),
    *("init_from", "init_layout", "data", "validation_size", "image_size", "crop_fraction"),
    *("crop_padding", "flip", "min_crop_area", "rand_augment", "rand_augment_magnitude"),
    *("mixup", "cutmix", "label_smoothing", "global_batch_size", "accumulate_steps"),
    *("optimizer", "momentum", "ema_decay", "precision", "seed", "seeds"),
)
# How fast and how long it learns, which people do change on the way; where it runs; what it tells.
FREE = (
    *("epochs", "max_steps", "learning_rate", "learning_rate_batch_size", "schedule"),
    *("drop_steps", "drop_epochs", "drop_factor", "warmup", "warmup_steps", "warmup_epochs"),
    *("warmup_learning_rate", "nesterov", "weight_decay", "clip_norm", "skip_nonfinite"),
    *("scan_blocks", "remat", "parallel", "distributed", "coordinator", "process_id"),
    *("num_processes", "seeds_mode", "data_dir", "read_threads", "run_dir", "resume", "overwrite"),
    *("eval_only", "eval_every_epochs", "checkpoint_every_steps", "log_every_steps"),
    *("profile", "wandb"),
)
_PACKAGES = ("flax-resnet", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def choose_folder(config: Config) -> Path:
    """The folder of a run; nothing is written or deleted yet.

    Raises:
        UserError: it cannot be used as the configuration asks, or holds a run of something else.
    """
    default = Path("runs") / f"{config.model}-{config.data}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = config.run_dir or default
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--run-dir {folder} is a file, not a folder")
    if config.resume:
        if not folder.is_dir():
            raise UserError(f"--run-dir {folder} does not exist: there is no run to resume")
        if not (folder / CHECKPOINTS).is_dir():
            raise UserError(f"--run-dir {folder} holds no checkpoint to resume from")
        if saved := saved_config(folder):
            check_resumable(saved, config)
    elif folder.is_dir() and _holds_files(folder):
        if not config.overwrite:
            raise UserError(
                f"--run-dir {folder} is not empty: go on with --resume, start anew with "
                "--overwrite, or name another folder"
            )
        if not _is_own(folder):
            raise UserError(f"--overwrite: {folder} is no run of this trainer, nothing deleted")
    return folder


def begin_folder(folder: Path, config: Config) -> None:
    """Makes the folder, empty unless the run is resumed.

    Raises:
        UserError: the folder cannot be made.
    """
    try:
        if config.overwrite and folder.is_dir():
            _delete(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--run-dir {folder}: {error}") from error


def write_config(
    folder: Path, config: Config, *, devices: str, train_images: int, total_steps: int
) -> None:
    """Writes what is run, on how much data, by which versions, on what: `config.json`."""
    versions = {"python": platform.python_version(), **{p: version(p) for p in _PACKAGES}}
    content = {
        "config": config.to_json(),
        "train_images": train_images,
        "total_steps": total_steps,
        "versions": versions,
        "devices": devices,
    }
    write_json(folder / _CONFIG, content)


def saved_config(folder: Path) -> Config | None:
    """The configuration that a run's folder holds; None where weights were only imported.

    Raises:
        UserError: the file is damaged, or of another version.
    """
    if not (folder / _CONFIG).exists():
        return None
    try:
        fields = _read_own(folder)["config"]
        return Config.from_json(fields)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / _CONFIG} cannot be resumed from: {error or type(error).__name__}"
        ) from error


def check_resumable(saved: Config, now: Config) -> None:
    """A resumed run may learn faster, longer or elsewhere; not something else.

    Raises:
        UserError: fields that cannot change did; all of them are named.
    """
    changed = [
        f"--{name.replace('_', '-')} {getattr(now, name)}, "
        f"the run began with {getattr(saved, name)}"
        for name in FIXED
        if _fixed_part(saved, name) != _fixed_part(now, name)
    ]
    if changed:
        raise UserError(
            "\n  ".join([f"--resume: {len(changed)} fields cannot change in a run:", *changed])
            + f"\nleave them out to go on, or start another run from its weights: "
            f"--init-from {now.run_dir} with a new --run-dir"
        )


def _fixed_part(config: Config, name: str) -> Any:
    """Of some fields only a part must stay."""
    value = getattr(config, name)
    match name:
        case "momentum":  # whether there are buffers
            return value > 0
        case "ema_decay":  # whether there is an average
            return value is not None
        case "precision":  # the dtype of the state: bf16 is float32 there
            return value == "f64"
        case "data" if value.startswith(FOLDER):  # it may have moved; its classes are compared
            return FOLDER
    return value


def check_same_data(folder: Path, train_images: int) -> None:
    """The order of images is a function of their number: a run goes on with as many as it began.

    Raises:
        UserError: the folder says that there were more or fewer.
    """
    if not (folder / _CONFIG).exists():
        return  # imported weights
    before = _read_own(folder).get("train_images", train_images)
    if before != train_images:
        raise UserError(
            f"{folder} trains on {before} images, and there are {train_images} now: name the data "
            "that it began with by --data-dir"
        )


def _read_own(folder: Path) -> dict[str, Any]:
    """The content of a `config.json` that this trainer wrote; a ValueError if it did not."""
    content = json.loads((folder / _CONFIG).read_text())
    if not isinstance(content, dict) or "flax-resnet" not in content.get("versions", ()):
        raise ValueError("it was not written by this trainer")
    return content


def _holds_files(folder: Path) -> bool:
    """Whether there is more than a run leaves behind that ended before its configuration."""
    files = (path for path in folder.rglob("*") if not path.is_dir())
    return any(path != _temporary(folder / _CONFIG) for path in files)


def _delete(folder: Path) -> None:
    """Deletes a run, last of all what tells that it is one: whoever is interrupted can go on."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _CONFIG:
            path.unlink()
    shutil.rmtree(folder)


def _is_own(folder: Path) -> bool:
    try:
        return bool(_read_own(folder))
    except (OSError, ValueError, TypeError):
        return False


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a whole file or none."""
    temporary = _temporary(path)
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")
