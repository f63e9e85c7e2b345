"""The configuration of a run: checked as a whole, and compared with that of a resumed run."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from resnet_spec import ResNetSpec, configured_spec
from resnet_spec.preprocessing import as_text, parse_preprocessing
from train.config.fields import (
    DATASETS,
    FOLDER,
    RESIZING,
    DataFields,
    DeviceFields,
    ModelFields,
    OptimizerFields,
    Option,
    RunFields,
    is_streamed,
)
from train.errors import UserError

_MANY_SEEDS = 100  # a larger number is a seed that was meant for --seed


# Python lists the last base's fields first: the sections are in the order of `train.config.fields`.
@dataclass(frozen=True)
class Config(RunFields, DeviceFields, OptimizerFields, DataFields, ModelFields):
    """One training run, or one for each of `seeds`; a UserError lists all values that are wrong."""

    def __post_init__(self) -> None:
        if problems := _wrong_types(self):
            raise UserError("; ".join(problems))
        if problems := [*_wrong_numbers(self), *_wrong_choices(self)]:
            raise UserError("; ".join(problems))

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds of all runs."""
        return (self.seed,) if self.seeds is None else _parse_seeds(self.seeds)

    def network(self, in_planes: int = 3) -> ResNetSpec:
        """The network for images of `in_planes` channels; ValueError if there is none."""
        return configured_spec(vars(self), in_planes)

    @property
    def part_size(self) -> int:
        """Images that are computed at once, over all devices: a batch, or one of its parts."""
        return self.global_batch_size // self.accumulate_steps

    @property
    def peak_learning_rate(self) -> float:
        """The peak for this batch size."""
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
        # with a small batch or a lowered rate the peak may be below a recipe's warm-up rate
        changes["warmup_learning_rate"] = min(self.warmup_learning_rate, self.peak_learning_rate)
        return dataclasses.replace(self, **changes)

    def _drop_steps(self, epochs: tuple[float, ...], steps_per_epoch: float) -> tuple[int, ...]:
        steps = tuple(round(epoch * steps_per_epoch) for epoch in epochs)
        if len(set(steps)) < len(steps):
            raise UserError(
                f"--drop-epochs {epochs} are the steps {steps} ({steps_per_epoch:.4g} an epoch): "
                "two of them are the same"
            )
        return steps

    def to_json(self) -> dict[str, Any]:
        """The fields as values for `json.dumps`."""
        fields = dataclasses.asdict(self)
        return {k: str(v) if isinstance(v, Path) else v for k, v in fields.items()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Config":
        """The inverse of `to_json`, with defaults for missing fields; UserError if one is wrong."""
        hints = get_type_hints(cls)
        try:
            config = cls(
                **{name: _from_json(value, hints.get(name)) for name, value in fields.items()}
            )
            return _resized_once(config)
        except (TypeError, AttributeError) as error:
            raise UserError(f"a saved configuration does not fit this version: {error}") from error


OPTIONS = {  # by field: what its annotation says beside the type
    name: next(iter(getattr(hint, "__metadata__", ())), Option())
    for name, hint in get_type_hints(Config, include_extras=True).items()
}
# A resumed run says anew where it runs.
OF_ONE_START: dict[str, Any] = {
    name: getattr(Config, name) for name, option in OPTIONS.items() if option.of_one_start
}


def flag(name: str) -> str:
    """`learning_rate` -> `--learning-rate`."""
    return f"--{name.replace('_', '-')}"


def computed_fields(config: Config) -> dict[str, Any]:
    """The fields that say what a run computes, without its seed, as JSON values."""
    return {name: value for name, value in config.to_json().items() if OPTIONS[name].computes}


def unused_fields(config: Config, usual: Config) -> list[str]:
    """A message for each option that has no effect but differs from `usual`."""
    return [
        f"{flag(name)} {getattr(config, name)} is for {use}"
        for name, option in OPTIONS.items()
        if (use := option.idle(config))
        and getattr(config, name) not in (None, getattr(usual, name))
    ]


def check_resumable(saved: Config, now: Config) -> None:
    """Raises a UserError that lists all fields that changed but must not in a resumed run."""
    changed = [
        f"{flag(name)} {getattr(now, name)}, the run began with {getattr(saved, name)}"
        for name, option in OPTIONS.items()
        if option.fixed is not None
        and option.fixed(getattr(saved, name)) != option.fixed(getattr(now, name))
    ]
    if changed:
        raise UserError(
            "\n  ".join([f"--resume: {len(changed)} fields cannot change in a run:", *changed])
            + f"\nleave them out to go on, or start another run from its weights: "
            f"--init-from {now.run_dir} with a new --run-dir"
        )


def _resized_once(config: Config) -> Config:
    """Older versions kept size, crop and interpolation of streamed images in `preprocessing`, too.

    There they counted more than an option that had its default.
    """
    if config.preprocessing is None or not is_streamed(config):
        return config
    place, fields = parse_preprocessing(config.preprocessing)
    if place or fields.keys().isdisjoint(RESIZING):
        return config
    changes = {
        name: fields.pop(name)
        for name in RESIZING
        if name in fields and getattr(config, name) == getattr(Config, name)
    }
    numbers = {name: value for name, value in fields.items() if name not in RESIZING}
    return dataclasses.replace(config, preprocessing=as_text(numbers), **changes)


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


def _wrong_types(config: Config) -> list[str]:
    return [
        f"{flag(name)} cannot be {getattr(config, name)!r}"
        for name, hint in get_type_hints(type(config)).items()
        if not _is_of(getattr(config, name), hint)
    ]


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value fits a field's annotation; an int is a float, too, but a bool is no int."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return any(_is_of(value, choice) for choice in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_is_of(v, get_args(hint)[0]) for v in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)


def _wrong_numbers(config: Config) -> list[str]:
    problems = [
        f"{flag(name)} must {problem}, not {getattr(config, name)}"
        for name, option in OPTIONS.items()
        if (problem := _out_of_range(getattr(config, name), option))
    ]
    if config.ema_decay is not None and config.ema_decay >= 1:
        problems.append(f"--ema-decay must be below 1, not {config.ema_decay}")
    if config.clip_norm == 0:
        problems.append("--clip-norm must be above 0, not 0: leave it out for none")
    parts = config.accumulate_steps
    if parts >= 1 and config.global_batch_size % parts:
        problems.append(
            f"--global-batch-size {config.global_batch_size} does not divide by "
            f"--accumulate-steps {parts}"
        )
    elif parts >= 1:
        problems += _wrong_groups(config)
    return problems


def _wrong_groups(config: Config) -> list[str]:
    size, images = config.part_size, config.batch_norm_images
    if not isinstance(images, int) or images < 1 or not size % min(images, size):
        return []
    batch = "a batch" if config.accumulate_steps == 1 else "each part of a batch"
    near = max(number for number in range(1, images) if not size % number)
    return [
        f"--batch-norm-images {images} does not divide the {size} images of {batch}: {near} or "
        "batch does"
    ]


def _out_of_range(value: Any, option: Option) -> str:
    """What a number, or each of a tuple of steps or epochs, must be and is not; else nothing."""
    least, most = option.least, option.most
    if isinstance(value, tuple):
        if not all(least <= number <= most for number in value):  # nor NaN
            return f"be from {least} to {most}"
        return "" if sorted(set(value)) == list(value) else "rise"
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return ""
    if not value >= least:  # nor NaN
        return f"be at least {least}"
    if not value <= most:
        return f"be at most {most}"
    return "be finite" if math.isinf(value) else ""


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
    if config.compile_for is not None and (config.eval_only or config.seeds is not None):
        problems.append("--compile-for is for one run that trains: no --eval-only, no --seeds")
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
        problems.append(f"--seeds: {config.seeds} names a seed twice")
    elif min(seeds) < 0 or max(seeds) >= 2**32:
        problems.append(f"--seeds: from 0 to 2**32 - 1, not {config.seeds}")
    return problems
