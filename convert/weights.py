"""Weights: arrays with the description of their model, and that description in a file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from convert.description import parse_description
from convert.errors import ConversionError
from resnet_spec import ClassifierSpec, Preprocessing
from resnet_spec.classifier import DESCRIPTION_KEY, decode, encode

# Characters. A real description has 500, with the names of 21,843 classes half a million; parsed
# JSON takes up to 25 times its length in memory.
LARGEST_DESCRIPTION = 2**20
_NAMES, _CONV_HEAD = "names", "conv_head"  # entries of it


@dataclass(frozen=True)
class Weights:
    """Arrays with torch's axes, and what their source says of them.

    Attributes:
        arrays: by name.
        classifier: the model, None where the source does not say it.
        preprocessing: of the images that the model was trained on, None likewise.
        notes: for the user: wrappers and prefixes that were removed, entries that were left out.
        faults: what is wrong with the source and cannot be seen in the arrays, such as a name
            that is there twice; `convert.models.judge` reports them.
        unsaid: why `Preprocessing` cannot express the source's preprocessing, if so.
        names: what the author of a file called the arrays, by their names here, where these differ;
            in the order of that file.
        has_conv_head: whether the author's head is a convolution of 1x1.
    """

    arrays: Mapping[str, np.ndarray]
    classifier: ClassifierSpec | None
    preprocessing: Preprocessing | None = None
    notes: tuple[str, ...] = field(default=(), kw_only=True, compare=False)
    faults: tuple[str, ...] = field(default=(), kw_only=True, compare=False)
    unsaid: ConversionError | None = field(default=None, kw_only=True, compare=False)
    names: Mapping[str, str] = field(default_factory=dict, kw_only=True, compare=False)
    has_conv_head: bool = field(default=False, kw_only=True, compare=False)

    def check_preprocessing(self) -> None:
        """Raises a ConversionError where the preprocessing does not fit the model."""
        try:
            if self.classifier is not None and self.preprocessing is not None:
                self.preprocessing.check(self.classifier)
        except ValueError as error:
            raise ConversionError(f"this is the preprocessing of another model: {error}") from error


def encode_description(weights: Weights) -> dict[str, str]:
    """The description as the metadata of a file; empty where there is none."""
    more: dict[str, Any] = {}
    if weights.preprocessing is not None:
        more["preprocessing"] = weights.preprocessing.to_json()
    elif weights.classifier is None:
        return {}
    if weights.classifier is not None and weights.names:
        more[_NAMES] = dict(weights.names)
        more |= {_CONV_HEAD: True} if weights.has_conv_head else {}
    text = encode(weights.classifier, **more)
    if len(text) > LARGEST_DESCRIPTION:  # names of 20,000 classes, too
        more.pop(_NAMES, None)
        text = encode(weights.classifier, **more)
    return {DESCRIPTION_KEY: text}


def decode_description(path: Path, metadata: Mapping[Any, Any], num_tensors: int) -> dict[str, Any]:
    """The inverse of `encode_description`: the fields of `Weights` that it holds."""
    text = metadata.get(DESCRIPTION_KEY)
    if text is None:
        return {"classifier": None}
    try:
        if len(text) > LARGEST_DESCRIPTION:
            raise ValueError(f"{len(text)} characters are too many")
        entries = decode(text)
        model, preprocessing = entries["model"], entries.get("preprocessing")
        if model is None and preprocessing is None:
            raise ValueError("it names neither a model nor a preprocessing")
        model = None if model is None else parse_description(model, num_tensors)
        if preprocessing is not None:
            preprocessing = Preprocessing.from_json(preprocessing)
        Weights({}, model, preprocessing).check_preprocessing()
        names = entries.get(_NAMES, {})
        if len({*names.values()}) != len(names) or not all(map(_is_text, names.values())):
            raise ValueError("an author's names are not texts, each for one tensor")
    except Exception as error:  # a hostile description may raise anything
        raise ConversionError(f"{path} describes its model wrongly: {error}") from error
    has_conv_head = entries.get(_CONV_HEAD) is True
    return {
        "classifier": model,
        "preprocessing": preprocessing,
        "names": names,
        "has_conv_head": has_conv_head,
    }


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
