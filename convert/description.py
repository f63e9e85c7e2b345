"""Which network a model, a state dict or a file is of."""

import collections
import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np

from convert.arrays import to_tensor
from convert.errors import ConversionError
from resnet_spec import ClassifierSpec
from resnet_spec.classifier import DESCRIPTION_KEY, decode, encode


def describe(model: Any) -> ClassifierSpec:
    """The table's row of either twin, and its head.

    Raises:
        ConversionError: the model is no ResNet of ours, has blocks or shortcuts of its own, was
            edited so that it computes something else, or has a head that is neither the identity
            nor linear.
    """
    spec = getattr(model, "spec", None)
    if spec is None:
        raise ConversionError(
            f"{type(model).__name__} has no row in the table (a block or shortcut of your own?): "
            "use flax_to_torch or torch_to_flax with models that you build yourself"
        )
    if differences := differences_from_row(model):
        raise ConversionError(
            "this network was edited, and computes something else than its row in the table: "
            "set its spec to None, and use flax_to_torch or torch_to_flax with models that you "
            "edit alike",
            differences,
        )
    out_features = getattr(model.head, "out_features", None)
    match type(model.head).__name__:
        case "Identity":
            return ClassifierSpec(spec)
        case "Linear" if isinstance(out_features, int):
            return ClassifierSpec(spec, out_features, getattr(model.head, "bias", None) is not None)
        case other:
            raise ConversionError(
                f"a file describes the identity or a linear head, not {other}: use flax_to_torch "
                "or torch_to_flax with models that you build yourself"
            )


def differences_from_row(model: Any) -> list[str]:
    """By module, where either twin computes something else than the row in its `spec`."""
    if hasattr(model, "state_dict"):
        from torch_resnet import edits
    else:
        from flax_resnet import edits
    return edits.differences_from_row(model)


def parse_description(fields: Any, num_tensors: int) -> ClassifierSpec:
    """The description in a file of so many tensors, which bound what it may describe.

    Raises:
        ValueError: it is no description of a model with at most so many layers.
    """
    depths = fields["network"]["stage_depths"]
    if not all(isinstance(depth, int) for depth in depths) or sum(depths) > num_tensors:
        raise ValueError(f"stages of {depths} blocks in a file of {num_tensors} tensors")
    return ClassifierSpec.from_json(fields)


def as_state_dict(
    arrays: Mapping[str, np.ndarray], classifier: ClassifierSpec | None = None
) -> dict[str, Any]:
    """Torch tensors (arrays, where torch is not installed) with a description, as a state dict."""
    has_torch = importlib.util.find_spec("torch") is not None
    items = ((name, to_tensor(array) if has_torch else array) for name, array in arrays.items())
    state: Any = collections.OrderedDict(items)
    if classifier is not None:
        state._metadata = {"": {DESCRIPTION_KEY: encode(classifier)}}
    return state


def own_metadata(metadata: Any) -> Mapping[Any, Any]:
    """What the `_metadata` of a state dict says of the network, or else of the whole module.

    Inside of another module (`DataParallel`, a Lightning module) its entry has a name.
    """
    entries = metadata if isinstance(metadata, Mapping) else {}
    found = [e for e in entries.values() if isinstance(e, Mapping) and DESCRIPTION_KEY in e]
    own = found[0] if len(found) == 1 else entries.get("")
    return own if isinstance(own, Mapping) else {}


def describe_state(state: Mapping[str, Any]) -> ClassifierSpec | None:
    """Which model a state dict says that it is of; None where it says nothing.

    Raises:
        ConversionError: what it says cannot be read.
    """
    text = own_metadata(getattr(state, "_metadata", None)).get(DESCRIPTION_KEY)
    if text is None:
        return None
    try:
        fields = decode(text)["model"]
        return None if fields is None else parse_description(fields, len(state))
    except Exception as error:  # whatever a damaged description brings about
        raise ConversionError(f"this state dict describes its model wrongly: {error}") from error
