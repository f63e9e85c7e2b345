"""Tensors under the names of other packages, and under ours: every one accounted for."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from convert import collector
from convert.arrays import (
    array_problems,
    as_arrays,
    check_mapping,
    compare_shapes,
    is_count,
    is_counter,
)
from convert.description import as_state_dict, describe_state
from convert.errors import ConversionError
from convert.folding import fold, unfold
from convert.layouts import (
    bonsai,
    cifar,
    flax_imagenet,
    haiku,
    keras,
    timm,
    torch_resnet,
    torchvision,
    transformers,
    wide_resnet,
)
from convert.layouts.layout import OURS, Layout, Shapes
from convert.wrappers import (
    TORCHS_PREFIXES,
    common_prefix,
    only_state_dict,
    prefix_problems,
    state_dicts,
    stated_architectures,
    take_prefix,
    unwrap,
    without_training_state,
)
from resnet_spec import ClassifierSpec, ResNetSpec, UnknownNameError

_PACKAGES = (
    *(torchvision, timm, transformers, torch_resnet, cifar, wide_resnet, flax_imagenet, bonsai),
    *(haiku, keras),
)
LAYOUTS: dict[str, Layout] = {
    layout.name: layout for layout in (OURS, *(package.LAYOUT for package in _PACKAGES))
}
HEAD_ALONE = "the head alone does not fit"
_RESET = "reset_counters (--reset-counters) takes them as zero"


def find_layout(name: str) -> Layout:
    """The layout of this name; an UnknownNameError suggests the nearest."""
    if name not in LAYOUTS:
        raise UnknownNameError("layout", name, LAYOUTS)
    return LAYOUTS[name]


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
        tensors: torch, NumPy or JAX arrays by their names in the layout, or trees of dicts such as
            linen's variables and NNX's pure dicts. A training script's dictionary around one state
            dict is unwrapped, and `module.` before all names is removed.
        name: full name of the model in our table, such as `ResNet50`.
        layout: a key of `LAYOUTS`.
        prefix: take only the tensors whose names begin with it, such as `encoder.`, and remove it.
        reset_counters: take a `num_batches_tracked` as zero where it is missing, as in files of
            old torch versions, or is not a count as torch has it; layouts of Flax have none.
        allow_nonfinite: accept NaN, infinite values and negative variances.
        changes: fields of `ResNetSpec` that differ from the network of that name in the layout's
            package, such as `shortcut="identity"` or `bottleneck_stride="1x1"`.

    Returns:
        torch tensors by our names, or NumPy arrays where torch is not installed.

    Raises:
        ConversionError: the layout cannot express the model, or a tensor is missing, left over,
            misshapen, of a wrong dtype or not finite; all are listed, by the layout's names.
        ValueError: the model or the layout is unknown.
    """
    found = find_layout(layout)
    spec = found.network(name, **changes)
    check_mapping(tensors)
    if not found.spelling.is_flax:
        if (inner := only_state_dict(tensors)) is not tensors:
            if problems := timm.architecture_problems(stated_architectures(tensors)):
                raise ConversionError("these tensors are of another network:", problems)
            tensors = inner
        _check_described(tensors, spec, prefix)
    arrays = flatten(tensors, found)
    arrays, _ = take_prefix(arrays, prefix) if prefix else unwrap(arrays)
    if found.spelling.has_collections:
        arrays, _ = without_training_state(arrays)
    try:
        ours, classifier = read_layout(
            as_arrays(arrays),
            spec,
            found,
            reset_counters=reset_counters,
            allow_nonfinite=allow_nonfinite,
        )
    except ConversionError as error:
        if len(several := state_dicts(tensors)) < 2:
            raise
        raise ConversionError(
            f"this holds {len(several)} state dicts, {', '.join(map(repr, several))}: give one"
        ) from error
    ours, _ = fold(ours, classifier.network, found.epsilon)
    return as_state_dict(ours, classifier)


def layout_spec(name: str, layout: str, **changes: Any) -> ResNetSpec:
    """The network of a name as a layout's package has it, with `changes` to its fields.

    Raises:
        ValueError: the model, the layout or a field is unknown, or a value out of range.
    """
    return find_layout(layout).network(name, **changes)


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
        name: as for `from_layout`.
        layout: a key of `LAYOUTS`.
        allow_nonfinite: accept NaN, infinite values and negative variances.
        changes: as for `from_layout`.

    Returns:
        A state dict of torch tensors, or of NumPy arrays where `tensors` are; for the layouts of
        Flax a tree of NumPy arrays as linen (`{"params": ..., "batch_stats": ...}`) or NNX has it.

    Raises: as `from_layout`, and a ConversionError if the tensors say that they are of a network
        that computes something else.
    """
    found = find_layout(layout)
    spec = found.network(name, **changes)
    _check_described(tensors, spec)
    arrays, _ = unwrap(as_arrays(tensors), TORCHS_PREFIXES)
    shapes = {key: array.shape for key, array in arrays.items()}
    classifier = OURS.with_head(spec, shapes)
    if problems := array_problems(arrays, allow_nonfinite):
        misfits = compare_shapes(classifier.tensors(), shapes)
        what = "these tensors are not those of this model:" if misfits else "these are not weights:"
        raise ConversionError(what, [*misfits, *problems])
    theirs = write_layout(arrays, classifier, found)
    if found.spelling.is_flax:
        return nest(theirs, found)
    are_tensors = any(type(t).__module__.startswith("torch") for t in tensors.values())
    return as_state_dict(theirs) if are_tensors else theirs


@collector.paused()
def read_layout(
    tensors: Mapping[str, np.ndarray],
    spec: ResNetSpec,
    layout: Layout,
    *,
    reset_counters: bool = False,
    allow_nonfinite: bool = False,
) -> tuple[dict[str, np.ndarray], ClassifierSpec]:
    """As `from_layout`, for arrays; returns also the description of the model and its head.

    What `convert.folding` takes away is still there, as `stem.conv.bias`.
    """
    layout.check(spec)
    tensors = layout.whole_names(tensors)
    weight, bias = (
        layout.tensor_name(spec, "head", *leaf) for leaf in (("weight", 2), ("bias", 1))
    )
    given = {name: layout.spelling.to_ours(name, array) for name, array in tensors.items()}
    if weight in given and given[weight].shape[2:] == (1, 1):
        given[weight] = given[weight][:, :, 0, 0]
    classifier = layout.with_head(spec, {name: array.shape for name, array in given.items()})
    theirs = layout.tensors(classifier)
    counters = [name for name in classifier.tensors() if is_counter(name)]
    if reset_counters:
        given |= {
            theirs[name]: _zero()
            for name in counters
            if name in theirs and not is_count(given.get(theirs[name]))
        }
    expected = layout.shapes(classifier)
    if problems := _tensor_problems(layout, expected, given, allow_nonfinite):
        path = layout.head_path(spec)
        places = tuple(f"{kind}: {path}" for kind in ("missing", "left over", "shape"))
        if all(problem.startswith(places) for problem in problems):
            save_as = f"save it (a bias of zeros, where it has none) as {weight} and {bias}"
            problems += [HEAD_ALONE, f"to keep the head, {save_as}"]
        raise ConversionError(
            f"these tensors are not this model's in the layout {layout.name}:", problems
        )
    absent = {name: _zero() for name in counters if name not in theirs}
    return {ours: given[their] for ours, their in theirs.items()} | absent, classifier


@collector.paused()
def write_layout(
    tensors: Mapping[str, np.ndarray], classifier: ClassifierSpec, layout: Layout
) -> dict[str, np.ndarray]:
    """As `to_layout`, for arrays of a model that is described rather than named."""
    theirs = layout.tensors(classifier)
    problems = compare_shapes(classifier.tensors(), {n: t.shape for n, t in tensors.items()})
    if problems:
        raise ConversionError("these tensors are not those of this model:", problems)
    tensors = unfold(tensors, classifier.network, layout.epsilon, with_biases=layout.has_conv_bias)
    arrays = {their: tensors[ours] for ours, their in theirs.items()}
    if layout.has_conv_head(classifier.network) and classifier.num_classes is not None:
        arrays[theirs["head.weight"]] = tensors["head.weight"][:, :, None, None]
    return {name: layout.spelling.to_theirs(name, array) for name, array in arrays.items()}


def shape_problems(layout: Layout, expected: Shapes, given: Shapes) -> list[str]:
    """Every tensor that is missing, left over or misshapen, by the layout's names and axes.

    Both shapes have torch's axes.
    """
    if expected == given:
        return []

    def as_theirs(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        # axes of the sizes 2, 3, ...: what a damaged file says may be too large for NumPy
        axes = np.broadcast_to(np.int8(0), tuple(range(2, len(shape) + 2)))
        sizes = layout.spelling.to_theirs(name, axes).shape
        return tuple(1 if size == 1 else shape[size - 2] for size in sizes)

    expected, given = ({n: as_theirs(n, s) for n, s in d.items()} for d in (expected, given))
    return compare_shapes(expected, given)


def _tensor_problems(
    layout: Layout, expected: Shapes, given: Mapping[str, np.ndarray], allow_nonfinite: bool
) -> list[str]:
    """As `shape_problems`, with advice, and every array that is no weight."""
    shapes = {name: array.shape for name, array in given.items()}
    problems = shape_problems(layout, expected, shapes)
    if problems and all(p.startswith("missing") and "num_batches_tracked" in p for p in problems):
        problems.append(f"counters alone are missing: {_RESET}")
    if problems:
        if behind := prefix_problems(expected, given):
            return behind
        problems = [*layout.signs(shapes), *problems]
    if array_problems(given, allow_nonfinite):  # reported with the axes that the file has
        shown = {name: layout.spelling.to_theirs(name, array) for name, array in given.items()}
        problems += array_problems(shown, allow_nonfinite)
    if problems and all("num_batches_tracked should be int64" in problem for problem in problems):
        problems.append(f"only counters are not as torch has them: {_RESET}")
    return problems


def flatten(tree: Mapping[Any, Any], layout: Layout) -> dict[str, Any]:
    """Arrays by full name: `{"params": {"bn_init": ...}}` -> `params/bn_init/scale`."""

    def walk(node: Mapping[Any, Any], path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            inner = (*path, str(key))
            if isinstance(value, Mapping):
                yield from walk(value, inner)
            else:  # which may be a variable, a leaf of `nnx.state`
                leaf = value.get_value() if hasattr(value, "get_value") else value
                yield layout.spelling.separator.join(inner), leaf

    named: dict[str, Any] = {}
    for name, leaf in walk(tree, ()):
        if name in named:
            raise ConversionError(f"two arrays are called {name}")
        named[name] = leaf
    return named


def nest(arrays: Mapping[str, Any], layout: Layout) -> dict[Any, Any]:
    """The inverse of `flatten`; places in a list are numbers, as in NNX's pure dicts."""
    tree: dict[Any, Any] = {}
    for name, array in arrays.items():
        *path, leaf = layout.spelling.parts(name)
        node = tree
        for part in path:
            node = node.setdefault(int(part) if part.isdecimal() else part, {})
        node[leaf] = array
    return tree


def _check_described(tensors: Mapping[str, Any], spec: ResNetSpec, prefix: str = "") -> None:
    """Raises a ConversionError where a twin's state dict says that it is of another network."""
    taken, _ = take_prefix({name: name for name in tensors}, prefix) if prefix else ({}, [])
    described = describe_state(tensors, common_prefix(taken))
    if described is not None and (problems := spec.differences(described.network)):
        raise ConversionError("these tensors are of another network:", problems)


def _zero() -> np.ndarray:
    return np.zeros((), np.int64)
