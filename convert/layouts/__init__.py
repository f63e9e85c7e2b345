"""Names that other packages give to the layers of these networks, one file each.

A layout says `(our layer, their layer)` for every layer, and which networks the package has. Both
directions, and the check that nothing is left out, come from it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from convert.arrays import compare_shapes, to_numpy
from convert.description import as_state_dict, describe_state
from convert.errors import ConversionError
from convert.layouts import (
    bonsai,
    cifar,
    flax_imagenet,
    ours,
    timm,
    torch_resnet,
    torchvision,
    transformers,
)
from convert.layouts.layout import Layout
from convert.layouts.trees import flatten, nest
from resnet_spec import ClassifierSpec, ResNetSpec, UnknownNameError, find_spec

_FILES = (ours, torchvision, timm, transformers, torch_resnet, cifar, flax_imagenet, bonsai)
LAYOUTS: dict[str, Layout] = {file.LAYOUT.name: file.LAYOUT for file in _FILES}
_COUNTER = "num_batches_tracked"


def from_layout(
    tensors: Mapping[str, Any],
    name: str,
    layout: str,
    *,
    reset_counters: bool = False,
    **changes: Any,
) -> dict[str, Any]:
    """Tensors of another package under our names: the torch twin's state dict.

    The result says which network it is of: `convert.build` makes either twin of it, and a twin
    that computes something else refuses it.

    Args:
        tensors: torch, NumPy or JAX arrays by their names in the layout; trees of dicts, as linen's
            variables and NNX's pure dicts, too.
        name: full name of the model in our table, such as `ResNet50`.
        layout: a key of `LAYOUTS`.
        reset_counters: take the `num_batches_tracked` that are missing, as in files of old torch
            versions, as zero; layouts of Flax never have them.
        changes: fields of `ResNetSpec` that differ from the network of that name in the layout's
            package, as `shortcut="identity"` or `bottleneck_stride="1x1"`.

    Returns:
        torch tensors by our names, or NumPy arrays where torch is not installed.

    Raises:
        ConversionError: the layout cannot express the model, or a tensor is missing, left over or
            misshapen; all of them are listed, by the layout's names.
        ValueError: the model or the layout is unknown.
    """
    spec = layout_spec(name, layout, **changes)
    arrays = {their: to_numpy(t) for their, t in flatten(tensors, find_layout(layout)).items()}
    ours, classifier = read_layout(arrays, spec, layout, reset_counters=reset_counters)
    return as_state_dict(ours, classifier)


def layout_spec(name: str, layout: str, **changes: Any) -> ResNetSpec:
    """The network of a name as a layout's package has it, with `changes` to its fields.

    Raises:
        ValueError: the model, the layout or a field is unknown, or a value out of range.
    """
    adapted = find_layout(layout).adapt(find_spec(name))
    return ResNetSpec.from_json({**adapted.to_json(), **changes})


def to_layout(tensors: Mapping[str, Any], name: str, layout: str, **changes: Any) -> dict[str, Any]:
    """The inverse of `from_layout`: our state dict under the names of another package.

    Args:
        tensors: our state dict, of torch tensors or NumPy arrays.
        name: full name of the model in our table.
        layout: a key of `LAYOUTS`.
        changes: fields of `ResNetSpec` that differ, as of `from_layout`.

    Returns:
        A state dict of torch tensors, or NumPy arrays where `tensors` are; for the layouts of Flax
        a tree of NumPy arrays as linen (`{"params": ..., "batch_stats": ...}`) or NNX takes it.

    Raises: as `from_layout`, and a ConversionError if the tensors say that they are of a network
        that computes something else.
    """
    spec = layout_spec(name, layout, **changes)
    if (described := describe_state(tensors)) is not None and (
        problems := spec.differences(described.network)
    ):
        raise ConversionError("these tensors are of another network:", problems)
    classifier = _with_head(spec, {key: t.shape for key, t in tensors.items()}, "head.weight")
    arrays = {key: to_numpy(tensor) for key, tensor in tensors.items()}
    theirs = write_layout(arrays, classifier, layout)
    if find_layout(layout).spelling.is_flax:
        return nest(theirs, find_layout(layout))
    are_tensors = any(type(t).__module__.startswith("torch") for t in tensors.values())
    return as_state_dict(theirs) if are_tensors else theirs


def read_layout(
    tensors: Mapping[str, np.ndarray],
    spec: ResNetSpec,
    layout: str,
    *,
    reset_counters: bool = False,
) -> tuple[dict[str, np.ndarray], ClassifierSpec]:
    """As `from_layout`, for arrays, with the description of the model and of the head."""
    found = find_layout(layout)
    found.check(spec)
    head = dict(found.names(spec))["head"]
    weight = found.spelling.name(head, "weight", 2)
    given = {name: found.spelling.to_ours(name, array) for name, array in tensors.items()}
    if weight in given and given[weight].ndim == 4 and given[weight].shape[2:] == (1, 1):
        given[weight] = given[weight][:, :, 0, 0]
    shapes = {name: array.shape for name, array in given.items()}
    bias = found.spelling.name(head, "bias", 1)
    classifier = _with_head(spec, shapes, weight, bias)
    theirs = found.tensors(classifier)
    counters = {name: () for name in classifier.tensors() if name.endswith(_COUNTER)}
    if reset_counters:
        given = {
            theirs[name]: np.zeros((), np.int64) for name in counters if name in theirs
        } | given
    problems = compare_shapes(
        {theirs[name]: shape for name, shape in classifier.tensors().items() if name in theirs},
        {name: array.shape for name, array in given.items()},
    )
    if problems:
        if all(p.startswith("missing") and _COUNTER in p for p in problems):
            problems.append("counters alone are missing: reset_counters takes them as zero")
        raise ConversionError(
            f"these tensors are not this model's in the layout {layout}:",
            [*found.signs({name: array.shape for name, array in tensors.items()}), *problems],
        )
    absent = {name: np.zeros((), np.int64) for name in counters if name not in theirs}
    return {ours: given[their] for ours, their in theirs.items()} | absent, classifier


def write_layout(
    tensors: Mapping[str, np.ndarray], classifier: ClassifierSpec, layout: str
) -> dict[str, np.ndarray]:
    """As `to_layout`, for arrays of a model that is described rather than named."""
    found = find_layout(layout)
    theirs = found.tensors(classifier)
    problems = compare_shapes(classifier.tensors(), {n: t.shape for n, t in tensors.items()})
    if problems:
        raise ConversionError("these tensors are not those of this model:", problems)
    arrays = {their: tensors[ours] for ours, their in theirs.items()}
    if found.has_conv_head(classifier.network) and classifier.num_classes is not None:
        arrays[theirs["head.weight"]] = tensors["head.weight"][:, :, None, None]
    return {name: found.spelling.to_theirs(name, array) for name, array in arrays.items()}


def find_layout(layout: str) -> Layout:
    """The layout of this name.

    Raises:
        UnknownNameError: there is none; the message offers the nearest.
    """
    if layout not in LAYOUTS:
        raise UnknownNameError("layout", layout, LAYOUTS)
    return LAYOUTS[layout]


def _with_head(
    spec: ResNetSpec, shapes: Mapping[str, Any], weight: str, bias: str = "head.bias"
) -> ClassifierSpec:
    """The description with the head that is there; `weight` and `bias` are its names."""
    if len(shape := shapes.get(weight, ())) != 2:
        return ClassifierSpec(spec)
    return ClassifierSpec(spec, int(shape[0]), bias in shapes)
