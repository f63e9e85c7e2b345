"""The fields of a run's configuration, section by section; every one is an option by its name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from resnet_spec import BottleneckStride, PaddingKind, RunningVariance, ShortcutKind

Precision = Literal["bf16", "f32", "f64"]
SeedsMode = Literal["auto", "vmap", "devices", "turns"]


@dataclass(frozen=True)
class ModelFields:
    """Which network, and where its first weights come from."""

    model: str = "ResNet20"
    """Full name in the table, such as PreActResNet110 or WideResNet28-10."""
    shortcut: ShortcutKind = "projection"
    """Option A, B or C of He et al. 2015, or a 3x3 convolution."""
    zero_init_residual: bool = False
    """Start every residual branch at zero (Goyal et al. 2017)."""
    stochastic_depth: float = 0.0
    """Drop the last block's residual branch with this probability, earlier ones with less, in
    proportion to their depth (Huang et al. 2016)."""
    padding: PaddingKind = "even"
    """Of strided convolutions and the max pool: torch's, or TensorFlow's SAME."""
    stem_padding: PaddingKind = "even"
    """The same of the first convolution."""
    bottleneck_stride: BottleneckStride = "3x3"
    """Which convolution of a bottleneck has the stride."""
    running_variance: RunningVariance = "unbiased"
    """What a batch adds to the running variance: unbiased as torch's, or biased as Flax's own."""
    init_from: Path | None = None
    """Start from the weights of this file or folder; a head of another size is drawn anew."""
    init_layout: str | None = None
    """Names in that file, as resnet-convert layouts lists them; by default they are recognised."""
    frozen_stages: int | None = None
    """Train neither the stem nor so many stages, their BatchNorm as in evaluation; 0: the stem."""


@dataclass(frozen=True)
class DataFields:
    """Which images, and what is done to them."""

    data: str = "digits"
    """digits (of scikit-learn), cifar10, cifar100, imagenet2012, or folder:PATH, whose train/ and
    test/ (or val/) hold a folder of images for each class."""
    data_dir: Path | None = None
    """Folder of tensorflow-datasets; by default the environment's TFDS_DATA_DIR."""
    validation_size: int | None = None
    """Hold this many images out of the end of the training set, and test on them."""
    crop_padding: int = 4
    """Pixels of padding for random crops of small images; 0 for none."""
    flip: bool = True
    """Mirror half of the training images."""
    image_size: int = 224
    """Height and width to which streamed images (imagenet2012, folder) are cropped."""
    crop_fraction: float = 0.875
    """Share of a test image's shorter side that the central crop shows, streamed images only."""
    min_crop_area: float = 0.08
    """Least share of an image's area in a random-resized crop, streamed images only."""
    rand_augment: int = 0
    """Operations of RandAugment on each training image (Cubuk et al. 2020); 0 for none."""
    rand_augment_magnitude: float = 9.0
    """Their strength, from 0 to 30, as in the paper."""
    mixup: float = 0.0
    """The alpha of mixup (Zhang et al. 2018), 0 for none."""
    cutmix: float = 0.0
    """The alpha of CutMix (Yun et al. 2019), 0 for none; with both, each batch draws one."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes (Szegedy et al. 2016)."""
    read_threads: int = 16
    """Threads that decode streamed images."""


@dataclass(frozen=True)
class OptimizerFields:
    """How long, and by which steps."""

    epochs: int = 160
    """Passes over the training set."""
    max_steps: int | None = None
    """Stop after this many steps at most; where `epochs` are fewer, these end the run."""
    global_batch_size: int = 128
    """Images a step, over all devices of all processes."""
    accumulate_steps: int = 1
    """Cut each batch into so many parts, one after another in memory, whose gradients are
    averaged; BatchNorm sees a part at a time."""
    optimizer: Literal["sgd", "lars"] = "sgd"
    """SGD with momentum, or LARS for very large batches (You et al. 2017)."""
    learning_rate: float = 0.1
    """Peak learning rate."""
    learning_rate_batch_size: int | None = None
    """The batch that `learning_rate` is meant for; it grows in proportion to the batch size (Goyal
    et al. 2017). None: it is taken as it is."""
    schedule: Literal["drops", "cosine"] = "drops"
    """Fall by `drop_factor` at `drop_steps`, or as half a cosine to zero at the last step."""
    drop_steps: tuple[int, ...] = (32_000, 48_000)
    """Steps at which the learning rate falls."""
    drop_epochs: tuple[float, ...] | None = None
    """The same in epochs, instead of `drop_steps`."""
    drop_factor: float = 0.1
    """What each drop multiplies the learning rate by."""
    warmup: Literal["constant", "linear"] = "constant"
    """Stay at `warmup_learning_rate`, or rise from it to the peak."""
    warmup_steps: int = 400
    """Steps of warm-up before the schedule's own rate."""
    warmup_epochs: float | None = None
    """The same in epochs, instead of `warmup_steps`."""
    warmup_learning_rate: float = 0.01
    """Learning rate of the first step; the peak, where that is lower."""
    momentum: float = 0.9
    """Momentum of SGD, in torch's and optax's sense."""
    nesterov: bool = False
    """Nesterov's momentum."""
    weight_decay: float = 1e-4
    """L2 decay of convolution and linear weights; never of BatchNorm or biases."""
    clip_norm: float | None = None
    """Scale gradients down to this norm, of all together; None for never."""
    ema_decay: float | None = None
    """Keep a moving average of parameters and statistics, with this weight of the old one at each
    step; it is tested and exported. None for none."""
    skip_nonfinite: int | None = None
    """Leave out up to so many steps of a run whose loss or gradient is NaN or infinite; None: the
    first one ends the run."""


@dataclass(frozen=True)
class DeviceFields:
    """On what it runs, and how."""

    precision: Precision = "f32"
    """Of the convolutions; all else is float32. f64 is all float64: slow, for comparisons."""
    scan_blocks: bool = False
    """Compile equal blocks once: for networks of more than about 100 layers."""
    remat: bool = False
    """Recompute blocks in the backward pass: less memory, more time."""
    parallel: Literal["pmap", "jit"] = "pmap"
    """Spread the batch by jax.pmap, or by jax.jit and sharding: the same step."""
    distributed: bool = False
    """Join the other processes of a TPU pod, of Slurm or of Open MPI, which tell who they are."""
    coordinator: str | None = None
    """host:port of process 0, where nothing tells; with `process_id` and `num_processes`."""
    process_id: int | None = None
    """Which process this is, from 0."""
    num_processes: int | None = None
    """How many there are."""


@dataclass(frozen=True)
class RunFields:
    """Which run, where its files are, and what it tells."""

    seed: int = 111
    """Of initial weights, order of images and augmentation."""
    seeds: str | None = None
    """Several runs at once: how many (111, 222, ...), or the seeds with commas between them."""
    seeds_mode: SeedsMode = "auto"
    """Several runs in one program (vmap), one on each device, or in turn; auto measures."""
    run_dir: Path | None = None
    """Folder of the run; by default runs/<model>-<data>-<date>-<time>."""
    resume: bool = False
    """Go on from the newest good checkpoint in `run_dir`."""
    overwrite: bool = False
    """Delete the run that `run_dir` holds."""
    eval_only: bool = False
    """Only test: the weights of `init_from`, or with `resume` those of `run_dir`."""
    eval_every_epochs: int = 1
    """Test error and checkpoint after so many epochs, and at the end."""
    checkpoint_every_steps: int | None = None
    """A checkpoint after so many steps, too."""
    log_every_steps: int = 100
    """Steps between two lines of metrics."""
    profile: bool = False
    """Write a JAX profile of steps 10 to 20."""
    wandb: str | None = None
    """Send metrics to this project of Weights & Biases, too."""
