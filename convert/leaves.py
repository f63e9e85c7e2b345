"""Names and axes of one array, in Flax and in torch."""

from collections.abc import Mapping

import numpy as np

from convert.errors import ConversionError

# Flax has two names for a convolution's weight and a normalisation's scale, torch has one.
_TORCH_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
OF_NORMS = ("scale", "mean", "var")


def torch_name(name: str) -> str:
    """`stem.conv.kernel` -> `stem.conv.weight`."""
    layer, _, leaf = name.rpartition(".")
    leaf = _TORCH_LEAVES.get(leaf, leaf)
    return f"{layer}.{leaf}" if layer else leaf


def flax_leaf(leaf: str, num_axes: int) -> str:
    """Torch's `weight` is Flax's `kernel`, or `scale` where it has a single axis."""
    if leaf == "weight":
        return "kernel" if num_axes > 1 else "scale"
    return next((flax for flax, torch in _TORCH_LEAVES.items() if torch == leaf), leaf)


def flax_name(name: str, num_axes: int) -> str:
    """The inverse of `torch_name`; the number of axes tells a kernel from a scale."""
    layer, _, leaf = name.rpartition(".")
    leaf = flax_leaf(leaf, num_axes)
    return f"{layer}.{leaf}" if layer else leaf


def to_torch(name: str, array: np.ndarray) -> np.ndarray:
    """A Flax array with torch's axes: a view, except for the counter of batches, int64 in torch."""
    match name.rpartition(".")[2], array.ndim:
        case "kernel", ndim if ndim >= 2:  # (h, w, in, out) -> (out, in, h, w), (in, out) -> ...
            return array.transpose(ndim - 1, ndim - 2, *range(ndim - 2))
        case "num_batches_tracked", 0:
            return array.astype(np.int64)
    return array


def to_flax(name: str, array: np.ndarray) -> np.ndarray:
    """The inverse of `to_torch`; `name` is Flax's."""
    match name.rpartition(".")[2], array.ndim:
        case "kernel", ndim if ndim >= 2:  # (out, in, h, w) -> (h, w, in, out), (out, in) -> ...
            return array.transpose(*range(2, ndim), 1, 0)
    return array


def as_torch(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays with Flax's names and axes in torch's, as views where possible."""
    return {torch_name(name): to_torch(name, array) for name, array in arrays.items()}


def as_flax(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays with torch's names and axes in Flax's, copied; counters become int32, if they fit."""
    named: dict[str, np.ndarray] = {}
    too_large = []
    for torch_name, array in arrays.items():
        name = flax_name(torch_name, array.ndim)
        if np.issubdtype(array.dtype, np.integer):
            if array.max() > np.iinfo(np.int32).max:
                too_large.append(f"{torch_name} is {array.max()}")
            array = array.astype(np.int32)
        named[name] = np.array(to_flax(name, array), order="C")
    if too_large:
        raise ConversionError("Flax counts batches in 32 bits:", too_large)
    return named
