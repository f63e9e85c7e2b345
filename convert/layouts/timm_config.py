"""The `config.json` of a folder that timm opens: its architectures, and how images come in."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from convert.errors import ConversionError
from convert.layouts.transformers_config import CONFIG, only_count
from resnet_spec import ClassifierSpec, Preprocessing, ResNetSpec, find_spec, nearest_names

WRAPPER = "timm_wrapper"  # transformers' model type around any model of timm's
_HEADLESS = "TimmWrapperModel"
ARCHITECTURES = {
    **{f"resnet{depth}": f"ResNet{depth}" for depth in (18, 34, 50, 101, 152, 200)},
    **{f"wide_resnet{depth}_2": f"WideResNet{depth}-2" for depth in (50, 101)},
    **{f"resnetv2_{depth}": f"PreActResNet{depth}" for depth in (18, 34, 50, 101, 152)},
}
"""timm's name -> ours, for every network that is the same."""

# What sets the others apart, by a part of their names: the first that fits is told.
_OTHERS = (
    ("resnext", "its 3x3 convolutions are grouped"),
    ("resnest", "its 3x3 convolutions are split, with attention over the parts"),
    ("seresnet", "squeeze-and-excitation in its blocks"),
    ("ecaresnet", "channel attention in its blocks"),
    ("resnetblur", "it blurs before it subsamples"),
    ("resnetaa", "average pooling before it subsamples"),
    ("resnetrs", "another stem, squeeze-and-excitation, average-pooled shortcuts"),
    ("_bit", "GroupNorm and standardised weights"),
    ("_gn", "GroupNorm"),
)
_VARIANTS = {
    "c": "a stem of three 3x3 convolutions",
    "d": "a stem of three 3x3 convolutions, and average-pooled shortcuts",
    "s": "a stem of three wide 3x3 convolutions",
    "t": "a stem of three 3x3 convolutions of growing width, and average-pooled shortcuts",
}
# timm's arguments that change nothing when the weights are used; of the others, the only value.
_HARMLESS = ("in_chans", "num_classes", "drop_rate", "drop_path_rate", "zero_init_last")
_ONLY_VALUES = {"global_pool": "avg", "output_stride": 32, "act_layer": "relu"}
# What timm takes where the file is silent (`PretrainedCfg`).
_DEFAULTS = {
    "input_size": [3, 224, 224],
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "num_classes": 1000,
}


def write(classifier: ClassifierSpec, preprocessing: Preprocessing | None) -> dict[str, Any]:
    """Name -> content of the JSON files.

    Raises:
        ConversionError: timm has no such architecture, or nothing is known of the preprocessing.
    """
    if preprocessing is None:
        raise ConversionError(
            "timm normalises with ImageNet's mean and standard deviation where a folder is silent, "
            "and nothing says that these weights were trained so: say their preprocessing"
        )
    spec, num_classes = classifier.network, classifier.num_classes or 0
    size = preprocessing.image_size
    config: dict[str, Any] = {
        "architecture": _find_architecture(spec),
        "num_classes": num_classes,
        "num_features": spec.out_planes,
        "global_pool": "avg",
    }
    if preprocessing.class_names is not None:
        config["label_names"] = list(preprocessing.class_names)
    config["pretrained_cfg"] = {
        "custom_load": False,
        "input_size": [spec.in_planes, size, size],
        "fixed_input_size": False,
        "interpolation": preprocessing.interpolation,
        "crop_pct": preprocessing.crop_fraction,
        "crop_mode": "center",
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "num_classes": num_classes,
        "pool_size": None,
        "first_conv": "stem.conv" if spec.preact else "conv1",
        "classifier": "head.fc" if spec.preact else "fc",
    }
    return {CONFIG: config}


def read_preprocessing(files: Mapping[str, Any]) -> Preprocessing | None:
    """How images are prepared and what the classes are called, from all JSON files by name.

    Raises:
        ConversionError: the table cannot say it; the differences are listed.
        ValueError, KeyError, TypeError: the content is not timm's.
    """
    config = files[CONFIG]
    if config.get("model_type") == WRAPPER and "pretrained_cfg" not in config:
        return None  # where timm is silent it takes its own defaults, transformers the model's
    pretrained, channels = _pretrained(config), _channels(config)
    if problems := list(_unprepared(pretrained)):
        raise ConversionError(f"{CONFIG} prepares images as this table cannot say it:", problems)
    mean, std = pretrained["mean"], pretrained["std"]
    return Preprocessing(
        mean=mean * channels if len(mean) == 1 else mean,  # timm repeats a single number
        std=std * channels if len(std) == 1 else std,
        image_size=pretrained["input_size"][1],
        class_names=class_names(config),
        interpolation=pretrained["interpolation"],
        crop_fraction=pretrained["crop_pct"],
    )


def class_names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """In the order of the classes; None where they have none, or are only counted."""
    if config.get("architectures") == [_HEADLESS]:
        return None
    labels = config.get("label_names", _pretrained(config).get("label_names"))
    if isinstance(labels, dict) and set(labels) == {str(n) for n in range(len(labels))}:
        labels = [labels[str(number)] for number in range(len(labels))]
    return tuple(labels) if isinstance(labels, list) and not only_count(labels) else None


def read_network(config: Mapping[str, Any]) -> dict[str, Any]:
    """The description of the model, as `ClassifierSpec.to_json`'s.

    Raises:
        ConversionError: it is a network that the table has not; the differences are listed.
        ValueError, KeyError, TypeError: the content is not timm's.
    """
    pretrained, arguments = _pretrained(config), _arguments(config)
    architecture = _plain(config["architecture"])
    if problems := (*_differences(architecture), *_unsupported(config, arguments)):
        raise ConversionError(f"{CONFIG} describes a network that this table has not:", problems)
    spec = dataclasses.replace(find_spec(ARCHITECTURES[architecture]), in_planes=_channels(config))
    num_classes = config.get("num_classes", pretrained["num_classes"])
    num_classes = arguments.get("num_classes", num_classes)
    if config.get("architectures") == [_HEADLESS]:
        num_classes = 0
    return {"network": spec.to_json(), "num_classes": num_classes or None, "head_bias": True}


def _arguments(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("model_args") or {}  # transformers writes null


def _channels(config: Mapping[str, Any]) -> int:
    return _arguments(config).get("in_chans", _pretrained(config)["input_size"][0])


def _pretrained(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**_DEFAULTS, **config.get("pretrained_cfg", config)}


def _find_architecture(spec: ResNetSpec) -> str:
    for theirs, ours in ARCHITECTURES.items():
        row = dataclasses.replace(find_spec(ours), in_planes=spec.in_planes)
        if not row.differences(spec):
            return theirs
    raise ConversionError(
        f"timm has no architecture of {spec.block} blocks in stages of {spec.stage_depths}: it has "
        f"{', '.join(ARCHITECTURES)}"
    )


def other_network(architecture: str) -> str | None:
    """What sets a network of timm's apart from those of the table, where its name says so."""
    architecture = _plain(architecture).lower()
    if architecture in ARCHITECTURES or "resnet" not in architecture:
        return None
    why = next((text for part, text in _OTHERS if part in architecture), None)
    return why or (_VARIANTS.get(architecture[-1]) if architecture[:-1] in ARCHITECTURES else None)


def architecture_problems(architectures: Iterable[str]) -> list[str]:
    """A sentence where a training script says that its weights are of a network of another kind."""
    return [
        f"another network: it says that it is of {architecture[:100]!r}: {why} (where that is not "
        "so, re-save its state dict alone)"
        for architecture in dict.fromkeys(architectures)
        if (why := other_network(architecture)) is not None
    ]


def _plain(architecture: str) -> str:
    """Without the tag of its weights, and without what older names said of them."""
    name = architecture.partition(".")[0]
    if name.startswith("gluon_"):
        return name.removeprefix("gluon_").removesuffix("_v1b")
    return name.removeprefix("tv_").removeprefix("ssl_").removeprefix("swsl_")


def _differences(architecture: str) -> Iterator[str]:
    if architecture in ARCHITECTURES:
        return
    why = other_network(architecture)
    nearest = nearest_names(architecture, ARCHITECTURES)
    hint = f" (nearest: {', '.join(nearest)})" if nearest else ""
    yield f"architecture {architecture!r}: {why or 'none of the papers'}{hint}"


def _unsupported(config: Mapping[str, Any], arguments: Mapping[str, Any]) -> Iterator[str]:
    given = {"global_pool": config.get("global_pool", "avg"), **arguments}
    for name, value in given.items():
        if name not in _HARMLESS and value != _ONLY_VALUES.get(name, given):
            only = f", here {_ONLY_VALUES[name]!r}" if name in _ONLY_VALUES else ""
            yield f"{name} is {value!r}{only}"


def _unprepared(pretrained: Mapping[str, Any]) -> Iterator[str]:
    if pretrained.get("label_offset"):
        yield f"label_offset is {pretrained['label_offset']!r}, here 0"
    _, height, width = pretrained["input_size"]
    if height != width:
        yield f"input_size: images of {height} by {width}, here squares"
    if pretrained["crop_mode"] != "center":
        yield f"crop_mode is {pretrained['crop_mode']!r}, here the square in the middle"
