"""Which fields of a configuration have nothing to act on in it."""

from train.config import FOLDER, Config

_STREAMED = "imagenet2012"
_OF_STREAMED = (
    *("image_size", "crop_fraction", "min_crop_area"),
    *("rand_augment", "rand_augment_magnitude"),
)
_OF_MEMORY = ("crop_padding",)
_OF_DROPS = ("drop_steps", "drop_epochs", "drop_factor")


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
    if config.schedule != "drops":
        idle |= dict.fromkeys(_OF_DROPS, f"--schedule drops, not for {config.schedule}")
    return idle
