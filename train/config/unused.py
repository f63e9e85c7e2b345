"""Which fields of a configuration have nothing to act on in it."""

from train.config import FIRST_PROFILED, FOLDER, Config

_STREAMED = "imagenet2012"
_OF_STREAMED = (
    *("image_size", "crop_fraction", "min_crop_area", "read_threads"),
    *("rand_augment", "rand_augment_magnitude"),
)
_WITH_SCIKIT = "digits"
_OF_MEMORY = ("crop_padding",)
_OF_DROPS = ("drop_steps", "drop_epochs", "drop_factor")
_OF_WARMUP = ("warmup", "warmup_learning_rate")
_OF_START = ("init_from", "init_layout")


def unused_fields(config: Config, usual: Config) -> list[str]:
    """What is said of each field that does nothing, and is not what is usual."""
    return [
        f"--{name.replace('_', '-')} {getattr(config, name)} is for {use}"
        for name, use in _idle(config).items()
        if getattr(config, name) not in (None, getattr(usual, name))
    ]


def _idle(config: Config) -> dict[str, str]:
    """What each field that does nothing would be for."""
    is_streamed = config.data == _STREAMED or config.data.startswith(FOLDER)
    names, kind = (
        (_OF_MEMORY, "images in memory") if is_streamed else (_OF_STREAMED, "streamed images")
    )
    idle = dict.fromkeys(names, f"{kind}, not for {config.data}")
    if config.data == _WITH_SCIKIT or config.data.startswith(FOLDER):
        idle["data_dir"] = f"data of tensorflow-datasets, not for {config.data}"
    if is_streamed and not config.rand_augment:
        idle["rand_augment_magnitude"] = "--rand-augment above 0"
    return idle | _idle_steps(config) | _idle_starts(config)


def _idle_steps(config: Config) -> dict[str, str]:
    idle: dict[str, str] = {}
    if config.schedule != "drops":
        idle |= dict.fromkeys(_OF_DROPS, f"--schedule drops, not for {config.schedule}")
    if not config.has_warmup:
        idle |= dict.fromkeys(_OF_WARMUP, "a warm-up, of --warmup-steps or --warmup-epochs above 0")
    if config.nesterov and not config.momentum:
        idle["nesterov"] = "--momentum above 0"
    return idle


def _idle_starts(config: Config) -> dict[str, str]:
    idle: dict[str, str] = {}
    if config.seeds is None:
        idle["seeds_mode"] = "the runs of --seeds"
    else:
        idle["seed"] = f"one run, not for those of --seeds {config.seeds}"
    if config.profile and config.max_steps is not None and config.max_steps < FIRST_PROFILED:
        least = f"{FIRST_PROFILED} steps or more"
        idle["profile"] = f"runs of {least}, not for --max-steps {config.max_steps}"
    if config.eval_only and config.resume:
        idle |= dict.fromkeys(_OF_START, "--eval-only without --resume, which tests the run's own")
    return idle
