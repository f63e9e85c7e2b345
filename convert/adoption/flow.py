"""What a network computed, operation by operation, and which layer stands where in its blocks."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from convert.arrays import is_floating
from convert.errors import ConversionError

# Operations that change neither a value nor where it goes.
_SILENT = {
    "view", "reshape", "flatten", "unsafe_view", "alias", "detach", "clone", "contiguous",
    "to_copy", "permute", "transpose", "t", "squeeze", "unsqueeze", "expand", "write", "copy",
    "getitem", "slice", "select", "convert_element_type", "broadcast_in_dim", "stop_gradient",
    "pjit", "jit", "custom_jvp_call", "cat", "constant_pad_nd", "pad", "concatenate",
}  # fmt: skip
_SOFTMAX = ("softmax", "log_softmax")
PADS = ("constant_pad_nd", "pad")


@dataclass(frozen=True)
class Layer:
    """A convolution, a batch normalisation or a linear layer that ran.

    Attributes:
        kind: as `structure.Layer` has it: `conv`, `norm`, `linear`.
        path: what its author calls it.
        arrays: its tensors by torch's word, with torch's axes, in the precision of the run.
        names: the author's name of each tensor that is a weight as it stands.
        sources: names of the weights that the others are computed from.
        arguments: what tensors do not show: `stride`, `padding`, `dilation`, `groups`, `epsilon`.
    """

    kind: str
    path: str
    arrays: Mapping[str, np.ndarray]
    names: Mapping[str, str]
    sources: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Node:
    """What one operation returned.

    Attributes:
        operation: its name, `relu`.
        inputs: the nodes it was computed from; images are a node without any.
        shape: of the result.
        layer: that it is the output of.
        tensors: names of weights that an operation uses that is no layer.
        detail: its arguments, for messages.
        value: the result, where it is kept, with torch's axes.
        depth: residual additions before it.
    """

    operation: str
    inputs: tuple["Node", ...]
    shape: tuple[int, ...]
    layer: Layer | None = None
    tensors: tuple[str, ...] = ()
    detail: str = ""
    value: np.ndarray | None = None
    depth: int = field(init=False)

    def __post_init__(self) -> None:
        before = max((node.depth for node in self.inputs), default=0)
        self.depth = before + self.is_join

    @property
    def is_join(self) -> bool:
        """Whether it adds two branches."""
        shapes = {node.shape for node in self.inputs}
        return self.operation == "add" and len({*self.inputs}) == 2 and shapes == {self.shape}

    @property
    def is_silent(self) -> bool:
        return self.layer is None and self.operation in _SILENT

    def __str__(self) -> str:
        return f"{self.operation}{self.detail}"


@dataclass(frozen=True)
class Flow:
    """One run of a network.

    Attributes:
        images: what it was given.
        nodes: what led to its output, in the order of execution.
        logits: the node of its output, before a softmax.
        output: the value of the logits.
        stem_input: the value that the first convolution got, before its padding.
        notes: on what was left out.
        unused: names of tensors that had no part in the output.
    """

    images: Node
    nodes: Sequence[Node]
    logits: Node
    output: np.ndarray
    stem_input: np.ndarray
    notes: tuple[str, ...]
    unused: tuple[str, ...]

    def layers(self) -> Iterator[tuple[Node, Layer]]:
        for node in self.nodes:
            if node.layer is not None:
                yield node, node.layer


def leading_to(node: Node, nodes: Iterable[Node]) -> list[Node]:
    """The nodes that a node was computed from, and itself, in their order."""
    found, waiting = {node}, [node]
    while waiting:
        for one in waiting.pop().inputs:
            if one not in found:
                found.add(one)
                waiting.append(one)
    return [one for one in nodes if one in found]


def finish(
    nodes: Sequence[Node],
    outputs: Sequence[tuple[Node | None, np.ndarray | None]],
    weights: Sequence[str],
    images: np.ndarray,
    stem_input: np.ndarray,
    title: str,
    *,
    value_of: Callable[[Node], np.ndarray | None],
    channels_last: bool = False,
) -> Flow:
    """The flow of a run: of several outputs the one that most layers lead to.

    Args:
        nodes: all, in the order of execution, the images first.
        outputs: with their values; without a node those that do not depend on the images.
        weights: names of all.
        images: (n, h, w, c).
        stem_input: likewise, as the first convolution got them.
        title: of the network.
        value_of: a node's, where it is known; else a softmax in the output stays.
        channels_last: of an output that is a map.

    Raises:
        ConversionError: no output depends on the images.
    """
    found = [(node, value) for node, value in outputs if node is not None and value is not None]
    if not found:
        raise ConversionError(f"{title} returns nothing that was computed from the images")
    end, output = max(found, key=lambda one: _likeness(*one, nodes))
    notes = []
    if len(found) > 1:
        notes.append(f"of its {len(found)} outputs the one that most layers lead to is compared")
    if end.operation in _SOFTMAX and (scores := value_of(end.inputs[0])) is not None:
        notes.append(f"left out: the {end.operation} behind the logits")
        (end,), output = end.inputs, scores
    if output.ndim == 4:
        axes = (1, 2) if channels_last else (2, 3)
        if any(output.shape[axis] > 1 for axis in axes):
            notes.append("it returns maps of features; the twins return the mean of each")
        output = output.mean(axis=axes)
    if stem_input.shape != images.shape or np.any(stem_input != images):
        notes.append("it prepares its images before its first convolution, and the twins do not")
    led = leading_to(end, nodes)
    layers = [node.layer for node in led if node.layer is not None]
    used = {name for node in led for name in node.tensors}
    used |= {n for la in layers for n in (*la.names.values(), *la.sources)}
    paths = tuple(f"{layer.path}." for layer in layers)
    unused = tuple(n for n in weights if n not in used and not n.startswith(paths))
    return Flow(nodes[0], led, end, np.array(output), stem_input, tuple(notes), unused)


def _likeness(node: Node, value: np.ndarray, nodes: Sequence[Node]) -> tuple[Any, ...]:
    """Orders outputs: logits have the most layers before them, are floating, and (n, classes)."""
    layers = sum(one.layer is not None for one in leading_to(node, nodes))
    return layers, is_floating(value.dtype), value.ndim == 2, -value.ndim


def before(node: Node) -> list[Node]:
    """The operations between a layer, or the output, and the layers and additions before it.

    Operations that change no value are left out; the last comes first.
    """
    found: list[Node] = []
    waiting = [(one, 0) for one in node.inputs]
    while waiting:
        one, joins = waiting.pop(0)
        joins += one.is_join
        if one.layer is None and one not in found and joins < 2:
            found.append(one)
            waiting += [(other, joins) for other in one.inputs]
    return [one for one in found if not one.is_silent and one.inputs]


def is_preactivated(flow: Flow) -> bool:
    """Whether batch normalisations follow residual additions."""
    norms = (node for node, layer in flow.layers() if layer.kind == "norm")
    return any(one.is_join for node in norms for one in before(node))


def places(flow: Flow) -> dict[str, Node]:
    """The layers by names that say where they stand: in the stem, a block, its shortcut, or after.

    `stem.conv`, `blocks.0.conv1`, `blocks.0.shortcut.conv`, `norm`, `head`: names by which
    `structure.recognise` is certain.
    """
    of_shortcuts: set[Node] = set()
    joins = [node for node in flow.nodes if node.is_join]
    for join in joins:
        main, other = sorted(map(_branch, dict.fromkeys(join.inputs)), key=len, reverse=True)
        of_shortcuts |= other - main
    last = max((join.depth for join in joins), default=0)
    counts: Counter[str] = Counter()
    stem = (
        {"conv": "stem.conv"} if is_preactivated(flow) else {"conv": "stem.conv", "norm": "stem.bn"}
    )
    named: dict[str, Node] = {}
    for node, layer in flow.layers():
        place = stem.pop(layer.kind, None) if node.depth == 0 else None
        if place is None and node.depth == last:
            place = {"norm": "norm"}.get(layer.kind, "head")
            place = place if place not in named else f"rest.{len(named)}"
        if place is None:
            block = f"blocks.{node.depth}."
            block += "shortcut." if node in of_shortcuts else ""
            counts[block + layer.kind] += 1
            place = f"{block}{layer.kind}{counts[block + layer.kind]}"
        named[place] = node
    return named


def _branch(end: Node) -> set[Node]:
    """The layers between a residual addition and the one before it, on one of its sides."""
    found, waiting = {end}, [end]
    while waiting:
        for one in waiting.pop().inputs:
            if one.depth == end.depth and one not in found:
                found.add(one)
                waiting.append(one)
    return {node for node in found if node.layer is not None}


def shapes_of(named: Mapping[str, Node]) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors, by these names and torch's words, in the order of execution."""
    shapes: dict[str, tuple[int, ...]] = {}
    for place, node in named.items():
        for leaf, array in layer_of(node).arrays.items():
            is_head = place == "head" and array.shape[2:] == (1, 1)  # a convolution of one pixel
            shapes[f"{place}.{leaf}"] = array.shape[:2] if is_head else array.shape
    return shapes


def layer_of(node: Node) -> Layer:
    assert node.layer is not None
    return node.layer
