"""What other networks have and ours have not, folded away where evaluation stays the same.

A bias before a BatchNorm is a constant that its running mean takes off again; another epsilon is a
constant in its running variance; a pruned weight is its product with a mask.
"""

from collections.abc import Mapping

import numpy as np

from convert.arrays import is_floating
from resnet_spec import ResNetSpec

_ORIGINAL, _MASK = "_orig", "_mask"  # what torch's pruning adds to a tensor's name
EPSILON = 1e-5  # of every BatchNorm of both twins


def fold(
    arrays: Mapping[str, np.ndarray],
    spec: ResNetSpec,
    epsilon: float | Mapping[str, float] = EPSILON,
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Arrays of a network of ours that computes the same in evaluation, and notes that say so.

    Computed in float64 and rounded once to the dtype of each array: exact to that rounding.

    Args:
        arrays: all of the network, under our names with torch's axes; a convolution of any kind may
            have a bias, `stem.conv.bias` or `stages.0.0.shortcut.conv.bias`.
        spec: the network.
        epsilon: of all BatchNorms, or of each by its path, `stem.bn`; 1e-5 for those left out.
    """
    folded = dict(arrays)
    biases = {path: folded.pop(f"{path}.bias", None) for path, _ in spec.convolutions()}
    num_biases = sum(bias is not None for bias in biases.values())
    if num_biases:
        for norm, shift in _shifts(spec, biases).items():
            _change(folded, f"{norm}.running_mean", -shift)
    others = dict[str, float]()
    for norm, _ in spec.norms():
        theirs = epsilon.get(norm, EPSILON) if isinstance(epsilon, Mapping) else epsilon
        if theirs != EPSILON:
            others[norm] = theirs
            _change_epsilon(folded, norm, theirs, EPSILON)
    notes = []
    if num_biases:
        notes.append(f"folded into running means: the biases of {num_biases} convolutions")
    if others:
        values = ", ".join(f"{value:g}" for value in sorted({*others.values()}))
        notes.append(f"folded into running variances: BatchNorm's epsilon {values}, here 1e-5")
    if notes:
        notes.append("evaluation is the same; further training is not, as it lacks what is folded")
    return folded, tuple(notes)


def unfold(
    arrays: Mapping[str, np.ndarray], spec: ResNetSpec, epsilon: float, *, with_biases: bool
) -> Mapping[str, np.ndarray]:
    """The inverse of `fold`: for BatchNorms of another epsilon, and with biases of zero."""
    unfolded = dict(arrays)
    if epsilon != EPSILON:
        for norm, _ in spec.norms():
            _change_epsilon(unfolded, norm, EPSILON, epsilon)
    if with_biases:
        for path, conv in spec.convolutions():
            unfolded[f"{path}.bias"] = np.zeros(conv.out_planes, arrays[f"{path}.weight"].dtype)
    return unfolded


def _shifts(spec: ResNetSpec, biases: Mapping[str, np.ndarray | None]) -> dict[str, np.ndarray]:
    """What the biases together add to the input of each BatchNorm, by its path."""

    def bias(path: str, planes: int) -> np.ndarray:
        found = biases[path]
        return np.zeros(planes) if found is None else found.astype(np.float64)

    stream = bias("stem.conv", spec.stem_planes)  # between blocks: pre-activation only
    shifts = {} if spec.preact else {"stem.bn": stream}
    for block in spec.blocks():
        convs = [
            bias(f"{block.path}.conv{number}", conv.out_planes)
            for number, conv in enumerate(block.convs, start=1)
        ]
        before = [stream, *convs[:-1]] if spec.preact else convs
        shifts |= {f"{block.path}.bn{n}": shift for n, shift in enumerate(before, start=1)}
        if block.shortcut is not None:
            shortcut = bias(f"{block.path}.shortcut.conv", block.out_planes)
        else:  # of which option A hands on the old channels, and zeros as new ones
            new = block.out_planes - block.in_planes
            first = new // 2 if spec.shortcut == "centred_identity" else 0
            shortcut = np.pad(stream, (first, new - first)) if spec.preact else stream
        if block.has_shortcut_norm:
            shifts[f"{block.path}.shortcut_bn"] = shortcut
        stream = convs[-1] + shortcut if spec.preact else stream
    return {**shifts, "norm": stream} if spec.preact else shifts


def _change(arrays: dict[str, np.ndarray], name: str, change: np.ndarray | float) -> None:
    arrays[name] = (arrays[name].astype(np.float64) + change).astype(arrays[name].dtype)


def _change_epsilon(arrays: dict[str, np.ndarray], norm: str, before: float, after: float) -> None:
    variance = arrays[f"{norm}.running_var"].astype(np.float64)
    lacking = np.minimum(variance + (before - after), 0.0)
    _change(arrays, f"{norm}.running_var", before - after - lacking)
    if lacking.any():  # a smaller epsilon and nearly no variance: the scale takes the rest
        scale = arrays[f"{norm}.weight"]
        gain = np.where(lacking < 0, np.sqrt(after / (variance + before)), 1.0)
        arrays[f"{norm}.weight"] = (scale.astype(np.float64) * gain).astype(scale.dtype)


def without_masks(
    arrays: Mapping[str, np.ndarray], names: Mapping[str, str]
) -> tuple[dict[str, np.ndarray], dict[str, str], list[str]]:
    """Arrays without the masks of `torch.nn.utils.prune`, which are multiplied, and a note.

    Args:
        arrays: of which `conv1.weight_orig` and `conv1.weight_mask` become `conv1.weight`.
        names: the file's name of each array, which is returned for those that remain.
    """
    pruned = {
        name
        for name in (n.removesuffix(_ORIGINAL) for n in arrays if n.endswith(_ORIGINAL))
        if name not in arrays and _is_mask(arrays.get(name + _MASK), arrays[name + _ORIGINAL])
    }
    kept, kept_names = dict[str, np.ndarray](), dict[str, str]()
    for name, array in arrays.items():
        if (inner := name.removesuffix(_ORIGINAL)) in pruned:
            with np.errstate(invalid="ignore"):  # infinite values, which are reported later
                kept[inner] = array * arrays[inner + _MASK].astype(array.dtype)
            kept_names[inner] = names[name].removesuffix(_ORIGINAL)
        elif name.removesuffix(_MASK) not in pruned:
            kept[name], kept_names[name] = array, names[name]
    note = f"multiplied by their masks: {len(pruned)} tensors that were pruned"
    return kept, kept_names, [note] if pruned else []


def _is_mask(mask: np.ndarray | None, array: np.ndarray) -> bool:
    """Whether a mask is there that an array of weights can be multiplied by."""
    if mask is None or mask.shape != array.shape or not is_floating(array.dtype):
        return False
    return is_floating(mask.dtype) or mask.dtype.kind in "bui"
