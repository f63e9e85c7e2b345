"""What a state dict or a file of weights says about itself: the text of a `ClassifierSpec`."""

import json
from typing import Any

from resnet_spec.classifier import ClassifierSpec

DESCRIPTION_KEY = "flax_resnet"
"""Where the text lies in a file's metadata, or in `_metadata[""]` of a torch state dict."""
_VERSION = 1


def encode(classifier: ClassifierSpec | None, **more: Any) -> str:
    """The text that describes a model, None for one of foreign names, and `more` entries."""
    model = None if classifier is None else classifier.to_json()
    return json.dumps({"version": _VERSION, "model": model, **more})


def decode(text: str) -> dict[str, Any]:
    """The entries of a description, not yet parsed: `model` is `ClassifierSpec.to_json`'s.

    Raises:
        ValueError: it is no description, or of another version.
    """
    entries = json.loads(text)
    if not isinstance(entries, dict) or "model" not in entries:
        raise ValueError("this does not describe a model")
    if entries.get("version") != _VERSION:
        raise ValueError(
            f"this has format version {entries.get('version')!r}, this program reads {_VERSION}: "
            "update flax-resnet"
        )
    return entries
