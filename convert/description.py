"""Which network a model or a state dict is of, and how they say it."""

import collections
import importlib.util
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from convert.arrays import to_tensor
from convert.errors import ConversionError
from resnet_spec import ClassifierSpec
from resnet_spec.classifier import DESCRIPTION_KEY, decode, encode


def describe(model: Any) -> ClassifierSpec:
    """The table's row of either twin, and its head.

    Raises:
        ConversionError: the model is no ResNet of ours, has its own blocks or shortcuts, was
            edited so that it computes something else, or its head is neither the identity nor
            linear.
    """
    spec = getattr(model, "spec", None)
    if spec is None:
        raise ConversionError(
            f"{type(model).__name__} has no row in the table (a block or shortcut of your own?): "
            "use flax_to_torch or torch_to_flax with models that you build yourself"
        )
    if differences := differences_from_row(model):
        raise ConversionError(
            "this network was edited and no longer computes what its row in the table says: "
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
    """Where either twin computes something else than the row in its `spec`, by module."""
    if hasattr(model, "state_dict"):
        from torch_resnet import edits
    else:
        from flax_resnet import edits
    return edits.differences_from_row(model)


def parse_description(fields: Any, num_tensors: int) -> ClassifierSpec:
    """The description in a file of `num_tensors` tensors; no model has more blocks than that."""
    depths = fields["network"]["stage_depths"]
    if not all(isinstance(depth, int) for depth in depths) or sum(depths) > num_tensors:
        raise ValueError(f"stages of {depths} blocks in a file of {num_tensors} tensors")
    return ClassifierSpec.from_json(fields)


def as_state_dict(
    arrays: Mapping[str, np.ndarray], classifier: ClassifierSpec | None = None
) -> dict[str, Any]:
    """A state dict of torch tensors (of arrays where torch is not installed) with a description."""
    has_torch = importlib.util.find_spec("torch") is not None
    items = ((name, to_tensor(array) if has_torch else array) for name, array in arrays.items())
    state: Any = collections.OrderedDict(items)
    if classifier is not None:
        state._metadata = {"": {DESCRIPTION_KEY: encode(classifier)}}
    return state


def own_metadata(metadata: Any) -> Mapping[Any, Any]:
    """The entry of a state dict's `_metadata` that describes our network, else the module's own."""
    entries = metadata if isinstance(metadata, Mapping) else {}
    own = only_description(described_parts(entries)) or entries.get("")
    return own if isinstance(own, Mapping) else {}


def described_parts(
    metadata: Any, names: Collection[str] = (), part: str = ""
) -> dict[str, Mapping[Any, Any]]:
    """The entries of a state dict's `_metadata` that describe networks in a part of it.

    Inside another module (`DataParallel`, a Lightning module, a student beside its teacher) each
    network has an entry with its path.

    Args:
        metadata: may be anything, in a hostile file.
        names: of the state dict's tensors.
        part: what the names of the part begin with, `encoder_q.`.

    Returns:
        The entries, by what the names of their networks begin with. Only that of the part itself,
        where there is one. A description of tensors that are not in the part is left out.
    """
    entries = metadata.items() if isinstance(metadata, Mapping) else ()
    found = {
        f"{path}." if path else "": entry
        for path, entry in entries
        if isinstance(path, str) and isinstance(entry, Mapping) and DESCRIPTION_KEY in entry
    }
    if part in found:
        return {part: found[part]}
    inside = {prefix: entry for prefix, entry in found.items() if prefix.startswith(part)}
    if inside:
        return inside
    return {  # the author has changed the names since
        prefix: entry
        for prefix, entry in found.items()
        if not prefix or not any(name.startswith(prefix) for name in names)
    }


def only_description(parts: Mapping[str, Mapping[Any, Any]]) -> Mapping[Any, Any] | None:
    """The entry of `described_parts`; None where there is none, or two are of other networks."""
    if not parts:
        return None
    first, *others = parts.values()
    is_only = all(other[DESCRIPTION_KEY] == first[DESCRIPTION_KEY] for other in others)
    return first if is_only else None


def describe_state(state: Mapping[str, Any], part: str = "") -> ClassifierSpec | None:
    """The model that a state dict says it is of; None where it says nothing.

    `part` is what the names of the tensors in question begin with.
    """
    found = only_description(described_parts(getattr(state, "_metadata", None), state, part))
    if found is None:
        return None
    text = found[DESCRIPTION_KEY]
    try:
        fields = decode(text)["model"]
        return None if fields is None else parse_description(fields, len(state))
    except Exception as error:  # a damaged description may raise anything
        raise ConversionError(f"this state dict describes its model wrongly: {error}") from error
