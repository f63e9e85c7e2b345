"""A preprocessing that a user states: by a name, by a file that says it, or by its numbers."""

import dataclasses
from pathlib import Path
from typing import Any

from convert.errors import ConversionError
from convert.hub import is_address
from convert.sources import load_preprocessing
from resnet_spec import PREPROCESSINGS, Preprocessing, ResNetSpec, UnknownNameError
from resnet_spec.preprocessing import CIFAR10, IMAGENET, parse_preprocessing, unknown_key

HELP = (
    "a name, a file or folder that says it, or mean=0.49,0.48,0.45,std=0.2,0.2,0.2 with, if "
    "needed, size=, crop= and interpolation=, which may follow a name, too"
)


def stated_fields(text: str) -> dict[str, Any]:
    """The fields of `Preprocessing` that a text says, which are not all where it has numbers.

    Raises:
        ConversionError: the file says nothing, there are neither a name nor mean and deviation, or
            only one of these, or they are not in units of 0 to 1.
        ValueError: a number or a name is wrong. OSError: the file cannot be read.
    """
    name, fields = parse_preprocessing(text)
    for key in {"mean", "std"} & fields.keys():
        if not all(0 <= number <= 1 for number in fields[key]):
            raise ConversionError(
                f"{key} must be in units of 0 to 1, in {text!r}: divide values of 0 to 255 by 255"
            )
    if not name:
        if not {"mean", "std"} <= fields.keys():
            raise ConversionError(f"{text!r} must say mean= and std=, or begin with a name")
        return fields
    if len({"mean", "std"} & fields.keys()) == 1:
        raise ConversionError(f"{text!r} must say both mean= and std=, or none of them")
    if name in PREPROCESSINGS:
        return {**vars(PREPROCESSINGS[name]), **fields}
    if not is_address(name) and not Path(name).exists():
        if unknown := unknown_key(name):
            raise ConversionError(f"{unknown}, in {text!r}")
        raise UnknownNameError("preprocessing or file", name, PREPROCESSINGS)
    if (said := load_preprocessing(name)) is None:
        raise ConversionError(f"{name} does not say how its images were prepared")
    return {**vars(said), **fields}


def stated_preprocessing(text: str, network: ResNetSpec) -> tuple[Preprocessing, str]:
    """What a text says of this network's images, and a remark on what it leaves to assume.

    Raises: as `stated_fields`.
    """
    usual = CIFAR10 if network.small_images else IMAGENET
    fields = stated_fields(text)
    usual = dataclasses.replace(usual, class_names=None)
    found = Preprocessing(**{**vars(usual), **fields})
    if "image_size" in fields:
        return found, ""
    return found, (
        f"assumed: images of {found.image_size} pixels of {found.shorter_side}, "
        f"{found.interpolation} (--preprocessing ...,size=,crop=,interpolation= says it)"
    )
