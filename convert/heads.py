"""The head of weights kept, dropped or drawn anew, as the user says; never silently."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from convert.errors import ConversionError
from convert.layouts import find_layout, head_path
from convert.weights import Weights
from resnet_spec import ResNetSpec

_MOST_CLASSES = 10**6
_SEED = 0  # a new head is the same each time


def without_head(
    arrays: Mapping[str, np.ndarray], spec: ResNetSpec, layout: str
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Tensors in a layout without what is under its head's name, `fc.1.weight` too, and its names.

    Raises:
        ConversionError: the layout cannot express the network.
    """
    found = find_layout(layout)
    found.check(spec)
    arrays = found.whole_names(arrays)
    path = head_path(found, spec)
    left_out = [name for name in arrays if name.startswith(path)]
    return {name: array for name, array in arrays.items() if name not in left_out}, left_out


def change_head(weights: Weights, choice: str, *, is_headless: bool = False) -> Weights:
    """Weights with the head that `choice` says.

    Args:
        weights: of a described model.
        choice: `keep`; `drop`, which leaves the pooled features; or `new:N`, a linear layer of N
            classes, both parameters uniform as torch draws them, in the dtype of the convolutions.
        is_headless: the old head has been left out already.

    Raises:
        ConversionError: `choice` is none of these, or there is no head to drop.
    """
    if choice == "keep":
        return weights
    classifier, preprocessing = weights.classifier, weights.preprocessing
    assert classifier is not None
    body = {name: array for name, array in weights.arrays.items() if not name.startswith("head.")}
    if preprocessing is not None:  # class names are those of the old head
        preprocessing = dataclasses.replace(preprocessing, class_names=None)
    kind, _, number = choice.partition(":")
    if choice == "drop":
        if classifier.num_classes is None and not is_headless:
            raise ConversionError("--head drop: these weights have no head")
        num_classes, head = None, {}
    elif kind == "new" and number.isdecimal() and 0 < int(number) <= _MOST_CLASSES:
        num_classes = int(number)
        dtype = weights.arrays["stem.conv.weight"].dtype
        head = _new_head(num_classes, classifier.network.out_planes, dtype)
    else:
        raise ConversionError(f"--head is keep, drop or new:N with N classes, not {choice!r}")
    return dataclasses.replace(
        weights,
        arrays={**body, **head},
        classifier=dataclasses.replace(classifier, num_classes=num_classes, head_bias=True),
        preprocessing=preprocessing,
    )


def _new_head(num_classes: int, in_planes: int, dtype: np.dtype) -> dict[str, np.ndarray]:
    generator, bound = np.random.default_rng(_SEED), in_planes**-0.5
    shapes = {"head.weight": (num_classes, in_planes), "head.bias": (num_classes,)}
    return {
        name: generator.uniform(-bound, bound, shape).astype(dtype)
        for name, shape in shapes.items()
    }
