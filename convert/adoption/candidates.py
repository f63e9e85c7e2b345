"""The rows of the table that have the layers of a network, in every dialect, and their proof."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convert.adoption.flow import PADS, Flow, Layer, Node, layer_of, places, shapes_of
from convert.arrays import is_counter, to_numpy
from convert.folding import fold
from convert.models import build_torch
from convert.parity.comparison import measure
from convert.structure import recognise
from resnet_spec import ClassifierSpec, ResNetSpec

_TOLERANCE = 1e-10  # in float64, of random weights, whose condition nobody chose


@dataclass(frozen=True)
class Candidate:
    """A row whose layers are those of a network.

    Attributes:
        classifier: the row and its head.
        layers: the place of each of our layers in `places`.
    """

    classifier: ClassifierSpec
    layers: Mapping[str, str]

    def found(self, flow: Flow) -> dict[str, Layer]:
        """The network's layer by our path."""
        named = places(flow)
        return {path: layer_of(named[place]) for path, place in self.layers.items()}

    def arrays(self, flow: Flow) -> dict[str, np.ndarray]:
        """The tensors under our names, as they ran, with what ours lack folded; no counters."""
        found = self.found(flow)
        arrays = {f"{p}.{leaf}": a for p, one in found.items() for leaf, a in one.arrays.items()}
        return self.folded(completed(arrays, self.classifier), found)[0]

    def folded(
        self, arrays: Mapping[str, np.ndarray], found: Mapping[str, Layer]
    ) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        """As `fold`, with the epsilons that the network's layers have."""
        epsilons = {p: e for p, la in found.items() if (e := la.arguments.get("epsilon"))}
        return fold(arrays, self.classifier.network, epsilons)

    def twin(self, flow: Flow) -> Any:
        """The torch twin with the weights of a run."""
        return build_torch(self.classifier, self.arrays(flow), take=True)

    def proves(self, flow: Flow) -> bool:
        """Whether the torch twin gives the logits of a run in float64, of random weights."""
        if not np.ptp(flow.output):  # equal numbers prove nothing
            return False
        error = difference(run_torch(self.twin(flow), flow.stem_input), flow.output)
        return error <= _TOLERANCE


def run_torch(model: Any, images: np.ndarray) -> np.ndarray:
    """The torch twin's logits of (n, h, w, c) images, in its own precision."""
    import torch

    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        given = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        return to_numpy(model(given.to(dtype)))


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference, relative to the largest value; infinite where shapes differ."""
    if one.shape != other.shape or not (np.isfinite(one).all() and np.isfinite(other).all()):
        return np.inf
    return measure(one, other).relative


def completed(
    arrays: Mapping[str, np.ndarray], classifier: ClassifierSpec
) -> dict[str, np.ndarray]:
    """Arrays with zero for each counter that is missing, and the head as a linear layer."""
    shapes = classifier.tensors()
    counters = {name: np.zeros((), np.int64) for name in shapes if is_counter(name)}
    heads = {n: a.reshape(shapes[n]) for n, a in arrays.items() if n.startswith("head.")}
    return {**counters, **arrays, **heads}


def candidates(flow: Flow) -> Iterator[Candidate]:
    """Every row and dialect that has these layers; those that the arguments say come first."""
    named = places(flow)
    for one in recognise(shapes_of(named)).networks:
        layers = {
            ours.rpartition(".")[0]: place.rpartition(".")[0] for ours, place in one.names.items()
        }
        yield from sorted(
            (
                Candidate(dataclasses.replace(one.classifier, network=spec), layers)
                for spec in _dialects(one.classifier.network)
            ),
            key=lambda candidate: _contradictions(candidate, named),
        )


def _dialects(spec: ResNetSpec) -> Iterator[ResNetSpec]:
    """The spec in every dialect that tensors do not show."""
    identities = ("identity", "centred_identity")
    shortcuts = identities if spec.shortcut in identities else (spec.shortcut,)
    strides = ("3x3", "1x1") if spec.block == "bottleneck" else ("3x3",)
    choices = itertools.product(shortcuts, strides, ("even", "same"), ("even", "same"))
    for shortcut, stride, padding, stem_padding in choices:
        yield dataclasses.replace(
            spec,
            shortcut=shortcut,
            bottleneck_stride=stride,
            padding=padding,
            stem_padding=stem_padding,
        )


def _contradictions(candidate: Candidate, named: Mapping[str, Node]) -> int:
    """How many convolutions have another stride or padding than the candidate says."""
    spec, count = candidate.classifier.network, 0
    for path, conv in spec.convolutions():
        node = named[candidate.layers[path]]
        padding = spec.stem_padding if path == "stem.conv" else spec.padding
        count += {*layer_of(node).arguments["stride"]} != {conv.stride}
        if conv.kernel_size > 1 and conv.stride > 1:
            is_padded = any(one.operation in PADS for one in node.inputs)
            is_padded |= layer_of(node).arguments["padding"] == ("same",)
            count += is_padded != (padding == "same")
    return count


def undecided(tried: Sequence[Candidate], fitting: Candidate, flow: Flow) -> list[str]:
    """Dialects of padding that give the same logits, where zeros are put before convolutions.

    Zeros that the code counts by the size of the image are torch's padding at odd sizes.
    """
    if not any(one.operation in PADS for node, _ in flow.layers() for one in node.inputs):
        return []
    spec, found = fitting.classifier.network, list[str]()
    for other in tried:
        network = other.classifier.network
        fields = {"padding": network.padding, "stem_padding": network.stem_padding}
        is_rival = network != spec and network == dataclasses.replace(spec, **fields)
        if is_rival and other.proves(flow):
            found += network.differences(spec)
    return found
