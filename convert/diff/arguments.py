"""What `compare` is given, checked before anything runs."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from convert.arrays import is_floating
from convert.diff.precision import DEVICES, PRECISIONS
from convert.diff.runs import framework_of
from convert.errors import ConversionError


def check_arguments(
    model_a: Any,
    model_b: Any,
    images: np.ndarray,
    labels: Any,
    names: Mapping[str, str] | None,
    precision: str,
    device: str,
) -> None:
    """Raises a ConversionError that lists every argument that does not fit."""
    problems = [
        *_check_choice("precision", precision, PRECISIONS),
        *_check_choice("device", device, DEVICES),
        *_check_images(images, model_a, model_b),
    ]
    if labels is not None:
        problems += _check_labels(np.asarray(labels), images, model_a, model_b)
    if names is not None:
        problems += _check_names(names, model_a, model_b)
    if problems:
        raise ConversionError("these networks cannot be compared so:", problems)


def _check_choice(what: str, value: str, known: tuple[str, ...]) -> list[str]:
    return [] if value in known else [f"{what} is one of {', '.join(known)}, not {value!r}"]


def _check_images(images: np.ndarray, *models: Any) -> list[str]:
    if images.ndim != 4 or 0 in images.shape:
        return [f"images are (n, h, w, c), not {images.shape}"]
    if not (is_floating(images.dtype) or np.issubdtype(images.dtype, np.integer)):
        return [f"images are real numbers, not {images.dtype}"]
    if not np.all(np.isfinite(images)):
        return ["images are finite, these have NaN or infinity"]
    expected = {spec.in_planes for model in models if (spec := getattr(model, "spec", None))}
    if expected - {images.shape[-1]}:
        channels = " and ".join(map(str, sorted(expected)))
        return [f"images have {images.shape[-1]} channels, the models take {channels}"]
    return []


def _check_labels(labels: np.ndarray, images: np.ndarray, *models: Any) -> list[str]:
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        return [f"labels are an integer for each image, not {labels.dtype} {labels.shape}"]
    heads = [head for model in models if (head := getattr(model, "head", None)) is not None]
    if any(type(head).__name__ == "Identity" for head in heads):
        return ["labels are for networks with a head, and one here ends in pooled features"]
    sizes = [size for head in heads if (size := getattr(head, "out_features", None))]
    if labels.min() < 0 or any(labels.max() >= size for size in sizes):
        return [f"labels are classes from 0, these are {labels.min()} to {labels.max()}"]
    return []


def _check_names(names: Mapping[str, str], model_a: Any, model_b: Any) -> list[str]:
    if framework_of(model_b) != "torch":
        return ["names are for a peer's torch model, and the second model is none"]
    theirs = {name for name, _ in model_b.named_modules()}
    problems = [f"the peer has no layer {name}" for name in names.values() if name not in theirs]
    if len(set(names.values())) != len(names):
        problems.append("two of our layers have one name of the peer's")
    if framework_of(model_a) == "torch":
        ours = {name for name, _ in model_a.named_modules()}
        problems += [f"the first model has no layer {name}" for name in names if name not in ours]
    return problems
