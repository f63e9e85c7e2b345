"""Arrays together with what they are, and how a file spells that description."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from convert.errors import ConversionError
from convert.models import parse_description
from resnet_spec import ClassifierSpec

_METADATA_KEY = "flax_resnet"
_FORMAT_VERSION = 1
# A real one has 500 characters; parsed JSON takes up to 25 times its length in memory.
_LARGEST_DESCRIPTION = 2**20


@dataclass(frozen=True)
class Weights:
    """Arrays with torch's names and axes, and what they are, where the file says it.

    Attributes:
        arrays: by name.
        classifier: the model that they are the weights of, None where nothing says it.
        notes: what a reader should know: wrappers and prefixes taken off, entries left out.
    """

    arrays: Mapping[str, np.ndarray]
    classifier: ClassifierSpec | None
    notes: tuple[str, ...] = field(default=(), kw_only=True, compare=False)


def encode_description(weights: Weights) -> dict[str, str]:
    """The description as the text that every form of file carries along; empty where none is."""
    if weights.classifier is None:
        return {}
    description = {"version": _FORMAT_VERSION, "model": weights.classifier.to_json()}
    return {_METADATA_KEY: json.dumps(description)}


def decode_description(path: Path, metadata: Mapping[Any, Any], num_tensors: int) -> dict[str, Any]:
    """The inverse of `encode_description`: the fields of `Weights` that it holds.

    Raises:
        ConversionError: the description is damaged, too long, or of a newer version.
    """
    text = metadata.get(_METADATA_KEY)
    if text is None:
        return {"classifier": None}
    try:
        if len(text) > _LARGEST_DESCRIPTION:
            raise ValueError(f"{len(text)} characters are too many")
        description = json.loads(text)
        version = description["version"]
        if version == _FORMAT_VERSION:
            return {"classifier": parse_description(description["model"], num_tensors)}
    except Exception as error:  # whatever a hostile description brings about
        raise ConversionError(f"{path} describes its model wrongly: {error}") from error
    raise ConversionError(
        f"{path} has format version {str(version)[:50]}, this program reads {_FORMAT_VERSION}: "
        "update flax-resnet"
    )
