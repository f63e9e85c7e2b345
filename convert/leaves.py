"""How one array is spelled: Flax's leaf name and axes, and torch's."""

import numpy as np

# Flax calls a convolution's weight and a normalisation's scale by different names, torch does not.
_TORCH_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}


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
    """The inverse of `torch_name` for an array of so many axes."""
    layer, _, leaf = name.rpartition(".")
    leaf = flax_leaf(leaf, num_axes)
    return f"{layer}.{leaf}" if layer else leaf


def to_torch(name: str, array: np.ndarray) -> np.ndarray:
    """A Flax array with torch's axes: a view, but for the counter of batches, int64 in torch."""
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
