"""Names that other packages give to the layers of these networks, one file each.

A layout says `(our layer, their layer)` for every layer, and which networks the package has. Both
directions, and the check that nothing is left out, come from it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from convert import collector
from convert.arrays import as_arrays, check_mapping, compare_shapes, is_count, is_counter
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
from convert.layouts.mismatch import array_problems, layout_problems
from convert.layouts.timm_config import architecture_problems
from convert.layouts.trees import flatten, nest
from convert.wrappers import (
    TORCHS_PREFIXES,
    only_state_dict,
    state_dicts,
    stated_architectures,
    take_prefix,
    unwrap,
    without_training_state,
)
from resnet_spec import ClassifierSpec, ResNetSpec, UnknownNameError, find_spec

_FILES = (ours, torchvision, timm, transformers, torch_resnet, cifar, flax_imagenet, bonsai)
HEAD_ALONE = "the head alone does not fit"
_KEEP_IT = "to keep the head, save it (a bias of zeros, where it has none) as"
LAYOUTS: dict[str, Layout] = {file.LAYOUT.name: file.LAYOUT for file in _FILES}


def from_layout(
    tensors: Mapping[str, Any],
    name: str,
    layout: str,
    *,
    prefix: str = "",
    reset_counters: bool = False,
    allow_nonfinite: bool = False,
    **changes: Any,
) -> dict[str, Any]:
    """Tensors of another package under our names: the torch twin's state dict.

    The result says which network it is of: `convert.build` makes either twin of it, and a twin
    that computes something else refuses it.

    Args:
        tensors: torch, NumPy or JAX arrays by their names in the layout; trees of dicts, as linen's
            variables and NNX's pure dicts, too; a training script's dictionary around one state
            dict, and `module.` before all names, are taken off.
        name: full name of the model in our table, such as `ResNet50`.
        layout: a key of `LAYOUTS`.
        prefix: take only the tensors whose names begin so, `encoder.`, and take it off.
        reset_counters: take the `num_batches_tracked` that are missing, as in files of old torch
            versions, or are no counts as torch has them, as zero; layouts of Flax never have them.
        allow_nonfinite: take NaN, infinite values and negative variances, too.
        changes: fields of `ResNetSpec` that differ from the network of that name in the layout's
            package, as `shortcut="identity"` or `bottleneck_stride="1x1"`.

    Returns:
        torch tensors by our names, or NumPy arrays where torch is not installed.

    Raises:
        ConversionError: the layout cannot express the model, or a tensor is missing, left over,
            misshapen, of a wrong dtype or not finite; all are listed, by the layout's names.
        ValueError: the model or the layout is unknown.
    """
    spec = layout_spec(name, layout, **changes)
    found = find_layout(layout)
    check_mapping(tensors)
    if not found.spelling.is_flax:
        if (inner := only_state_dict(tensors)) is not tensors:
            if problems := architecture_problems(stated_architectures(tensors)):
                raise ConversionError("these tensors are of another network:", problems)
            tensors = inner
        _check_described(tensors, spec)
    arrays = flatten(tensors, found)
    arrays, _ = take_prefix(arrays, prefix) if prefix else unwrap(arrays)
    if found.spelling.has_collections:
        arrays, _ = without_training_state(arrays)
    try:
        ours, classifier = read_layout(
            as_arrays(arrays),
            spec,
            layout,
            reset_counters=reset_counters,
            allow_nonfinite=allow_nonfinite,
        )
    except ConversionError as error:
        if len(several := state_dicts(tensors)) < 2:
            raise
        raise ConversionError(
            f"this holds {len(several)} state dicts, {', '.join(map(repr, several))}: give one"
        ) from error
    return as_state_dict(ours, classifier)


def layout_spec(name: str, layout: str, **changes: Any) -> ResNetSpec:
    """The network of a name as a layout's package has it, with `changes` to its fields.

    Raises:
        ValueError: the model, the layout or a field is unknown, or a value out of range.
    """
    adapted = find_layout(layout).adapt(find_spec(name))
    return ResNetSpec.from_json({**adapted.to_json(), **changes})


def to_layout(
    tensors: Mapping[str, Any],
    name: str,
    layout: str,
    *,
    allow_nonfinite: bool = False,
    **changes: Any,
) -> dict[str, Any]:
    """The inverse of `from_layout`: our state dict under the names of another package.

    Args:
        tensors: our state dict, of torch tensors or NumPy arrays.
        name: full name of the model in our table.
        layout: a key of `LAYOUTS`.
        allow_nonfinite: take NaN, infinite values and negative variances, too.
        changes: fields of `ResNetSpec` that differ, as of `from_layout`.

    Returns:
        A state dict of torch tensors, or NumPy arrays where `tensors` are; for the layouts of Flax
        a tree of NumPy arrays as linen (`{"params": ..., "batch_stats": ...}`) or NNX takes it.

    Raises: as `from_layout`, and a ConversionError if the tensors say that they are of a network
        that computes something else.
    """
    spec = layout_spec(name, layout, **changes)
    _check_described(tensors, spec)
    arrays, _ = unwrap(as_arrays(tensors), TORCHS_PREFIXES)
    shapes = {key: array.shape for key, array in arrays.items()}
    classifier = with_head(spec, shapes, "head.weight", "head.bias" in shapes)
    if problems := array_problems(arrays, allow_nonfinite):
        misfits = compare_shapes(classifier.tensors(), shapes)
        what = "these tensors are not those of this model:" if misfits else "these are not weights:"
        raise ConversionError(what, [*misfits, *problems])
    theirs = write_layout(arrays, classifier, layout)
    if find_layout(layout).spelling.is_flax:
        return nest(theirs, find_layout(layout))
    are_tensors = any(type(t).__module__.startswith("torch") for t in tensors.values())
    return as_state_dict(theirs) if are_tensors else theirs


@collector.put_off()
def read_layout(
    tensors: Mapping[str, np.ndarray],
    spec: ResNetSpec,
    layout: str,
    *,
    reset_counters: bool = False,
    allow_nonfinite: bool = False,
) -> tuple[dict[str, np.ndarray], ClassifierSpec]:
    """As `from_layout`, for arrays, with the description of the model and of the head."""
    found = find_layout(layout)
    found.check(spec)
    tensors = found.whole_names(tensors)
    head = dict(found.names(spec))["head"]
    weight, bias = (found.spelling.name(head, *leaf) for leaf in (("weight", 2), ("bias", 1)))
    given = {name: found.spelling.to_ours(name, array) for name, array in tensors.items()}
    if weight in given and given[weight].shape[2:] == (1, 1):
        given[weight] = given[weight][:, :, 0, 0]
    has_bias = bias in given or not found.may_lack_bias
    classifier = with_head(spec, {n: a.shape for n, a in given.items()}, weight, has_bias)
    theirs = found.tensors(classifier)
    counters = [name for name in classifier.tensors() if is_counter(name)]
    if reset_counters:
        given |= {
            theirs[name]: _zero()
            for name in counters
            if name in theirs and not is_count(given.get(theirs[name]))
        }
    expected = {theirs[n]: shape for n, shape in classifier.tensors().items() if n in theirs}
    if problems := layout_problems(found, expected, given, allow_nonfinite=allow_nonfinite):
        path = head_path(found, spec)
        places = [f"{kind}: {path}" for kind in ("missing", "left over", "shape")]
        if all(problem.startswith(tuple(places)) for problem in problems):
            problems += [HEAD_ALONE, f"{_KEEP_IT} {weight} and {bias}"]
        raise ConversionError(
            f"these tensors are not this model's in the layout {layout}:", problems
        )
    absent = {name: _zero() for name in counters if name not in theirs}
    return {ours: given[their] for ours, their in theirs.items()} | absent, classifier


def head_path(layout: Layout, spec: ResNetSpec) -> str:
    """What the names of a head begin with in a layout, whatever is within it: `fc.`."""
    weight = layout.spelling.name(dict(layout.names(spec))["head"], "weight", 2)
    parts = weight.split(layout.spelling.separator)[:-1]
    while parts[-1].isdigit():  # transformers' is the second of `classifier`
        parts.pop()
    return layout.spelling.separator.join([*parts, ""])


@collector.put_off()
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


def with_channels(spec: ResNetSpec, tensors: Mapping[str, np.ndarray], layout: str) -> ResNetSpec:
    """A network for images of as many channels as the first convolution that is there takes."""
    found = find_layout(layout)
    tensors = found.whole_names(tensors)
    stem = found.spelling.name(dict(found.names(spec))["stem.conv"], "weight", 4)
    if stem not in tensors or tensors[stem].ndim != 4:
        return spec
    in_planes = found.spelling.to_ours(stem, tensors[stem]).shape[1]
    return dataclasses.replace(spec, in_planes=max(in_planes, 1))


def find_layout(layout: str) -> Layout:
    """The layout of this name.

    Raises:
        UnknownNameError: there is none; the message offers the nearest.
    """
    if layout not in LAYOUTS:
        raise UnknownNameError("layout", layout, LAYOUTS)
    return LAYOUTS[layout]


def _check_described(tensors: Mapping[str, Any], spec: ResNetSpec) -> None:
    """Raises a ConversionError where a twin's state dict says that it is of another network."""
    described = describe_state(tensors)
    if described is not None and (problems := spec.differences(described.network)):
        raise ConversionError("these tensors are of another network:", problems)


def _zero() -> np.ndarray:
    return np.zeros((), np.int64)


def with_head(
    spec: ResNetSpec, shapes: Mapping[str, Any], weight: str, has_bias: bool
) -> ClassifierSpec:
    """The description with the head that is there; `weight` is its name."""
    if len(shape := shapes.get(weight, ())) != 2:
        return ClassifierSpec(spec)
    return ClassifierSpec(spec, int(shape[0]), has_bias)
