"""What a file of weights says about itself, as the one line of JSON that it carries."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from convert.errors import ConversionError
from convert.models import parse_description
from resnet_spec import ClassifierSpec, Preprocessing

KEY = "flax_resnet"
_FORMAT_VERSION = 1


class Description(NamedTuple):
    """The model and its preprocessing; None where the file does not say it."""

    classifier: ClassifierSpec | None = None
    preprocessing: Preprocessing | None = None


def encode(description: Description) -> dict[str, str]:
    """The description as an entry of a file's metadata; no entry where there is none."""
    parts = (("model", description.classifier), ("preprocessing", description.preprocessing))
    fields = {name: part.to_json() for name, part in parts if part is not None}
    return {KEY: json.dumps({"version": _FORMAT_VERSION, **fields})} if fields else {}


def decode(path: Path, metadata: Any, num_tensors: int) -> Description:
    """The description in the metadata of a file of so many tensors.

    Raises:
        ConversionError: it is damaged, or of a newer format.
    """
    text = metadata.get(KEY) if isinstance(metadata, Mapping) else None
    if text is None:
        return Description()
    try:
        fields = json.loads(text)
        version = fields["version"]
        if version == _FORMAT_VERSION:
            return _parse(fields, num_tensors)
    except Exception as error:  # whatever a hostile description brings about
        raise ConversionError(f"{path} describes its model wrongly: {error}") from error
    raise ConversionError(
        f"{path} has format version {version}, this program reads {_FORMAT_VERSION}: "
        "update flax-resnet"
    )


def check_preprocessing(description: Description) -> None:
    """Raises a ConversionError where the preprocessing is of another model."""
    classifier, preprocessing = description
    if classifier is not None and preprocessing is not None:
        try:
            preprocessing.check(classifier)
        except ValueError as error:
            raise ConversionError(f"this is the preprocessing of another model: {error}") from error


def _parse(fields: Mapping[str, Any], num_tensors: int) -> Description:
    if not {"model", "preprocessing"} & set(fields):
        raise ValueError("it names neither a model nor a preprocessing")
    model, preprocessing = fields.get("model"), fields.get("preprocessing")
    description = Description(
        None if model is None else parse_description(model, num_tensors),
        None if preprocessing is None else Preprocessing.from_json(preprocessing),
    )
    check_preprocessing(description)
    return description
