"""A Hugging Face folder read and written whole: its weights, and what its JSON files say."""

import contextlib
import dataclasses
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from convert.arrays import counters_reset
from convert.atomic import replacing
from convert.description import parse_description
from convert.errors import ConversionError
from convert.files import read_file, write_weights
from convert.folders import timm_config, transformers_config
from convert.folders.transformers_config import CONFIG
from convert.layouts import Layout, find_layout, read_layout, write_layout
from convert.shards import SUFFIX, read_shards
from convert.weights import Weights
from resnet_spec import Preprocessing, ResNetSpec

_CONFIGS: dict[str, ModuleType] = {"timm": timm_config, "transformers": transformers_config}
PACKAGES = tuple(_CONFIGS)
# Fields of the spec that no tensor shows, but that the configuration records.
RECORDED = {"timm": (), "transformers": ("bottleneck_stride",)}
# The file of weights, and the suffix of its form; the first that is there counts.
_WEIGHTS = {"model.safetensors": ".safetensors", "pytorch_model.bin": ".pt"}
_INDEX = f"*{SUFFIX}"  # of weights in several files
_LARGEST_JSON = 2**23  # bytes; the names of 20,000 classes take one hundredth


def is_model_folder(path: Path) -> bool:
    """Whether a path is a folder with weights, but not a training run."""
    has_weights = any((path / name).is_file() for name in _WEIGHTS)
    has_weights |= any(path.glob(_INDEX))
    return has_weights and not (path / "checkpoints").is_dir()


def write_folder(
    folder: Path, weights: Weights, layout: Layout, *, allow_nonfinite: bool = False
) -> None:
    """Writes a folder that timm or transformers opens.

    `timm.create_model("local-dir:FOLDER", pretrained=True)`, or
    `ResNetForImageClassification.from_pretrained("FOLDER")`, is then the model.

    Args:
        folder: a new one, or one that is empty; it appears whole or not at all.
        weights: with the description of their model; for timm also with their preprocessing.
        layout: one whose name is in `PACKAGES`.
        allow_nonfinite: accept NaN, infinite values and negative variances.

    Raises:
        ConversionError: the package has no such model, the folder is not empty, or it reads back
            otherwise than it was written.
        OSError: the folder cannot be written.
    """
    if layout.name not in _CONFIGS:
        raise ConversionError(
            f"a folder is in the layout {' or '.join(PACKAGES)}, not {layout.name}"
        )
    if weights.classifier is None:
        raise ConversionError("these weights do not say which model they are")
    weights.check_preprocessing()
    arrays = write_layout(weights.arrays, weights.classifier, layout)
    contents = _CONFIGS[layout.name].write(weights.classifier, weights.preprocessing)
    with _appearing(folder) as temporary:
        file = temporary / next(iter(_WEIGHTS))
        write_weights(file, Weights(arrays, None), allow_nonfinite=allow_nonfinite)
        for name, content in contents.items():
            with replacing(temporary / name) as file:
                file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        written, _ = _read_description(temporary, Weights(arrays, None))
        assert written.classifier is not None
        problems = weights.classifier.network.differences(written.classifier.network)
        if written.classifier.num_classes != weights.classifier.num_classes:
            problems.append(f"num_classes: {written.classifier.num_classes}")
        if _without_numbers(written.preprocessing) != _without_numbers(weights.preprocessing):
            problems.append(f"preprocessing: {written.unsaid or written.preprocessing}")
        if problems:
            raise ConversionError(f"{folder} reads back as another model:", problems)


def is_of_folder(file: Path) -> bool:
    """Whether a file is called as the weights of a model folder, or their index."""
    return file.name in _WEIGHTS or file.name.endswith(SUFFIX)


def read_folder(folder: Path, *, reset_counters: bool = False, file: Path | None = None) -> Weights:
    """The weights of a folder of timm, transformers or ours, under our names, with their faults.

    `file` says which, where there are several: without it the first of `model.safetensors`,
    `pytorch_model.bin` and an index.

    Raises:
        ConversionError: the table does not have the model (the differences are listed), its
            tensors are not there, or the folder is damaged.
        OSError: a file cannot be read.
    """
    indexes = sorted(folder.glob(_INDEX), key=lambda path: "safetensors" not in path.name)
    found = [folder / name for name in _WEIGHTS if (folder / name).is_file()] + indexes
    if not found:
        raise ConversionError(f"{folder} holds no {' or '.join(_WEIGHTS)}, and no {_INDEX}")
    file = file or found[0]
    if file.name in _WEIGHTS:
        weights = read_file(file, suffix=_WEIGHTS[file.name])
    else:
        weights = read_shards(file)
    if weights.classifier is not None:  # ours: the file describes itself
        return weights
    said, layout = _read_description(folder, weights)
    assert said.classifier is not None
    try:
        arrays, with_head = read_layout(
            weights.arrays,
            said.classifier.network,
            layout,
            reset_counters=reset_counters,
            allow_nonfinite=True,
        )
    except ConversionError as error:
        if said.unsaid is None:
            raise
        raise ConversionError(error.what, [*error.problems, str(said.unsaid)]) from error
    if with_head.num_classes != said.classifier.num_classes:
        raise ConversionError(
            f"{folder}: {CONFIG} describes a head of {said.classifier.num_classes} classes, the "
            f"weights have one of {with_head.num_classes}"
        )
    reset = counters_reset(arrays, weights.arrays) if reset_counters else []
    names, head = {}, None
    if weights.names:  # of the file's tensors by the layout's names
        whole = layout.whole_names({name: name for name in weights.arrays})
        ours_of = {whole[n]: ours for ours, n in layout.tensors(with_head).items() if n in whole}
        names = {ours_of[n]: weights.names.get(n, n) for n in weights.arrays if n in ours_of}
        theirs_of = {ours: n for n, ours in ours_of.items()}
        head = weights.arrays.get(theirs_of.get("head.weight", ""))
    return dataclasses.replace(
        said,
        arrays=arrays,
        classifier=with_head,
        notes=(*said.notes, *reset),
        names=names,
        has_conv_head=head is not None and head.ndim == 4,
    )


def network_beside(file: Path, weights: Weights) -> ResNetSpec | None:
    """The network of a file of weights as the configuration in its folder has it, if any."""
    path = file.parent / CONFIG
    if file.name not in _WEIGHTS or not path.is_file():
        return None
    config = _read_json(path)
    if (layout := _package_of(config)) is None:
        return None
    with _naming(file.parent, layout, f"move {file.name} away if that is not its configuration"):
        fields = _CONFIGS[layout].read_network(config)
        return parse_description(fields, len(weights.arrays)).network


@contextlib.contextmanager
def _naming(folder: Path, layout: str, advice: str = "") -> Iterator[None]:
    """Turns every error, as hostile JSON may raise any, into one that names the folder."""
    hint = f" ({advice})" if advice else ""
    try:
        yield
    except ConversionError as error:
        raise ConversionError(f"{folder}{hint}: {error}") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConversionError(f"{folder}{hint}: not as {layout} writes it ({reason})") from error


def layout_of(folder: Path) -> Layout | None:
    """The layout of a folder's configuration; None where there is none, or of another package."""
    path = folder / CONFIG
    name = _package_of(_read_json(path)) if path.is_file() else None
    return None if name is None else find_layout(name)


def _package_of(config: Mapping[str, Any]) -> str | None:
    if config.get("model_type") == timm_config.WRAPPER and "architecture" in config:
        return "timm"
    if "model_type" in config or "architectures" in config:
        return "transformers"
    return "timm" if "architecture" in config else None


def _read_description(folder: Path, weights: Weights) -> tuple[Weights, Layout]:
    """What a folder's JSON files say of these arrays, which limit the size of the model."""
    advice = "name the file of weights in it, with its --layout and --model"
    if not (folder / CONFIG).is_file():
        raise ConversionError(
            f"{folder} has no {CONFIG}, and its weights do not describe a model: {advice}"
        )
    config = _read_json(folder / CONFIG)
    package = _package_of(config)
    if package is None:
        raise ConversionError(f"{folder / CONFIG} is not of {' or '.join(PACKAGES)}: {advice}")
    module, classifier, preprocessing = _CONFIGS[package], None, None
    errors: list[ConversionError] = []
    try:
        with _naming(folder, package):
            classifier = parse_description(module.read_network(config), len(weights.arrays))
    except ConversionError as error:
        errors.append(error)
    try:
        files, processor = {CONFIG: config}, folder / transformers_config.PREPROCESSOR
        if processor.is_file():
            files[processor.name] = _read_json(processor)
        with _naming(folder, package):
            preprocessing = module.read_preprocessing(files)
            if preprocessing is not None and classifier is not None:
                preprocessing.check(classifier)
    except ConversionError as error:
        errors.append(error)
    if classifier is None and len(errors) > 1:
        raise ConversionError(f"{folder} is not of this table:", list(map(str, errors)))
    if classifier is None:
        raise errors[0]
    notes = list(weights.notes)
    with _naming(folder, package):
        if module.class_names(config) is not None and preprocessing is None and not errors:
            notes.append(
                f"left out: the names of the classes in {CONFIG}, which are part of a "
                "preprocessing: the folder has none"
            )
    described = dataclasses.replace(
        weights,
        classifier=classifier,
        preprocessing=None if errors else preprocessing,
        notes=tuple(notes),
        unsaid=errors[0] if errors else None,
    )
    return described, find_layout(package)


def _read_json(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        text = file.read(_LARGEST_JSON + 1)
    try:
        content = json.loads(text) if len(text) <= _LARGEST_JSON else None
    except Exception as error:  # of several kinds, RecursionError among them
        raise ConversionError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path} is not a configuration")
    return content


def _without_numbers(preprocessing: Preprocessing | None) -> Preprocessing | None:
    """Without class names that are only numbers: they are read as none."""
    names = None if preprocessing is None else preprocessing.class_names
    if preprocessing is None or names is None or not transformers_config.only_count(names):
        return preprocessing
    return dataclasses.replace(preprocessing, class_names=None)


@contextlib.contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place when all went well."""
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConversionError(f"{folder} is there already and not an empty folder: give a new one")
    temporary = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    try:
        temporary.mkdir()
        yield temporary
        temporary.replace(folder)
    except OSError as error:  # which may show the temporary name
        if error.errno is None:
            raise OSError(str(error).replace(str(temporary), str(folder))) from error
        name = str(error.filename or folder).replace(str(temporary), str(folder))
        raise OSError(error.errno, error.strerror, name) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
