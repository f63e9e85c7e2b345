"""Which layer of one network is which of another: by path, by a map, or by order and kind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Literal

from convert.parity.probe import OUTPUT, Arrays, Layer, Sections

Names = Literal["path", "order"] | Mapping[str, str]


@dataclass(frozen=True)
class Pairing:
    """The layers of two networks that are compared.

    Attributes:
        layers: the first network's name of a layer by the second's; None: names are the same.
        unpaired: the layers of each that have no partner, without those that contain others.
    """

    layers: Mapping[str, str] | None
    unpaired: tuple[tuple[str, ...], tuple[str, ...]] = field(default=((), ()))

    def name(self, layer: str) -> str | None:
        """The first network's name of a layer of the second; None without a partner."""
        if self.layers is None:
            return layer
        is_output = layer.partition(".")[0] == OUTPUT  # or a layer that is called so
        return self.layers.get(layer, layer if is_output else None)

    def tensor(self, name: str) -> str:
        """The first network's name of a tensor of the second, or of one that it does not have."""
        layer, _, leaf = name.rpartition(".")
        parent, inside = layer, ""
        while parent and self.layers is not None:
            if parent in self.layers:
                return f"{self.layers[parent]}{inside}.{leaf}"
            parent, _, last = parent.rpartition(".")
            inside = f".{last}{inside}"
        is_taken = self.layers is not None and layer in self.layers.values()
        return f"{name} (of the second)" if is_taken else name

    def rename(self, sections: Sections) -> Sections:
        """What the second network computed, under the first one's names."""
        renamed: Sections = {}
        for section, arrays in sections.items():
            if section in ("eval", "train"):
                named = ((self.name(layer), array) for layer, array in arrays.items())
                renamed[section] = {name: array for name, array in named if name is not None}
            else:
                renamed[section] = self.tensors(arrays)
        return renamed

    def tensors(self, arrays: Arrays) -> Arrays:
        return {self.tensor(name): array for name, array in arrays.items()}


def pair(one: Sequence[Layer], other: Sequence[Layer], names: Names) -> Pairing:
    """Pairs the layers that ran in two networks.

    Args:
        one: in the order of execution.
        other: likewise.
        names: "path", where a partner has the same path; "order", where it is of the same kind, and
            as many come before; or the second's path by the first's, of layers and of what
            contains them.
    """
    ours = {layer.name for layer in one}
    if names == "path":
        layers = {layer.name: layer.name for layer in other if layer.name in ours}
    elif names == "order":
        layers = _by_order(one, other)
    else:
        listed = Pairing({theirs: name for name, theirs in names.items()})
        layers = {layer.name: listed.tensor(f"{layer.name}.")[:-1] for layer in other}
        layers = {n: our for n, our in layers.items() if our in ours and _is_listed(n, names)}
        layers |= {theirs: name for name, theirs in names.items()}
    partners = set(layers.values())
    unpaired = (
        tuple(x.name for x in _ends(one) if x.name not in partners),
        tuple(x.name for x in _ends(other) if x.name not in layers),
    )
    return Pairing(None if names == "path" else layers, unpaired)


def _is_listed(layer: str, names: Mapping[str, str]) -> bool:
    return any(layer == theirs or layer.startswith(f"{theirs}.") for theirs in names.values())


def _by_order(one: Sequence[Layer], other: Sequence[Layer]) -> dict[str, str]:
    """Layers of the same kind and shapes in the longest runs; then of the same kind."""
    ends = _ends(one), _ends(other)
    keys = [[(x.kind, _shapes(x)) for x in layers] for layers in ends]
    layers: dict[str, str] = {}
    for _, i1, i2, j1, j2 in SequenceMatcher(None, *keys, autojunk=False).get_opcodes():
        rest = ends[0][i1:i2]
        for theirs in ends[1][j1:j2]:
            ours = next((x for x in rest if x.kind == theirs.kind), None)
            if ours is not None:
                layers[theirs.name] = ours.name
                rest = rest[rest.index(ours) + 1 :]
    return layers | _containers(one, other, layers)


def _ends(layers: Sequence[Layer]) -> list[Layer]:
    """Those to pair: what contains others is known by them, but for attention."""
    attentions = tuple(f"{x.name}." for x in layers if x.kind == "attention")
    return [
        x
        for x in layers
        if (x.kind == "attention" or not x.has_layers) and not x.name.startswith(attentions)
    ]


def _shapes(layer: Layer) -> tuple[tuple[int, ...], ...]:
    """Of its weights, without the order of axes: a transposed kernel is still its layer."""
    return tuple(sorted(tuple(sorted(shape)) for shape in layer.shapes if len(shape) > 0))


def _containers(
    one: Sequence[Layer], other: Sequence[Layer], layers: Mapping[str, str]
) -> dict[str, str]:
    """Pairs what contains the same paired layers; of nested ones with the same, the outer."""
    contents: dict[frozenset[str], str] = {}
    for container in (x for x in one if x.has_layers):
        inside = frozenset(n for n in layers.values() if n.startswith(f"{container.name}."))
        contents[inside] = container.name  # the outer one ended last
    found: dict[frozenset[str], str] = {}
    for container in (x for x in other if x.has_layers):
        names = (our for n, our in layers.items() if n.startswith(f"{container.name}."))
        found[frozenset(names)] = container.name
    return {n: contents[inside] for inside, n in found.items() if inside and inside in contents}
