"""What is done to an image before a network sees it: carried with the weights, never guessed."""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from resnet_spec.classifier import ClassifierSpec
from resnet_spec.spec import is_positive_integer

Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]


@dataclass(frozen=True)
class Preprocessing:
    """From a picture to the network's input.

    The picture is resized so that its shorter side is `image_size / crop_fraction`, rounded down;
    the square of `image_size` in its middle is kept; its channels, red, green and blue with values
    in 0 to 1, are normalised as `(value - mean) / std`.

    Attributes:
        mean, std: one number for each channel, in units of 0 to 1.
        image_size: height and width in pixels.
        class_names: what the logits stand for, in their order; None where unknown.
        interpolation: how a picture of another size is resized.
        crop_fraction: side of the kept square over the shorter side of the resized picture.

    Raises:
        ValueError: any field is out of its range; the message names all of them.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    class_names: tuple[str, ...] | None = None
    interpolation: Interpolation = "bilinear"
    crop_fraction: float = 1.0

    def __post_init__(self) -> None:
        problems = self._problems()
        if problems:
            raise ValueError("; ".join(problems))
        for name in ("mean", "std"):  # NumPy's numbers and lists to Python's and tuples
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        object.__setattr__(self, "image_size", int(self.image_size))
        object.__setattr__(self, "crop_fraction", float(self.crop_fraction))
        if self.class_names is not None:
            object.__setattr__(self, "class_names", tuple(self.class_names))

    def _problems(self) -> list[str]:
        problems = [
            f"{name} must be a list of finite numbers, not {values!r}"
            for name, values in (("mean", self.mean), ("std", self.std))
            if not (_is_list(values) and values and all(map(_is_finite, values)))
        ]
        if not problems and len(self.mean) != len(self.std):
            problems.append(f"mean has {len(self.mean)} channels, std {len(self.std)}")
        if not problems and not all(float(value) > 0 for value in self.std):
            problems.append(f"std must be positive, not {self.std!r}")
        if not is_positive_integer(self.image_size):
            problems.append(f"image_size must be a positive integer, not {self.image_size!r}")
        names = self.class_names
        if names is not None and not (_is_list(names) and all(isinstance(n, str) for n in names)):
            problems.append("class_names must be a list of strings, or None")
        if self.interpolation not in get_args(Interpolation):
            known = ", ".join(get_args(Interpolation))
            problems.append(f"interpolation is one of {known}, not {self.interpolation!r}")
        if not _is_finite(self.crop_fraction) or not 0 < self.crop_fraction <= 1:
            problems.append(f"crop_fraction must be in (0, 1], not {self.crop_fraction!r}")
        return problems

    @property
    def shorter_side(self) -> int:
        """Of the resized picture, in pixels."""
        return int(self.image_size / self.crop_fraction)

    def check(self, classifier: ClassifierSpec) -> None:
        """Raises a ValueError where this cannot be the preprocessing of such a model."""
        problems = []
        channels, classes = classifier.network.in_planes, classifier.num_classes
        if len(self.mean) != channels:
            problems.append(f"mean and std have {len(self.mean)} channels, the model {channels}")
        if self.class_names is not None and len(self.class_names) != classes:
            problems.append(f"{len(self.class_names)} class names for a head of {classes}")
        if problems:
            raise ValueError("; ".join(problems))

    def to_json(self) -> dict[str, Any]:
        """The fields as values that `json.dumps` takes, and keeps to the last bit."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Preprocessing":
        """The inverse of `to_json`.

        Raises:
            ValueError: a field is unknown, missing or out of its range.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, Mapping) or set(fields) != names:
            raise ValueError(f"a preprocessing has the fields {', '.join(sorted(names))}")
        return cls(**fields)


def crop_fraction_of(image_size: int, shorter_side: int) -> float:
    """The fraction for which `Preprocessing.shorter_side` is exactly this many pixels.

    The quotient itself may lose one of them: 192 / (192 / 225) is just below 225.
    """
    fraction = image_size / shorter_side
    while int(image_size / fraction) < shorter_side:
        fraction = math.nextafter(fraction, 0)
    return fraction


# What `parse_preprocessing` calls the fields.
_KEYS = {
    "mean": "mean",
    "std": "std",
    "size": "image_size",
    "crop": "crop_fraction",
    "interpolation": "interpolation",
}


def parse_preprocessing(text: str) -> tuple[str, dict[str, Any]]:
    """`imagenet,size=160` -> ("imagenet", {"image_size": 160}): a name, and what differs from it.

    `mean=0.5,0.5,0.5,std=0.2,0.2,0.2` has no name. The keys are `mean`, `std`, `size`, `crop` and
    `interpolation`; spaces around numbers and keys do not count.

    Raises:
        ValueError: a value is not what its key needs, or a key is unknown or there twice.
    """
    name, *rest = re.split(rf"(?:^|,)\s*({'|'.join(_KEYS)})\s*=", text.strip())
    keys, values = rest[::2], rest[1::2]
    fields = {_KEYS[key]: _value(key, value, text) for key, value in zip(keys, values, strict=True)}
    if twice := [f"{key}=" for key in _KEYS if keys.count(key) > 1]:
        raise ValueError(f"{', '.join(twice)} is there twice, in {text!r}")
    return name, fields


def _value(key: str, value: str, text: str) -> Any:
    if unknown := unknown_key(value):
        raise ValueError(f"{unknown}, in {text!r}")
    try:
        if key in ("mean", "std"):
            return tuple(map(float, value.split(",")))
        return {"size": int, "crop": float}.get(key, str.strip)(value)
    except ValueError as error:
        kinds = {"size": "a whole number of pixels", "crop": "a number"}
        wanted = kinds.get(key, "numbers with commas between them")
        raise ValueError(f"{key} must be {wanted}, not {value!r}, in {text!r}") from error


def unknown_key(text: str) -> str:
    """What is wrong with `...,key=...` where the key is none of ours; empty without such a key."""
    found = re.search(r",\s*(\w+)\s*=", text)
    return f"there is no {found[1]}=, but {', '.join(f'{k}=' for k in _KEYS)}" if found else ""


def as_text(fields: Mapping[str, Any]) -> str:
    """The inverse of `parse_preprocessing` for fields without a name, to the last bit."""
    texts = {
        key: ",".join(map(repr, value)) if isinstance(value, tuple) else str(value)
        for key, field in _KEYS.items()
        if (value := fields.get(field)) is not None
    }
    return ",".join(f"{key}={value}" for key, value in texts.items())


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_finite(value: Any) -> bool:
    try:
        return not isinstance(value, bool | str) and math.isfinite(value)
    except (TypeError, OverflowError):  # not a number, or an integer larger than any float
        return False


# Channel means and deviations of the ImageNet training set, and 256 pixels cut to 224, as in
# https://github.com/pytorch/examples/tree/main/imagenet (main.py) and torchvision's ResNets.
IMAGENET = Preprocessing(
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), image_size=224, crop_fraction=0.875
)
# Over the 50,000 training images; the names of batches.meta, Krizhevsky 2009.
CIFAR10 = Preprocessing(
    mean=(0.49140, 0.48216, 0.44653),
    std=(0.24703, 0.24349, 0.26159),
    image_size=32,
    class_names=(
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
)
# Over the 50,000 training images of CIFAR-100.
CIFAR100 = Preprocessing(
    mean=(0.50707, 0.48655, 0.44092), std=(0.26733, 0.25644, 0.27615), image_size=32
)
# https://github.com/akamaster/pytorch_resnet_cifar10 (trainer.py) normalises CIFAR-10 with
# ImageNet's numbers; its weights need the same.
AKAMASTER_CIFAR10 = dataclasses.replace(CIFAR10, mean=IMAGENET.mean, std=IMAGENET.std)

# https://github.com/kuangliu/pytorch-cifar (main.py): the deviation is a mean over images of each
# image's own. chenyaofo/image-classification-codebase (conf/cifar10.conf) has the same numbers.
KUANGLIU_CIFAR10 = dataclasses.replace(
    CIFAR10, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)
)
# https://github.com/chenyaofo/image-classification-codebase (conf/cifar100.conf).
CHENYAOFO_CIFAR100 = dataclasses.replace(
    CIFAR100, mean=(0.5070, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2761)
)
# Values from -1 to 1, as in TensorFlow's Inception and in timm's constants.
INCEPTION = dataclasses.replace(IMAGENET, mean=(0.5,) * 3, std=(0.5,) * 3)
# https://github.com/openai/CLIP (clip/clip.py).
CLIP = Preprocessing(
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    image_size=224,
    interpolation="bicubic",
)

PREPROCESSINGS: dict[str, Preprocessing] = {
    "imagenet": IMAGENET,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "akamaster-cifar10": AKAMASTER_CIFAR10,
    "kuangliu-cifar10": KUANGLIU_CIFAR10,
    "chenyaofo-cifar10": KUANGLIU_CIFAR10,
    "chenyaofo-cifar100": CHENYAOFO_CIFAR100,
    "inception": INCEPTION,
    "clip": CLIP,
}
"""Well-known preprocessings by name."""
