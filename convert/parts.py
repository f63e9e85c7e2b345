"""The network within a file that holds more: projectors, detectors, a second encoder.

What is left out changes what a file computes. So only what is known to come after a backbone is
left out without being asked for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from convert.arrays import same_bits
from convert.wrappers import name_some

Arrays = Mapping[str, np.ndarray]
_STATISTICS = {"running_mean", "running_var"}
_FEWEST = 20  # tensors of a network
_DEEPEST = 6  # level of containers
_CHANNELS = 4  # of images, which have a mean and a deviation
# Words of names that self-supervised training has behind its backbone, and detectors.
_PROJECTORS = {
    *("projector", "projection", "projetion", "predictor", "prototypes", "queue", "mlp"),
    "last_layer",
}
_DETECTORS = {
    *("neck", "fpn", "rpn", "roi", "bbox", "proposal", "retina", "mask", "anchor"),
    *("transformer", "embed", "input"),  # DETR's
}
# Of segmentation, which nearly always dilates the last stages instead of striding.
_SEGMENTATION = {"classifier", "decode", "auxiliary", "aux", "sem", "segmentation", "aspp"}
# The copies that follow another network slowly, which all of these methods leave out at the end.
_FOLLOWERS = {
    *("encoder_k", "momentum_encoder", "target_network", "target_encoder", "momentum_backbone"),
}


@dataclass(frozen=True)
class Part:
    """A network that is only a part of a file.

    Attributes:
        prefix: what its names begin with in the file; empty for the file itself.
        names: the file's name of each of its tensors, by the name without the prefix.
        beside: the file's other tensors.
        notes: what a user should know of the choice.
        problems: why it is not taken without being asked for, and how to ask, a sentence each.
    """

    prefix: str
    names: Mapping[str, str]
    beside: tuple[str, ...]
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Network:
    """Prefix and name of a network, and the file's names of its tensors by those without it."""

    prefix: str
    network: str
    names: Mapping[str, str]

    def is_same(self, arrays: Arrays, other: "_Network") -> bool:
        """Whether two networks are one that the file has twice."""
        return self.names.keys() == other.names.keys() and all(
            same_bits(arrays[name], arrays[other.names[inner]])
            for inner, name in self.names.items()
        )


def find_part(
    arrays: Arrays, name_network: Callable[[Arrays, bool], str], *, keeps_head: bool = True
) -> Part | None:
    """The only network of a file that is not one as a whole; None where there is none.

    Args:
        arrays: of the file, by its names.
        name_network: the name of the network of ours that tensors are, by names without a prefix;
            empty where they are none; the second argument is whether it may have a head.
        keeps_head: whether linear layers behind the network must not be left out.
    """
    arrays, averages = _without_averages(arrays)
    found = list(_find(arrays, "", name_network))
    different = [
        one for n, one in enumerate(found) if not any(one.is_same(arrays, o) for o in found[:n])
    ]
    leading = [one for one in different if not _FOLLOWERS & {*one.prefix.split(".")}]
    notes = []
    if len(leading) == 1 < len(different):
        notes = [
            f"another network, which follows this one in training, is behind {one.prefix!r}: "
            f"--prefix {one.prefix}"
            for one in different
            if one not in leading
        ]
        different = leading
    if len(different) != 1:
        ways = (f"behind {o.prefix!r} is {o.network}: --prefix {o.prefix}" for o in different)
        return Part("", {}, (), problems=tuple(ways)) if different else None
    (one,) = different
    if one.prefix:
        notes.insert(0, f"taken: the network behind {one.prefix!r}")
    of_all = {name for other in found for name in other.names.values()}
    problems = _problems(arrays, one.prefix, [n for n in arrays if n not in of_all], keeps_head)
    taken = {*one.names.values()}
    beside = (*(name for name in arrays if name not in taken), *averages)
    return Part(one.prefix, one.names, beside, tuple(notes), tuple(problems))


def _without_averages(arrays: Arrays) -> tuple[Arrays, tuple[str, ...]]:
    """Tensors without MMCV's moving averages, `ema_conv1_weight` beside `conv1.weight`."""
    averages = {f"ema_{name.replace('.', '_')}" for name in arrays} & arrays.keys()
    if not averages:
        return arrays, ()
    kept = {name: array for name, array in arrays.items() if name not in averages}
    return kept, tuple(name for name in arrays if name in averages)


def _find(
    arrays: Arrays, prefix: str, name_network: Callable[[Arrays, bool], str], depth: int = 0
) -> "Iterator[_Network]":
    """All networks, from the outermost container inwards."""
    inside = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
    if len(inside) < _FEWEST or not any(array.ndim == 4 for array in inside.values()):
        return
    children: dict[str, list[str]] = {}
    for name in inside:
        children.setdefault(name.partition(".")[0], []).append(name)
    behind = [c for c, names in children.items() if _is_linear([inside[n] for n in names])]
    left_out = {name for child in behind for name in children[child]}
    body = {name: array for name, array in inside.items() if name not in left_out}
    for part in (inside, body) if left_out else (inside,):
        is_whole = len({name.partition(".")[0] for name in part}) > 1  # and in no container
        if is_whole and (network := name_network(part, part is inside)):
            yield _Network(prefix, network, {name: prefix + name for name in part})
            return
    if depth < _DEEPEST:
        for child in children:
            yield from _find(arrays, f"{prefix}{child}.", name_network, depth + 1)


def _is_linear(arrays: Sequence[np.ndarray]) -> bool:
    """Whether a container has linear layers, and no convolution."""
    axes = {array.ndim for array in arrays}
    return 2 in axes and 4 not in axes


def _words(name: str) -> set[str]:
    """`roi_heads.box_head.fc6.weight` -> roi, heads, roi_heads, box, ..."""
    parts = name.split(".")
    return {*parts, *(word.rstrip("0123456789") for part in parts for word in part.split("_"))}


def _problems(
    arrays: Arrays, prefix: str, beside: Sequence[str], keeps_head: bool
) -> Iterator[str]:
    """Why what lies beside a network may not be left out unasked."""
    layers = {n: _words(n) for n in beside if arrays[n].ndim > 1 and arrays[n].size > _CHANNELS}
    linear = [name for name in layers if arrays[name].ndim == 2]
    has_projectors = any(_PROJECTORS & words for words in layers.values())
    known = {*linear} if has_projectors or not keeps_head else set[str]()
    known |= {n for n, words in layers.items() if words & (_PROJECTORS | _DETECTORS)}
    unknown = [name for name in layers if name not in known]
    norms = [] if has_projectors else list(_norms(beside, linear, prefix))
    ask = f"--prefix {prefix} takes the rest"
    if any(_SEGMENTATION & layers[name] for name in unknown if name not in linear):
        yield (
            f"{name_some(unknown)} are of a network for segmentation: most of these dilate the "
            "last stages instead of striding, which no tensor shows and the twins do not have: "
            f"{ask} without dilation"
        )
    elif unknown and {*unknown} <= {*linear}:
        yield (
            f"its head is more than one linear layer, or beside the network: "
            f"{name_some(unknown)}: --head drop takes the rest, --head new:N makes another head"
        )
    elif unknown:
        yield f"{name_some(unknown)} may be a part of the network: {ask}"
    if norms and {*unknown} <= {*linear}:
        yield f"{name_some(norms)} are of a BatchNorm in front of the network or behind it: {ask}"


def _norms(beside: Sequence[str], linear: Sequence[str], prefix: str) -> Iterator[str]:
    """The statistics of BatchNorms that are not between the linear layers of a head."""
    for name in filter(is_statistic, beside):
        container = "".join(name.rpartition(".")[0].rpartition(".")[:2])  # `fc.` of `fc.1.weight`
        is_in_head = any(n.startswith(container) for n in linear)
        is_apart = not prefix.startswith(container)
        if not (is_in_head and is_apart) and not _words(name) & (_PROJECTORS | _DETECTORS):
            yield name


def is_statistic(name: str) -> bool:
    """Whether a tensor is called as a running statistic of a BatchNorm is in torch."""
    return name.rpartition(".")[2] in _STATISTICS
