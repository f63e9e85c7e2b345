"""The `config.json` of a folder that timm opens: its network, and how images are prepared."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from convert.errors import ConversionError
from convert.folders.pretrained_cfg import KEY, read_images, with_defaults, write_images
from convert.folders.transformers_config import CONFIG, only_count
from convert.layouts.timm import ARCHITECTURES, other_network, plain_name
from resnet_spec import ClassifierSpec, Preprocessing, ResNetSpec, find_spec, nearest_names

WRAPPER = "timm_wrapper"  # transformers' model type around any model of timm's
_HEADLESS = "TimmWrapperModel"
# timm's arguments that change nothing when the weights are used; and the only value of others.
_HARMLESS = ("in_chans", "num_classes", "drop_rate", "drop_path_rate", "zero_init_last")
_ONLY_VALUES = {"global_pool": "avg", "output_stride": 32, "act_layer": "relu"}


def write(classifier: ClassifierSpec, preprocessing: Preprocessing | None) -> dict[str, Any]:
    """Name -> content of the JSON files; timm needs to know the preprocessing."""
    if preprocessing is None:
        raise ConversionError(
            "timm normalises with ImageNet's mean and standard deviation by default, and nothing "
            "says that these weights were trained so: give their preprocessing"
        )
    spec, num_classes = classifier.network, classifier.num_classes or 0
    config: dict[str, Any] = {
        "architecture": _find_architecture(spec),
        "num_classes": num_classes,
        "num_features": spec.out_planes,
        "global_pool": "avg",
    }
    if preprocessing.class_names is not None:
        config["label_names"] = list(preprocessing.class_names)
    config[KEY] = {
        "custom_load": False,
        **write_images(preprocessing),
        "fixed_input_size": False,
        "num_classes": num_classes,
        "pool_size": None,
        "first_conv": "stem.conv" if spec.preact else "conv1",
        "classifier": "head.fc" if spec.preact else "fc",
    }
    return {CONFIG: config}


def read_preprocessing(files: Mapping[str, Any]) -> Preprocessing | None:
    """How images are prepared and what the classes are called, from all JSON files by name.

    A ConversionError lists what `Preprocessing` cannot express; other errors are of the content.
    """
    config = files[CONFIG]
    if config.get("model_type") == WRAPPER and KEY not in config:
        return None  # timm would take its own defaults, transformers the model's
    return read_images(with_defaults(config), _channels(config), class_names(config), CONFIG)


def class_names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """In the order of the classes; None where they have no names, or only numbers."""
    if config.get("architectures") == [_HEADLESS]:
        return None
    labels = config.get("label_names", with_defaults(config).get("label_names"))
    if isinstance(labels, dict) and set(labels) == {str(n) for n in range(len(labels))}:
        labels = [labels[str(number)] for number in range(len(labels))]
    return tuple(labels) if isinstance(labels, list) and not only_count(labels) else None


def read_network(config: Mapping[str, Any]) -> dict[str, Any]:
    """The description of the model, as `ClassifierSpec.to_json`'s.

    A ConversionError lists what is not in the table; other errors are of the content.
    """
    pretrained, arguments = with_defaults(config), _arguments(config)
    architecture = plain_name(config["architecture"])
    if problems := (*_other_architecture(architecture), *_unsupported(config, arguments)):
        raise ConversionError(f"{CONFIG} describes a network that is not in this table:", problems)
    spec = dataclasses.replace(find_spec(ARCHITECTURES[architecture]), in_planes=_channels(config))
    num_classes = config.get("num_classes", pretrained["num_classes"])
    num_classes = arguments.get("num_classes", num_classes)
    if config.get("architectures") == [_HEADLESS]:
        num_classes = 0
    return {"network": spec.to_json(), "num_classes": num_classes or None, "head_bias": True}


def _arguments(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("model_args") or {}  # transformers writes null


def _channels(config: Mapping[str, Any]) -> int:
    return _arguments(config).get("in_chans", with_defaults(config)["input_size"][0])


def _find_architecture(spec: ResNetSpec) -> str:
    for theirs, ours in ARCHITECTURES.items():
        row = dataclasses.replace(find_spec(ours), in_planes=spec.in_planes)
        if not row.differences(spec):
            return theirs
    raise ConversionError(
        f"timm has no architecture of {spec.block} blocks in stages of {spec.stage_depths}: it has "
        f"{', '.join(ARCHITECTURES)}"
    )


def _other_architecture(architecture: str) -> Iterator[str]:
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
