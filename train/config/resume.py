"""Which fields of a configuration a resumed run may change, and which say what it computes."""

from typing import Any

from train.config import FOLDER, Config
from train.errors import UserError

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
# Of the start that saved them, not of the run: a resumed one says anew where it runs.
OF_ONE_START: dict[str, Any] = {
    **dict.fromkeys(("overwrite", "eval_only", "profile", "distributed"), False),
    **dict.fromkeys(("coordinator", "process_id", "num_processes")),
}

# Fields that say which run it is, where its files are and what it tells, not what it computes.
_NOT_COMPUTED = (
    *("seed", "seeds", "seeds_mode", "run_dir", "resume", "overwrite", "data_dir"),
    *("log_every_steps", "checkpoint_every_steps", "profile", "wandb", "read_threads"),
    *("distributed", "coordinator", "process_id", "num_processes"),
)


def computed_fields(config: Config) -> dict[str, Any]:
    """The fields that say what a run computes, but for its seed."""
    return {k: v for k, v in config.to_json().items() if k not in _NOT_COMPUTED}


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
