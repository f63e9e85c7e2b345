"""Arrays together with what they are, and how a file spells that description."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from convert.description import parse_description
from convert.errors import ConversionError
from resnet_spec import ClassifierSpec, Preprocessing
from resnet_spec.classifier import DESCRIPTION_KEY, decode, encode

# A real one has 500 characters, with the names of 21,843 classes half a million; parsed JSON takes
# up to 25 times its length in memory.
LARGEST_DESCRIPTION = 2**20


@dataclass(frozen=True)
class Weights:
    """Arrays with torch's names and axes, and what they are, where the file says it.

    Attributes:
        arrays: by name.
        classifier: the model that they are the weights of, None where nothing says it.
        preprocessing: of the images that the model was trained on, None where nothing says it.
        notes: what a reader should know: wrappers and prefixes taken off, entries left out.
        faults: of the file that they are from, which the arrays do not show, as a name that is
            there twice.
    """

    arrays: Mapping[str, np.ndarray]
    classifier: ClassifierSpec | None
    preprocessing: Preprocessing | None = None
    notes: tuple[str, ...] = field(default=(), kw_only=True, compare=False)
    faults: tuple[str, ...] = field(default=(), kw_only=True, compare=False)

    def check_preprocessing(self) -> None:
        """Raises a ConversionError where the preprocessing is that of another model."""
        try:
            _check(self.classifier, self.preprocessing)
        except ValueError as error:
            raise ConversionError(f"this is the preprocessing of another model: {error}") from error


def encode_description(weights: Weights) -> dict[str, str]:
    """The description as the text that every form of file carries along; empty where none is."""
    more = {}
    if weights.preprocessing is not None:
        more["preprocessing"] = weights.preprocessing.to_json()
    elif weights.classifier is None:
        return {}
    return {DESCRIPTION_KEY: encode(weights.classifier, **more)}


def decode_description(path: Path, metadata: Mapping[Any, Any], num_tensors: int) -> dict[str, Any]:
    """The inverse of `encode_description`: the fields of `Weights` that it holds.

    Raises:
        ConversionError: the description is damaged, too long, or of another version.
    """
    text = metadata.get(DESCRIPTION_KEY)
    if text is None:
        return {"classifier": None}
    try:
        if len(text) > LARGEST_DESCRIPTION:
            raise ValueError(f"{len(text)} characters are too many")
        return _parse(decode(text), num_tensors)
    except Exception as error:  # whatever a hostile description brings about
        raise ConversionError(f"{path} describes its model wrongly: {error}") from error


def _parse(description: Mapping[str, Any], num_tensors: int) -> dict[str, Any]:
    model, preprocessing = description["model"], description.get("preprocessing")
    if model is None and preprocessing is None:
        raise ValueError("it names neither a model nor a preprocessing")
    if model is not None:
        model = parse_description(model, num_tensors)
    if preprocessing is not None:
        preprocessing = Preprocessing.from_json(preprocessing)
    _check(model, preprocessing)
    return {"classifier": model, "preprocessing": preprocessing}


def _check(classifier: ClassifierSpec | None, preprocessing: Preprocessing | None) -> None:
    if classifier is not None and preprocessing is not None:
        preprocessing.check(classifier)
