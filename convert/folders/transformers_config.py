"""The JSON files of a folder that transformers opens as `ResNetForImageClassification`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from convert.errors import ConversionError
from convert.folders.pretrained_cfg import KEY, read_images, with_defaults, write_images
from resnet_spec import ClassifierSpec, Preprocessing
from resnet_spec.blocks import BOTTLENECK_EXPANSION
from resnet_spec.preprocessing import crop_fraction_of

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
# Resizes and cuts as torchvision does, on Pillow's pictures.
_OF_TIMM = "TimmWrapperImageProcessor"
WITHOUT_TIMM = (
    "AutoImageProcessor needs timm for this folder, and computes our pixels. Without timm, name "
    "BitImageProcessor: where the resized picture is 3, 7, 11 ... pixels longer than the crop, "
    "it cuts one pixel earlier (docs/converting.md, Pixels elsewhere)"
)
# ResNets of the Hub have ConvNeXT's processor. From this size on it squeezes a whole picture
# instead of cutting out its middle; BiT's processor never does.
_SQUEEZED_FROM = 384
_RESAMPLE: dict[int, str] = dict(  # Pillow's numbers
    enumerate(("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"))
)
# transformers' default values (`ResNetConfig`, `ConvNextImageProcessor`).
_DEFAULTS: dict[str, Any] = {
    "num_channels": 3,
    "embedding_size": 64,
    "hidden_sizes": [256, 512, 1024, 2048],
    "depths": [3, 4, 6, 3],
    "layer_type": "bottleneck",
    "downsample_in_bottleneck": False,
}
_ONLY_VALUES = {"model_type": "resnet", "hidden_act": "relu", "downsample_in_first_stage": False}
_ARCHITECTURE = "ResNetForImageClassification"
_HEADLESS = ("ResNetModel", "ResNetBackbone")
_STEPS = ("do_resize", "do_rescale", "do_normalize")


def write(classifier: ClassifierSpec, preprocessing: Preprocessing | None) -> dict[str, Any]:
    """Name -> content of the JSON files; without a preprocessing only `config.json`."""
    spec, count = classifier.network, classifier.num_classes or 0
    names = None if preprocessing is None else preprocessing.class_names
    labels = names or tuple(f"LABEL_{number}" for number in range(count))
    expansion = BOTTLENECK_EXPANSION if spec.block == "bottleneck" else 1
    config = {
        "architectures": [_ARCHITECTURE],
        "model_type": "resnet",
        "num_channels": spec.in_planes,
        "embedding_size": spec.stem_planes,
        "hidden_sizes": [planes * expansion for planes in spec.stage_planes],
        "depths": list(spec.stage_depths),
        "layer_type": spec.block,
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": spec.bottleneck_stride == "1x1",
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    if preprocessing is None:
        return {CONFIG: config}
    config |= {"image_processor_type": _OF_TIMM, KEY: write_images(preprocessing)}
    return {CONFIG: config, PREPROCESSOR: _write_processor(preprocessing)}


def read_preprocessing(files: Mapping[str, Any]) -> Preprocessing | None:
    """How images are prepared and what the classes are called, from all JSON files by name.

    A ConversionError lists what `Preprocessing` cannot express; other errors are of the content.
    """
    processor, config = files.get(PREPROCESSOR), files[CONFIG]
    if processor is None:
        return None
    if processor.get("image_processor_type") == _OF_TIMM:
        channels = config.get("num_channels", _DEFAULTS["num_channels"])
        return read_images(with_defaults({KEY: config[KEY]}), channels, class_names(config), CONFIG)
    return _read_processor(processor, class_names(config))


def read_network(config: Mapping[str, Any]) -> dict[str, Any]:
    """The description of the model, as `ClassifierSpec.to_json`'s.

    A ConversionError lists what is not in the table; other errors are of the content.
    """
    config = {**_DEFAULTS, **config}
    expansion = BOTTLENECK_EXPANSION if config["layer_type"] == "bottleneck" else 1
    problems = list(_unsupported(config))
    if any(size % expansion for size in config["hidden_sizes"]):
        problems.append(f"hidden_sizes {config['hidden_sizes']} do not divide by {expansion}")
    if problems:
        raise ConversionError(f"{CONFIG} describes a network that is not in this table:", problems)
    network = {
        "block": config["layer_type"],
        "stage_depths": config["depths"],
        "stage_planes": [size // expansion for size in config["hidden_sizes"]],
        "stem_planes": config["embedding_size"],
        "in_planes": config["num_channels"],
    }
    if config["downsample_in_bottleneck"] and config["layer_type"] == "bottleneck":
        network["bottleneck_stride"] = "1x1"
    return {"network": network, "num_classes": len(_labels(config)) or None, "head_bias": True}


def class_names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """In the order of the classes; None where they have only numbers."""
    labels = _labels(config)
    return None if only_count(labels) else tuple(labels)


def only_count(labels: Sequence[str]) -> bool:
    """Whether these are transformers' labels of classes without names: `LABEL_0`, `LABEL_1`, ..."""
    return all(label == f"LABEL_{number}" for number, label in enumerate(labels))


def _unsupported(config: Mapping[str, Any]) -> Iterator[str]:
    for name, only in _ONLY_VALUES.items():
        if config.get(name, only) != only:
            yield f"{name} is {config[name]!r}, here {only!r}"
    architectures = config.get("architectures") or [_ARCHITECTURE]
    if architectures not in [[name] for name in (_ARCHITECTURE, *_HEADLESS)]:
        known = f"{_ARCHITECTURE} or {' or '.join(_HEADLESS)}"
        yield f"architectures are {architectures!r}, here {known}"
    if config["layer_type"] not in ("basic", "bottleneck"):
        yield f"layer_type is {config['layer_type']!r}, here basic or bottleneck"
    if config.get("quantization_config") is not None:
        yield "its weights are quantised"


def _labels(config: Mapping[str, Any]) -> list[str]:
    """The names of the classes in order; two without names are transformers' default."""
    labels = config.get("id2label")
    if config.get("architectures") in [[name] for name in _HEADLESS]:
        return []
    if labels is None:
        return [f"LABEL_{number}" for number in range(config.get("num_labels", 2))]
    return [labels[str(number)] for number in range(len(labels))]


def _write_processor(preprocessing: Preprocessing) -> dict[str, Any]:
    """The processor that computes our pixels, which reads `pretrained_cfg` in `config.json`.

    What else is here is for transformers' own BitImageProcessor, which a user without timm may
    name: it cuts a picture's middle at half the rest rounded down, one pixel beside ours where the
    rest is 3 modulo 4.
    """
    size = preprocessing.image_size
    return {
        "image_processor_type": _OF_TIMM,
        **dict.fromkeys(_STEPS, True),
        "size": {"shortest_edge": preprocessing.shorter_side},
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "resample": list(_RESAMPLE.values()).index(preprocessing.interpolation),
        "rescale_factor": 1 / 255,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def _read_processor(
    processor: Mapping[str, Any], class_names: tuple[str, ...] | None
) -> Preprocessing:
    kind = str(processor.get("image_processor_type", processor.get("feature_extractor_type")))
    problems = [f"{step} is false" for step in _STEPS if processor.get(step, True) is not True]
    edge, cut, fraction = 0, 0, 1.0
    if kind.startswith(("ConvNext", "BitImage")):
        edge, cut, fraction = _read_size(processor, kind)
    else:
        problems.append(f"{kind} is neither ConvNextImageProcessor nor BitImageProcessor")
    if abs(processor.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        problems.append(f"rescale_factor is {processor['rescale_factor']!r}, here 1/255")
    if kind.startswith("ConvNext") and edge >= _SQUEEZED_FROM:
        problems.append(f"pictures are squeezed to {edge} pixels, here their middle is cut out")
    if kind.startswith("BitImage") and processor.get("do_center_crop", True) is not True:
        problems.append("do_center_crop is false")
    if problems:
        raise ConversionError(
            f"{PREPROCESSOR} prepares images in a way not supported here; without that file the "
            "weights alone are imported:",
            problems,
        )
    return Preprocessing(
        mean=processor["image_mean"],
        std=processor["image_std"],
        image_size=cut,
        class_names=class_names,
        interpolation=_RESAMPLE[processor.get("resample", 3)],  # type: ignore[arg-type]
        crop_fraction=fraction,
    )


def _read_size(processor: Mapping[str, Any], kind: str) -> tuple[int, int, float]:
    """Shorter side of the resized picture, side of the kept square, and the crop fraction.

    ConvNext's `size` is the square's, and it does not read `crop_size`; BiT's is the picture's.
    """
    size, fraction = processor["size"], processor.get("crop_pct")
    edge = int(size["shortest_edge"] if isinstance(size, Mapping) else size)
    if kind.startswith("ConvNext"):
        return edge, edge, 224 / 256 if fraction is None else fraction
    crop = processor.get("crop_size")
    crop = 224 if crop is None else crop
    height, width = (crop["height"], crop["width"]) if isinstance(crop, Mapping) else (crop, crop)
    if height != width or not 0 < height <= edge:
        raise ValueError(f"{PREPROCESSOR}: no square within {edge} pixels is {height} by {width}")
    if fraction is None or int(height / fraction) != edge:
        fraction = crop_fraction_of(int(height), edge)
    return edge, int(height), fraction
