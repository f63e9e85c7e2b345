"""The options of a run, section by section; each says all that is known of it at its own place."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from resnet_spec import BottleneckStride, PaddingKind, RunningVariance, ShortcutKind
from resnet_spec.preprocessing import Interpolation

Precision = Literal["bf16", "f32", "f64"]
TrainInterpolation = Literal["area", "bilinear", "bicubic"]
SeedsMode = Literal["auto", "vmap", "devices", "turns"]

DATASETS = ("digits", "cifar10", "cifar100", "imagenet2012")
FOLDER = "folder:"
# Of `preprocessing`; for each there is an option, too.
RESIZING = ("image_size", "crop_fraction", "interpolation")
MOST_STEPS = 2**31 - 1  # steps are counted in int32
FIRST_PROFILED, LAST_PROFILED = 10, 20  # steps after the start: compiled, and the queue is full


@dataclass(frozen=True)
class Option:
    """What is known of an option beside its type, default and help.

    Attributes:
        least, most: range of a number, or of each number of a tuple.
        fixed: the part of the value that a resumed run must keep; None if it may change.
        computes: whether the option changes what a run computes, apart from its seed.
        of_one_start: a resumed run does not inherit the value, but has the default.
        idle: for a configuration in which the option has no effect, what it is for; else False.
    """

    least: float = -math.inf
    most: float = math.inf
    fixed: Callable[[Any], Any] | None = None
    computes: bool = True
    of_one_start: bool = False
    idle: Callable[[Any], str | bool] = lambda config: False


Fixed = functools.partial(Option, fixed=lambda value: value)
Steps = functools.partial(Option, least=0, most=MOST_STEPS)


def is_streamed(config: Any) -> bool:
    """Whether images are decoded, cropped and resized as they are needed."""
    return config.data == "imagenet2012" or config.data.startswith(FOLDER)


def _not_streamed(config: Any) -> str | bool:
    return not is_streamed(config) and f"streamed images, not for {config.data}"


def _not_in_memory(config: Any) -> str | bool:
    return not _not_streamed(config) and f"images in memory, not for {config.data}"


def _not_of_tfds(config: Any) -> str | bool:
    is_other = config.data == "digits" or config.data.startswith(FOLDER)
    return is_other and f"data of tensorflow-datasets, not for {config.data}"


def _no_rand_augment(config: Any) -> str | bool:
    return _not_streamed(config) or (not config.rand_augment and "--rand-augment above 0")


def _no_momentum(config: Any) -> str | bool:
    return config.nesterov and not config.momentum and "--momentum above 0"


def _no_drops(config: Any) -> str | bool:
    return config.schedule != "drops" and f"--schedule drops, not for {config.schedule}"


def _no_warmup(config: Any) -> str | bool:
    return not config.has_warmup and "a warm-up, of --warmup-steps or --warmup-epochs above 0"


def _tests_a_run(config: Any) -> str | bool:
    use = "--eval-only without --resume, which tests the run's own"
    return config.eval_only and config.resume and use


def _too_short_to_profile(config: Any) -> str | bool:
    is_short = config.max_steps is not None and config.max_steps < FIRST_PROFILED
    use = f"runs of {FIRST_PROFILED} steps or more, not for --max-steps {config.max_steps}"
    return config.profile and is_short and use


def _compiles_nothing(config: Any) -> str | bool:
    return config.compile_for is None and "--compile-for"


def _several_seeds(config: Any) -> str | bool:
    return config.seeds is not None and f"one run, not for those of --seeds {config.seeds}"


def _one_seed(config: Any) -> str | bool:
    return config.seeds is None and "the runs of --seeds"


def _without_path(data: str) -> str:
    """A folder of images may move: its classes are compared."""
    return FOLDER if data.startswith(FOLDER) else data


@dataclass(frozen=True)
class ModelFields:
    """Which network, and where its first weights come from."""

    model: Annotated[str, Fixed()] = "ResNet20"
    """Full name in the table, such as PreActResNet110 or WideResNet28-10."""
    shortcut: Annotated[ShortcutKind, Fixed()] = "projection"
    """Option A, B or C of He et al. 2015, or a 3x3 convolution."""
    zero_init_residual: Annotated[bool, Fixed()] = False
    """Start every residual branch at zero (Goyal et al. 2017)."""
    stochastic_depth: Annotated[float, Fixed(least=0, most=1)] = 0.0
    """Drop the last block's residual branch with this probability, earlier ones with less, in
    proportion to their depth (Huang et al. 2016)."""
    padding: Annotated[PaddingKind, Fixed()] = "even"
    """Padding of strided convolutions and the max pool: torch's, or TensorFlow's SAME."""
    stem_padding: Annotated[PaddingKind, Fixed()] = "even"
    """Padding of the first convolution."""
    bottleneck_stride: Annotated[BottleneckStride, Fixed()] = "3x3"
    """Which convolution of a bottleneck has the stride."""
    running_variance: Annotated[RunningVariance, Fixed()] = "unbiased"
    """Variance that BatchNorm averages: unbiased as in torch, or biased as in Flax."""
    init_from: Annotated[Path | None, Fixed(idle=_tests_a_run)] = None
    """Start from the weights of this file or folder; a head of another size is initialised anew."""
    init_layout: Annotated[str | None, Fixed(idle=_tests_a_run)] = None
    """Layout of the names in that file, see `resnet-convert layouts`; default: recognised."""
    frozen_stages: Annotated[int | None, Fixed(least=0, most=4)] = None
    """Freeze the stem and this many stages, BatchNorm as in evaluation; 0 freezes the stem."""


@dataclass(frozen=True)
class DataFields:
    """Which images, and how they are cropped, augmented and mixed."""

    data: Annotated[str, Option(fixed=_without_path)] = "digits"
    """digits (of scikit-learn), cifar10, cifar100, imagenet2012, or folder:PATH, whose train/ and
    test/ (or val/) hold a folder of images for each class."""
    data_dir: Annotated[Path | None, Option(computes=False, idle=_not_of_tfds)] = None
    """Folder of tensorflow-datasets; default: TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    validation_size: Annotated[int | None, Fixed(least=1)] = None
    """Hold this many images out of the end of the training set, and test on them."""
    crop_padding: Annotated[int, Fixed(least=0, idle=_not_in_memory)] = 4
    """Pixels of padding for random crops of small images; 0 for no crops."""
    flip: Annotated[bool, Fixed()] = True
    """Mirror half of the training images."""
    cutout: Annotated[int, Fixed(least=0, idle=_not_in_memory)] = 0
    """Side of the square that is erased in each training image (DeVries & Taylor 2017); 0: none."""
    preprocessing: Annotated[str | None, Fixed()] = None
    """How images are normalised and resized: file (what the file of --init-from says; the default
    if it says something), a name such as imagenet, another file, or mean=...,std=..., optionally
    with size=, crop= and interpolation=, which may also follow a name. --image-size,
    --crop-fraction and --interpolation override these three; a recipe's values do not."""
    image_size: Annotated[int, Fixed(least=1, idle=_not_streamed)] = 224
    """Height and width to which streamed images (imagenet2012, folder) are cropped."""
    crop_fraction: Annotated[float, Fixed(least=0.01, most=1, idle=_not_streamed)] = 0.875
    """Share of a test image's shorter side in the central crop; streamed images only."""
    interpolation: Annotated[Interpolation, Fixed(idle=_not_streamed)] = "bilinear"
    """How a test image is resized, by Pillow; streamed images only."""
    min_crop_area: Annotated[float, Fixed(least=0.001, most=1, idle=_not_streamed)] = 0.08
    """Smallest share of an image's area in a random-resized crop; streamed images only."""
    train_interpolation: Annotated[TrainInterpolation, Fixed(idle=_not_streamed)] = "area"
    """How a training image is resized: to the mean over areas, or as torchvision does with Pillow,
    which is less sharp and slower; streamed images only."""
    rand_augment: Annotated[int, Fixed(least=0, most=16, idle=_not_streamed)] = 0
    """Operations of RandAugment on each training image (Cubuk et al. 2020); 0 for none."""
    rand_augment_magnitude: Annotated[float, Fixed(least=0, most=30, idle=_no_rand_augment)] = 9.0
    """Strength of these operations, from 0 to 30, as in the paper."""
    mixup: Annotated[float, Fixed(least=0)] = 0.0
    """The alpha of mixup (Zhang et al. 2018); 0 for none."""
    cutmix: Annotated[float, Fixed(least=0)] = 0.0
    """The alpha of CutMix (Yun et al. 2019), 0 for none; with both, each batch draws one."""
    label_smoothing: Annotated[float, Fixed(least=0, most=1)] = 0.0
    """Share of each label that is spread over all classes (Szegedy et al. 2016)."""
    read_threads: Annotated[int, Option(computes=False, least=1, most=1024, idle=_not_streamed)] = (
        16
    )
    """Threads that decode streamed images."""


@dataclass(frozen=True)
class OptimizerFields:
    """How long a run trains, and by which optimizer and schedule."""

    epochs: Annotated[int, Steps(least=1)] = 160
    """Passes over the training set."""
    max_steps: Annotated[int | None, Steps(least=1)] = None
    """Stop after this many steps, if --epochs are more."""
    global_batch_size: Annotated[int, Fixed(least=1, most=MOST_STEPS)] = 128
    """Images a step, over all devices of all processes."""
    accumulate_steps: Annotated[int, Fixed(least=1)] = 1
    """Compute each batch in this many parts, one after another to save memory, and average their
    gradients; BatchNorm normalises each part by itself."""
    batch_norm_images: Annotated[int | Literal["batch", "device"], Fixed(least=1)] = "batch"
    """Images that BatchNorm normalises together: a number, or fewer if the batch has fewer; batch:
    the whole batch, or a part of --accumulate-steps; device: as many as each device has when the
    run begins."""
    optimizer: Annotated[Literal["sgd", "lars"], Fixed()] = "sgd"
    """SGD with momentum, or LARS for very large batches (You et al. 2017)."""
    learning_rate: Annotated[float, Option(least=0)] = 0.1
    """Peak learning rate."""
    learning_rate_batch_size: Annotated[int | None, Option(least=1)] = None
    """Batch size that --learning-rate is for: the rate is scaled with the batch size (Goyal et al.
    2017). None: no scaling."""
    schedule: Literal["drops", "cosine"] = "drops"
    """Fall by --drop-factor at --drop-steps, or as half a cosine to zero at the last step."""
    drop_steps: Annotated[tuple[int, ...], Steps(idle=_no_drops)] = (32_000, 48_000)
    """Steps at which the learning rate falls."""
    drop_epochs: Annotated[tuple[float, ...] | None, Steps(idle=_no_drops)] = None
    """Epochs at which it falls, instead of --drop-steps."""
    drop_factor: Annotated[float, Option(least=0, idle=_no_drops)] = 0.1
    """Factor of the learning rate at each drop."""
    warmup: Annotated[Literal["constant", "linear"], Option(idle=_no_warmup)] = "constant"
    """Stay at --warmup-learning-rate, or rise from it to the peak."""
    warmup_steps: Annotated[int, Steps()] = 400
    """Steps of warm-up before the schedule's own rate."""
    warmup_epochs: Annotated[float | None, Steps()] = None
    """Epochs of warm-up, instead of --warmup-steps."""
    warmup_learning_rate: Annotated[float, Option(least=0, idle=_no_warmup)] = 0.01
    """Learning rate of the first step, or the peak if that is lower."""
    momentum: Annotated[float, Option(fixed=lambda momentum: momentum > 0, least=0)] = 0.9
    """Momentum of SGD, as in torch and optax."""
    nesterov: Annotated[bool, Option(idle=_no_momentum)] = False
    """Nesterov's momentum."""
    weight_decay: Annotated[float, Option(least=0)] = 1e-4
    """L2 decay of convolution and linear weights; never of BatchNorm or biases."""
    clip_norm: Annotated[float | None, Option(least=0)] = None
    """Scale gradients down to this global norm; None: never."""
    ema_decay: Annotated[
        float | None, Option(fixed=lambda decay: decay is not None, least=0, most=1)
    ] = None
    """Keep a moving average of parameters and statistics, with this weight of the old average at
    each step; it is tested and exported. None: no average."""
    skip_nonfinite: Annotated[int | None, Option(least=1)] = None
    """Skip up to this many steps whose loss or gradient is NaN or infinite; None: the first such
    step ends the run."""


@dataclass(frozen=True)
class DeviceFields:
    """Precision, devices and processes."""

    # bf16 has a state of float32, too
    precision: Annotated[Precision, Option(fixed=lambda precision: precision == "f64")] = "f32"
    """Precision of convolutions; all else is float32. f64 computes all in float64: slow, for
    comparisons."""
    scan_blocks: bool = False
    """Compile equal blocks once: for networks of more than about 100 layers."""
    remat: bool = False
    """Recompute blocks in the backward pass: less memory, more time."""
    parallel: Literal["pmap", "jit"] = "pmap"
    """Spread the batch by jax.pmap, or by jax.jit and sharding: the same step."""
    compile_for: Annotated[str | None, Option(computes=False, of_one_start=True)] = None
    """Only compile the run's steps for these TPUs, such as v5e:2x2, and print memory, time and
    traffic; needs no TPU."""
    json: Annotated[bool, Option(computes=False, of_one_start=True, idle=_compiles_nothing)] = False
    """Print what --compile-for finds as JSON."""
    compile_cache: Annotated[Path | None, Option(computes=False, of_one_start=True)] = None
    """Folder of compiled programs, which make the next start faster; none: keep none. Default:
    JAX_COMPILATION_CACHE_DIR, or ~/.cache/flax-resnet."""
    distributed: Annotated[bool, Option(computes=False, of_one_start=True)] = False
    """Join the other processes of a TPU pod, of Slurm or of Open MPI, which are found
    automatically."""
    coordinator: Annotated[str | None, Option(computes=False, of_one_start=True)] = None
    """host:port of process 0, where processes are not found automatically; with --process-id and
    --num-processes."""
    process_id: Annotated[int | None, Option(computes=False, of_one_start=True, least=0)] = None
    """Number of this process, from 0."""
    num_processes: Annotated[int | None, Option(computes=False, of_one_start=True, least=1)] = None
    """Number of processes."""


@dataclass(frozen=True)
class RunFields:
    """Which run, where its files are, and what it reports."""

    seed: Annotated[int, Fixed(computes=False, least=0, most=2**32 - 1, idle=_several_seeds)] = 111
    """Seed of initial weights, order of images and augmentation."""
    seeds: Annotated[str | None, Fixed(computes=False)] = None
    """Several runs at once: how many (111, 222, ...), or the seeds, separated by commas."""
    seeds_mode: Annotated[SeedsMode, Option(computes=False, idle=_one_seed)] = "auto"
    """Several runs in one program (vmap), one on each device, or in turn; auto measures."""
    run_dir: Annotated[Path | None, Option(computes=False)] = None
    """Folder of the run; default: runs/<model>-<data>-<date>-<time>."""
    resume: Annotated[bool, Option(computes=False)] = False
    """Continue from the newest good checkpoint in --run-dir."""
    overwrite: Annotated[bool, Option(computes=False, of_one_start=True)] = False
    """Delete the run that --run-dir holds, and start again."""
    eval_only: Annotated[bool, Option(of_one_start=True)] = False
    """Only test: the weights of --init-from, or with --resume those of --run-dir."""
    eval_every_epochs: Annotated[int, Option(least=1)] = 1
    """Test and save a checkpoint after this many epochs, and at the end."""
    checkpoint_every_steps: Annotated[int | None, Option(computes=False, least=1)] = None
    """Save a checkpoint after this many steps, too."""
    log_every_steps: Annotated[int, Option(computes=False, least=1)] = 100
    """Steps between two lines of metrics."""
    profile: Annotated[
        bool, Option(computes=False, of_one_start=True, idle=_too_short_to_profile)
    ] = False
    """Write a JAX profile of steps 10 to 20."""
    wandb: Annotated[str | None, Option(computes=False)] = None
    """Send metrics to this project of Weights & Biases, too."""


SECTIONS = {
    "model": ModelFields,
    "data": DataFields,
    "optimisation": OptimizerFields,
    "devices": DeviceFields,
    "run": RunFields,
}
