"""Where an array has its channels: torch on axis 1, Flax last."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from convert.parity.comparison import measure
from convert.parity.probe import Sections


def image_channels(model: Any) -> int | None:
    """Channels of the images that a network takes, where it or its first convolution says so."""
    if spec := getattr(model, "spec", None):
        return spec.in_planes
    if hasattr(model, "state_dict"):
        for module in model.modules():
            if hasattr(module, "in_channels") and hasattr(module, "kernel_size"):
                return module.in_channels
    return None


def channels_last(images: np.ndarray, models: Sequence[Any], *, is_torch: bool) -> np.ndarray:
    """Images as (n, h, w, c), given in that layout or as (n, c, h, w); other batches unchanged."""
    if images.ndim != 4:
        return images
    expected = {count for model in models if (count := image_channels(model)) is not None}
    expected = expected or {min(images.shape[1], images.shape[3])}
    fits_first, fits_last = (images.shape[axis] in expected for axis in (1, 3))
    if fits_first and (is_torch or not fits_last):
        return np.moveaxis(images, 1, -1)
    return images


def nearest(array: np.ndarray, other: np.ndarray) -> np.ndarray:
    """A torch array with the axes of Flax's: as it is, or channels last, and maybe squeezed.

    Returns `array` itself if it is taken as it is.
    """
    layouts = [array] if array.ndim < 3 else [array, np.moveaxis(array, 1, -1)]
    if equal := [layout for layout in layouts if layout.shape == other.shape]:
        layouts = equal
    elif array.size == other.size:  # a pool may keep axes of one
        squeezed = other.squeeze().shape
        layouts = [a.reshape(other.shape) for a in layouts if a.squeeze().shape == squeezed]
    else:
        layouts = []
    if len(layouts) < 2:
        return layouts[0] if layouts else array
    return min(layouts, key=lambda layout: measure(layout, other).relative)


def turn(
    exact: tuple[Sections, Sections],
    reduced: Sequence[tuple[Sections, Sections]],
    side: int,
    section: str,
) -> set[str]:
    """Gives the outputs of torch's layers, of the two the one at `side`, the axes of Flax's.

    The layout that is nearer in float64 is taken in all precisions. No layout hides a difference:
    where one agrees, it is the right one. Returns the layers whose channels were moved.
    """
    moved: set[str] = set()
    own, others = exact[side][section], exact[1 - side][section]
    for name, other in others.items():
        if name not in own:
            continue
        array = own[name]
        turned = own[name] = nearest(array, other)
        if turned is array:
            continue
        moved.add(name)
        for pair in reduced:
            less = pair[side][section]
            less[name] = np.moveaxis(less[name], 1, -1).reshape(turned.shape)
    return moved
