"""Names that other packages give to the layers of these networks, one file each.

A layout is a function `names(spec)` that yields `(our layer, their layer)` for every layer, or
raises a ConversionError where the packages' network is a different one. Both directions, and the
check that nothing is left out, come from it.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from convert.arrays import compare_shapes, to_tensor
from convert.errors import ConversionError
from convert.layouts import ours, torch_resnet, torchvision
from resnet_spec import ClassifierSpec, ResNetSpec, UnknownNameError, find_spec

Layout = Callable[[ResNetSpec], Iterator[tuple[str, str]]]

LAYOUTS: dict[str, Layout] = {
    "flax-resnet": ours.names,
    "torch-resnet": torch_resnet.names,
    "torchvision": torchvision.names,
}
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

    Args:
        tensors: torch tensors or NumPy arrays by their names in the layout.
        name: full name of the model in our table, such as `ResNet50`.
        layout: a key of `LAYOUTS`.
        reset_counters: take the `num_batches_tracked` that are missing, as in files of old torch
            versions, as zero.
        changes: fields of `ResNetSpec` that differ from the table's row, as `shortcut="identity"`.

    Raises:
        ConversionError: the layout cannot express the model, or a tensor is missing, left over or
            misshapen; all of them are listed, by the layout's names.
        ValueError: the model or the layout is unknown.
    """
    spec = _changed(find_spec(name), changes)
    return read_layout(tensors, spec, layout, reset_counters=reset_counters)[0]


def read_layout(
    tensors: Mapping[str, Any], spec: ResNetSpec, layout: str, *, reset_counters: bool = False
) -> tuple[dict[str, Any], ClassifierSpec]:
    """As `from_layout`, with the description of the model and of the head that was found."""
    names = find_layout(layout)
    classifier = _with_head(spec, tensors, dict(names(spec))["head"])
    theirs = _tensor_names(classifier, names)
    given = dict(tensors)
    if reset_counters:
        zeros = {t: _zero_counter(tensors) for t in theirs.values() if t.endswith(_COUNTER)}
        given = {**zeros, **given}
    problems = compare_shapes(
        {theirs[ours]: shape for ours, shape in classifier.tensors().items()},
        {their: tuple(tensor.shape) for their, tensor in given.items()},
    )
    if problems:
        if all(p.startswith("missing") and _COUNTER in p for p in problems):
            problems.append("counters alone are missing: reset_counters takes them as zero")
        raise ConversionError(
            f"these tensors are not this model's in the layout {layout}:", problems
        )
    return {ours: given[their] for ours, their in theirs.items()}, classifier


def to_layout(tensors: Mapping[str, Any], name: str, layout: str, **changes: Any) -> dict[str, Any]:
    """The inverse of `from_layout`: our state dict under the names of another package.

    Raises: as `from_layout`.
    """
    spec = _changed(find_spec(name), changes)
    return write_layout(tensors, _with_head(spec, tensors, "head"), layout)


def write_layout(
    tensors: Mapping[str, Any], classifier: ClassifierSpec, layout: str
) -> dict[str, Any]:
    """As `to_layout`, for a model that is described rather than named."""
    theirs = _tensor_names(classifier, find_layout(layout))
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    problems = compare_shapes(classifier.tensors(), given)
    if problems:
        raise ConversionError("these tensors are not those of this model:", problems)
    return {their: tensors[ours] for ours, their in theirs.items()}


def find_layout(layout: str) -> Layout:
    """The layout of this name.

    Raises:
        UnknownNameError: there is none; the message offers the nearest.
    """
    if layout not in LAYOUTS:
        raise UnknownNameError("layout", layout, LAYOUTS)
    return LAYOUTS[layout]


def _changed(spec: ResNetSpec, changes: Mapping[str, Any]) -> ResNetSpec:
    return ResNetSpec.from_json({**spec.to_json(), **changes})


def _tensor_names(classifier: ClassifierSpec, names: Layout) -> dict[str, str]:
    """Our name of every tensor -> theirs."""
    layers = dict(names(classifier.network))
    return {
        f"{path}.{leaf}": f"{layers[path]}.{leaf}"
        for path, shapes in classifier.layers()
        for leaf in shapes
    }


def _zero_counter(tensors: Mapping[str, Any]) -> Any:
    """A counter of batches at zero, of the tensors' own kind."""
    zero = np.zeros((), np.int64)
    kinds = {type(tensor).__module__.partition(".")[0] for tensor in tensors.values()}
    return to_tensor(zero) if "torch" in kinds else zero


def _with_head(spec: ResNetSpec, tensors: Mapping[str, Any], head: str) -> ClassifierSpec:
    weight = tensors.get(f"{head}.weight")
    if weight is None or len(weight.shape) != 2:
        return ClassifierSpec(spec)
    return ClassifierSpec(spec, int(weight.shape[0]), f"{head}.bias" in tensors)
