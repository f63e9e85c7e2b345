"""timm's `pretrained_cfg`: how images are prepared, in a `config.json` of timm or transformers."""

from collections.abc import Iterator, Mapping
from typing import Any

from convert.errors import ConversionError
from resnet_spec import Preprocessing

KEY = "pretrained_cfg"
# timm's default values (`PretrainedCfg`).
_DEFAULTS = {
    "input_size": [3, 224, 224],
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "num_classes": 1000,
}


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a `config.json`, or that file itself, with timm's values of what is left out."""
    return {**_DEFAULTS, **config.get(KEY, config)}


def write_images(preprocessing: Preprocessing) -> dict[str, Any]:
    """How timm is told to prepare images."""
    size = preprocessing.image_size
    return {
        "input_size": [len(preprocessing.mean), size, size],
        "interpolation": preprocessing.interpolation,
        "crop_pct": preprocessing.crop_fraction,
        "crop_mode": "center",
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
    }


def read_images(
    pretrained: Mapping[str, Any], channels: int, class_names: tuple[str, ...] | None, file: str
) -> Preprocessing:
    """What timm does with images; a ConversionError lists what `Preprocessing` cannot express."""
    if problems := list(_unprepared(pretrained)):
        raise ConversionError(f"{file} prepares images in a way not supported here:", problems)
    mean, std = pretrained["mean"], pretrained["std"]
    return Preprocessing(
        mean=mean * channels if len(mean) == 1 else mean,  # timm repeats a single number
        std=std * channels if len(std) == 1 else std,
        image_size=pretrained["input_size"][1],
        class_names=class_names,
        interpolation=pretrained["interpolation"],
        crop_fraction=pretrained["crop_pct"],
    )


def _unprepared(pretrained: Mapping[str, Any]) -> Iterator[str]:
    if pretrained.get("label_offset"):
        yield f"label_offset is {pretrained['label_offset']!r}, here 0"
    _, height, width = pretrained["input_size"]
    if height != width:
        yield f"input_size: images of {height} by {width}, here squares"
    if pretrained["crop_mode"] != "center":
        yield f"crop_mode is {pretrained['crop_mode']!r}, here the square in the middle"
