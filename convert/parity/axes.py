"""Where an array has its channels: torch on axis 1, Flax last."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from convert.parity.comparison import measure
from convert.parity.probe import OUTPUT, Sections
from resnet_spec import ResNetSpec


def image_channels(model: Any) -> int | None:
    """Channels of the images that a network takes, where it or its first convolution says so.

    The first one that a module registers need not be the first one that it calls.
    """
    if isinstance(spec := getattr(model, "spec", None), ResNetSpec):
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
    if not expected & {images.shape[1], images.shape[3]}:
        expected = {min(images.shape[1], images.shape[3])}
    fits_first, fits_last = (images.shape[axis] in expected for axis in (1, 3))
    if fits_first and (is_torch or not fits_last):
        return np.moveaxis(images, 1, -1)
    return images


def nearest(
    array: np.ndarray, other: np.ndarray, *, is_output: bool = False
) -> tuple[np.ndarray, bool]:
    """A torch array with the axes of Flax's: as it is, or channels last, and maybe squeezed.

    Axes of one, which a pool may keep, count for nothing. In what a network returns they do, but
    for maps: a loss of (n, 1) and (n,) is another one, as the two are broadcast to (n, n).

    Returns:
        The array, and whether its channels were moved.
    """
    layouts = [(array, False)]
    if array.ndim > 2:
        layouts.append((np.moveaxis(array, 1, -1), True))
    if equal := [each for each in layouts if each[0].shape == other.shape]:
        layouts = equal
    elif array.size == other.size and not (is_output and array.ndim < 3):
        squeezed = other.squeeze().shape
        layouts = [
            (layout.reshape(other.shape), is_moved)
            for layout, is_moved in layouts
            if layout.squeeze().shape == squeezed
        ]
    else:
        layouts = []
    if not layouts:
        return array, False
    return min(layouts, key=lambda each: measure(each[0], other).relative)


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
        is_output = name.partition(".")[0] == OUTPUT
        own[name], is_moved = nearest(own[name], other, is_output=is_output)
        if is_moved:
            moved.add(name)
        for pair in reduced:
            less = pair[side][section]
            array = np.moveaxis(less[name], 1, -1) if is_moved else less[name]
            less[name] = array.reshape(own[name].shape)
    return moved
