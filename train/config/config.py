"""The configuration of one run: its fields, checked."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from resnet_spec import ResNetSpec, configured_spec
from train.config.fields import DataFields, DeviceFields, ModelFields, OptimizerFields, RunFields
from train.errors import UserError

DATASETS = ("digits", "cifar10", "cifar100", "imagenet2012")
FOLDER = "folder:"
MOST_STEPS = 2**31 - 1  # steps are counted in int32
FIRST_PROFILED, LAST_PROFILED = 10, 20  # steps after the start: compiled, the queue full
_MANY_SEEDS = 100  # more is a seed that was meant for --seed


# The bases' fields come last base first: so the sections stand as in `train.config.fields`.
@dataclass(frozen=True)
class Config(RunFields, DeviceFields, OptimizerFields, DataFields, ModelFields):
    """One training run, or one for each of `seeds`."""

    def __post_init__(self) -> None:
        if problems := list(_wrong_kinds(self)):
            raise UserError("; ".join(problems))
        if problems := [*_wrong_numbers(self), *_wrong_choices(self)]:
            raise UserError("; ".join(problems))

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds of all runs."""
        return (self.seed,) if self.seeds is None else _parse_seeds(self.seeds)

    def network(self, in_planes: int = 3) -> ResNetSpec:
        """The network, for images of so many channels.

        Raises:
            ValueError: the model is unknown, or has no such network.
        """
        return configured_spec(vars(self), in_planes)

    @property
    def peak_learning_rate(self) -> float:
        """That of this batch size."""
        if self.learning_rate_batch_size is None:
            return self.learning_rate
        return self.learning_rate * self.global_batch_size / self.learning_rate_batch_size

    @property
    def has_warmup(self) -> bool:
        return bool(self.warmup_steps if self.warmup_epochs is None else self.warmup_epochs)

    def resolved(self, train_images: int) -> "Config":
        """The same with every number in steps, and the learning rate of this batch size."""
        steps_per_epoch = train_images / self.global_batch_size
        changes: dict[str, Any] = {}
        if self.drop_epochs is not None:
            changes["drop_epochs"] = None
            if self.schedule == "drops" and not self.eval_only:
                changes["drop_steps"] = self._drop_steps(self.drop_epochs, steps_per_epoch)
        if self.warmup_epochs is not None:
            steps = round(self.warmup_epochs * steps_per_epoch)
            changes |= {"warmup_epochs": None, "warmup_steps": steps}
        if self.learning_rate_batch_size is not None:
            changes |= {"learning_rate_batch_size": None, "learning_rate": self.peak_learning_rate}
        # of a small batch or a lowered rate the peak may fall below what a recipe leads to it by
        changes["warmup_learning_rate"] = min(self.warmup_learning_rate, self.peak_learning_rate)
        return dataclasses.replace(self, **changes)

    def _drop_steps(self, epochs: tuple[float, ...], steps_per_epoch: float) -> tuple[int, ...]:
        steps = tuple(round(epoch * steps_per_epoch) for epoch in epochs)
        if len(set(steps)) < len(steps):
            raise UserError(
                f"--drop-epochs {epochs} are the steps {steps}, of {steps_per_epoch:.4g} an epoch: "
                "two of them are one"
            )
        return steps

    def to_json(self) -> dict[str, Any]:
        """The fields as values that `json.dumps` takes."""
        fields = dataclasses.asdict(self)
        return {k: str(v) if isinstance(v, Path) else v for k, v in fields.items()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Config":
        """The inverse of `to_json`; a field that an older version did not have is the default.

        Raises:
            UserError: a field is unknown or out of its range.
        """
        hints = get_type_hints(cls)
        try:
            return cls(
                **{name: _from_json(value, hints.get(name)) for name, value in fields.items()}
            )
        except (TypeError, AttributeError) as error:
            raise UserError(f"a saved configuration does not fit this version: {error}") from error


def _from_json(value: Any, hint: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, str) and Path in get_args(hint):
        return Path(value)
    return value


def _parse_seeds(text: str) -> tuple[int, ...]:
    """`5` -> (111, 222, 333, 444, 555), the seeds of torch-resnet's table; `1,7` -> (1, 7)."""
    numbers = tuple(int(part) for part in text.split(","))
    if len(numbers) == 1 and "," not in text:
        return tuple(111 * number for number in range(1, min(numbers[0], _MANY_SEEDS + 1) + 1))
    return numbers


def _wrong_kinds(config: Config) -> list[str]:
    return [
        f"--{name.replace('_', '-')} cannot be {getattr(config, name)!r}"
        for name, hint in get_type_hints(type(config)).items()
        if not _is_of(getattr(config, name), hint)
    ]


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value is of the kind that a field's annotation says; an int is a float, too."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is UnionType:
        return any(_is_of(value, option) for option in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_is_of(v, get_args(hint)[0]) for v in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)


def _wrong_numbers(config: Config) -> list[str]:
    problems = []
    for name, (least, most) in _RANGES.items():
        value, option = getattr(config, name), f"--{name.replace('_', '-')}"
        if value is None:
            continue
        if not value >= least:  # nor NaN
            problems.append(f"{option} must be at least {least}, not {value}")
        elif not value <= most:
            problems.append(f"{option} must be at most {most}, not {value}")
        elif math.isinf(value):
            problems.append(f"{option} must be finite, not {value}")
    if config.ema_decay is not None and config.ema_decay >= 1:
        problems.append(f"--ema-decay must be below 1, not {config.ema_decay}")
    if config.clip_norm == 0:
        problems.append("--clip-norm must be above 0, not 0: leave it out for none")
    for name in ("drop_steps", "drop_epochs"):
        drops = getattr(config, name)
        if drops is None:
            continue
        if sorted(set(drops)) != list(drops):
            problems.append(f"--{name.replace('_', '-')} must rise, not {drops}")
        if not all(0 <= drop <= MOST_STEPS for drop in drops):  # nor NaN
            problems.append(
                f"--{name.replace('_', '-')} must be from 0 to {MOST_STEPS}, not {drops}"
            )
    parts = config.accumulate_steps
    if parts >= 1 and config.global_batch_size % parts:
        problems.append(
            f"--global-batch-size {config.global_batch_size} does not divide by "
            f"--accumulate-steps {parts}"
        )
    return problems


def _wrong_choices(config: Config) -> list[str]:
    problems = [*_wrong_seeds(config)]
    if config.data not in DATASETS and not config.data.startswith(FOLDER):
        problems.append(f"--data is one of {', '.join(DATASETS)}, folder:PATH; not {config.data!r}")
    if config.resume and config.overwrite:
        problems.append("--resume and --overwrite exclude each other")
    if config.resume and config.run_dir is None:
        problems.append("--resume needs --run-dir, the folder of the run to go on with")
    if config.init_layout is not None and config.init_from is None:
        problems.append("--init-layout is for the file of --init-from: name it")
    if config.eval_only and not config.resume and config.init_from is None:
        problems.append("--eval-only needs weights: --init-from FILE, or --resume --run-dir FOLDER")
    by_hand = [config.coordinator, config.process_id, config.num_processes]
    if any(value is not None for value in by_hand):
        if None in by_hand or not config.distributed:
            problems.append(
                "--distributed, --coordinator, --process-id and --num-processes go together"
            )
        elif (config.process_id or 0) >= (config.num_processes or 0):
            problems.append(f"--process-id must be below {config.num_processes}")
    try:
        config.network()
    except ValueError as error:
        problems.append(str(error))
    return problems


def _wrong_seeds(config: Config) -> list[str]:
    if config.seeds is None:
        return []
    try:
        seeds = config.seed_list
    except ValueError:
        return [f"--seeds is a number, or seeds with commas between them, not {config.seeds!r}"]
    problems = []
    if not seeds or len(seeds) > _MANY_SEEDS:
        problems.append(
            f"--seeds: from 1 to {_MANY_SEEDS} runs, not {config.seeds}; one seed is --seed"
        )
    elif len(set(seeds)) < len(seeds):
        problems.append(f"--seeds: one is there twice in {config.seeds}")
    elif min(seeds) < 0 or max(seeds) >= 2**32:
        problems.append(f"--seeds: from 0 to 2**32 - 1, not {config.seeds}")
    return problems


_RANGES: dict[str, tuple[float, float]] = {
    "stochastic_depth": (0, 1),
    "frozen_stages": (0, 4),
    "validation_size": (1, math.inf),
    "crop_padding": (0, math.inf),
    "image_size": (1, math.inf),
    "crop_fraction": (0.01, 1),
    "min_crop_area": (0.001, 1),
    "rand_augment": (0, 16),
    "rand_augment_magnitude": (0, 30),
    "mixup": (0, math.inf),
    "cutmix": (0, math.inf),
    "label_smoothing": (0, 1),
    "read_threads": (1, 1024),
    "epochs": (1, MOST_STEPS),
    "max_steps": (1, MOST_STEPS),
    "global_batch_size": (1, MOST_STEPS),
    "accumulate_steps": (1, math.inf),
    "learning_rate": (0, math.inf),
    "learning_rate_batch_size": (1, math.inf),
    "drop_factor": (0, math.inf),
    "warmup_steps": (0, MOST_STEPS),
    "warmup_epochs": (0, MOST_STEPS),
    "warmup_learning_rate": (0, math.inf),
    "momentum": (0, math.inf),
    "weight_decay": (0, math.inf),
    "clip_norm": (0, math.inf),
    "ema_decay": (0, 1),
    "skip_nonfinite": (1, math.inf),
    "process_id": (0, math.inf),
    "num_processes": (1, math.inf),
    "seed": (0, 2**32 - 1),
    "eval_every_epochs": (1, math.inf),
    "checkpoint_every_steps": (1, math.inf),
    "log_every_steps": (1, math.inf),
}
