"""Which fields of a configuration its data set has no use for."""

from train.config import FOLDER, Config

_STREAMED = "imagenet2012"
_OF_STREAMED = (
    *("image_size", "crop_fraction", "min_crop_area"),
    *("rand_augment", "rand_augment_magnitude"),
)
_OF_MEMORY = ("crop_padding",)


def unused_fields(config: Config, usual: Config) -> list[str]:
    """What is said of each field that does nothing, and is not what is usual."""
    is_streamed = config.data == _STREAMED or config.data.startswith(FOLDER)
    names, kind = (
        (_OF_MEMORY, "images in memory") if is_streamed else (_OF_STREAMED, "streamed images")
    )
    return [
        f"--{name.replace('_', '-')} {getattr(config, name)} is for {kind}, not for {config.data}"
        for name in names
        if getattr(config, name) != getattr(usual, name)
    ]
