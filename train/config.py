"""The configuration of one run; every field is an option of the command line."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from resnet_spec import (
    BottleneckStride,
    PaddingKind,
    RunningVariance,
    ShortcutKind,
    find_spec,
)
from train.errors import UserError


@dataclass(frozen=True)
class Config:
    """One training run."""

    model: str = "ResNet20"
    """Full name in the table, such as PreActResNet110 or WideResNet28-10."""
    shortcut: ShortcutKind = "projection"
    """Option A, B or C of He et al. 2015, or a 3x3 convolution."""
    zero_init_residual: bool = False
    """Start every residual branch at zero (Goyal et al. 2017)."""
    padding: PaddingKind = "even"
    """Of strided convolutions and the max pool: torch's, or TensorFlow's SAME."""
    stem_padding: PaddingKind = "even"
    """The same of the first convolution."""
    bottleneck_stride: BottleneckStride = "3x3"
    """Which convolution of a bottleneck has the stride."""
    running_variance: RunningVariance = "unbiased"
    """What a batch adds to the running variance: unbiased as torch's, or biased as Flax's own."""

    data: Literal["digits", "cifar10", "cifar100"] = "digits"
    """Data set; digits ships with scikit-learn, the others are read from `data_dir`."""
    data_dir: Path | None = None
    """Folder of tensorflow-datasets; by default the environment's TFDS_DATA_DIR."""
    validation_size: int | None = None
    """Hold this many images out of the end of the training set, and test on them."""
    crop_padding: int = 4
    """Pixels of padding for random crops; 0 for none."""
    flip: bool = True
    """Mirror half of the training images."""

    epochs: int = 160
    """Passes over the training set."""
    max_steps: int | None = None
    """Stop after this many steps, whatever the epochs."""
    global_batch_size: int = 128
    """Images a step, over all devices."""
    learning_rate: float = 0.1
    """Peak learning rate."""
    schedule: Literal["drops", "cosine"] = "drops"
    """Fall by `drop_factor` at `drop_steps`, or as half a cosine to zero at the last step."""
    drop_steps: tuple[int, ...] = (32_000, 48_000)
    """Steps at which the learning rate falls."""
    drop_factor: float = 0.1
    """What each drop multiplies the learning rate by."""
    warmup_steps: int = 400
    """Steps at `warmup_learning_rate` before the schedule's own rate."""
    warmup_learning_rate: float = 0.01
    """Constant learning rate of the first steps."""
    momentum: float = 0.9
    """Momentum of SGD, in torch's and optax's sense."""
    nesterov: bool = False
    """Nesterov's momentum."""
    weight_decay: float = 1e-4
    """L2 decay of convolution and linear weights; never of BatchNorm or biases."""
    ema_decay: float | None = None
    """Keep a moving average of parameters and statistics, with this weight of the old one at each
    step; it is tested and exported. None for none."""

    precision: Literal["bf16", "f32", "f64"] = "f32"
    """Of the convolutions; all else is float32. f64 is all float64: slow, for comparisons."""
    scan_blocks: bool = False
    """Compile equal blocks once: for very deep networks on TPU and GPU; slow on CPU."""
    remat: bool = False
    """Recompute blocks in the backward pass: less memory, more time."""

    seed: int = 111
    """Of initial weights, order of images and augmentation."""
    run_dir: Path | None = None
    """Folder of the run; by default runs/<recipe>-<date>-<time>."""
    resume: bool = False
    """Go on from the newest checkpoint in `run_dir`."""
    overwrite: bool = False
    """Delete the run that `run_dir` holds."""
    eval_every_epochs: int = 1
    """Test error and checkpoint after so many epochs, and at the end."""
    log_every_steps: int = 100
    """Steps between two lines of metrics."""

    def __post_init__(self) -> None:
        problems = [
            f"--{name.replace('_', '-')} cannot be {getattr(self, name)!r}"
            for name, hint in get_type_hints(type(self)).items()
            if not _is_of(getattr(self, name), hint)
        ]
        if problems:
            raise UserError("; ".join(problems))
        problems = [
            f"--{name.replace('_', '-')} must be at least {least}, not {value}"
            for name, least in _LEAST.items()
            if (value := getattr(self, name)) is not None and not value >= least  # nor NaN
        ]
        if self.ema_decay is not None and self.ema_decay >= 1:
            problems.append(f"--ema-decay must be below 1, not {self.ema_decay}")
        if self.resume and self.overwrite:
            problems.append("--resume and --overwrite exclude each other")
        if self.resume and self.run_dir is None:
            problems.append("--resume needs --run-dir, the folder of the run to go on with")
        if self.seed >= 2**32:
            problems.append(f"--seed must be below 2**32, not {self.seed}")
        if sorted(set(self.drop_steps)) != list(self.drop_steps):
            problems.append(f"--drop-steps must rise, not {self.drop_steps}")
        try:
            find_spec(self.model)
        except ValueError as error:
            problems.append(str(error))
        if problems:
            raise UserError("; ".join(problems))

    def to_json(self) -> dict[str, Any]:
        """The fields as values that `json.dumps` takes."""
        fields = dataclasses.asdict(self)
        return {k: str(v) if isinstance(v, Path) else v for k, v in fields.items()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Config":
        """The inverse of `to_json`.

        Raises:
            UserError: a field is unknown or out of its range.
        """
        try:
            paths = {k: Path(fields[k]) for k in ("data_dir", "run_dir") if fields[k] is not None}
            return cls(**{**fields, **paths, "drop_steps": tuple(fields["drop_steps"])})
        except (TypeError, KeyError) as error:
            raise UserError(f"a saved configuration does not fit this version: {error}") from error


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


_LEAST = {
    "validation_size": 1,
    "crop_padding": 0,
    "epochs": 1,
    "max_steps": 1,
    "global_batch_size": 1,
    "learning_rate": 0,
    "drop_factor": 0,
    "warmup_steps": 0,
    "warmup_learning_rate": 0,
    "momentum": 0,
    "weight_decay": 0,
    "ema_decay": 0,
    "seed": 0,
    "eval_every_epochs": 1,
    "log_every_steps": 1,
}
