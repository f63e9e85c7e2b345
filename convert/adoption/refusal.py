"""Says why a network is not in the table: the first layer in which it differs, and how."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from convert.adoption.candidates import Candidate, difference
from convert.adoption.flow import Flow, Layer, Node, before, layer_of, leading_to, places, shapes_of
from convert.errors import ConversionError
from convert.guess import name_of
from convert.structure import nearest
from convert.wrappers import name_some

_DIFFERENT = 1e-9  # in float64
_WORDS = {"conv": "convolutions", "norm": "normalisations", "linear": "linear layers"}
_OPERATIONS = {
    "native_group_norm": "a group normalisation",
    "native_layer_norm": "a layer normalisation",
    "native_batch_norm": "a normalisation by statistics of the batch itself",
    "prelu_kernel": "a learned activation (PReLU)",
}


def refuse(flow: Flow, title: str) -> None:
    """Raises a ConversionError that lists everything that no row of the table has."""
    problems = [*_strange_layers(flow), *_strange_operations(flow)]
    if not any(node.is_join for node in flow.nodes):
        problems.append(
            "it has no residual connections: nothing is added to what runs around a block (a plain "
            "network has the tensors of one with option A's shortcuts)"
        )
    if problems:
        raise ConversionError(f"{title} is not a network of the table:", problems)


def _strange_layers(flow: Flow) -> Iterator[str]:
    counts: Counter[str] = Counter()
    found: dict[str, list[str]] = {}
    for _, layer in flow.layers():
        counts[layer.names.get("weight", "")] += 1
        dilation = tuple(layer.arguments.get("dilation", (1,)))
        groups = layer.arguments.get("groups", 1)
        if {*dilation} != {1}:
            found.setdefault(f"dilation {dilation}", []).append(layer.path)
        if groups != 1:
            text = f"{groups} groups (as of ResNeXt, depthwise convolutions or blurs)"
            found.setdefault(text, []).append(layer.path)
    for text, paths in found.items():
        yield f"a convolution of {text}: {name_some(paths)}"
    if shared := [name for name, count in counts.items() if name and count > 1]:
        yield f"run more than once, with the same weights: {name_some(shared)}"


def _strange_operations(flow: Flow) -> Iterator[str]:
    """Operations that use weights and are no layer, and gates."""
    used: dict[str, list[str]] = {}
    first = next((node for node, layer in flow.layers() if layer.kind == "conv"), flow.images)
    of_images = {*leading_to(first, flow.nodes)}  # which may be prepared in any way
    for node in (node for node in flow.nodes if node not in of_images):
        for name in node.tensors:
            used.setdefault(node.operation, []).append(name)
        if node.operation == "mul" and len({*node.inputs}) == 2:
            used.setdefault("gate", []).append(_last_layer(node))
    for operation, names in used.items():
        names = list(dict.fromkeys(names))
        if operation == "gate":
            yield (
                "it multiplies what it computed by a gate (squeeze and excitation, attention, "
                f"swish): first behind {names[0]}"
            )
        else:
            said = _OPERATIONS.get(operation, operation)
            yield f"{name_some(names)}: used by {said}, which no ResNet of the table has"


def _last_layer(node: Node) -> str:
    """The path of a layer right before."""
    waiting = list(node.inputs)
    while waiting:
        one = waiting.pop(0)
        if one.layer is not None:
            return one.layer.path
        waiting += one.inputs
    return "the images"


def explain(
    network: Any, images: np.ndarray, tried: Sequence[Candidate], title: str
) -> ConversionError:
    """Where a network with random weights first differs from the nearest row that was tried."""
    flow = network.run(images, keep_values=True)
    if not tried:
        return ConversionError(
            f"{title} has the layers of no row of the table:", [*_other_layers(flow)]
        )
    found = [(*_first_difference(flow, one), one) for one in tried]
    _, problems, nearest_one = max(found, key=lambda entry: entry[0])
    name = name_of(nearest_one.classifier.network)
    return ConversionError(
        f"{title} has the layers of {name}, and computes something else:", problems
    )


def _first_difference(flow: Flow, tried: Candidate) -> tuple[int, list[str]]:
    """How many layers agree, and how the next one differs."""
    from convert.adoption.torch_flow import TorchNetwork

    ours = TorchNetwork(tried.twin(flow), "float64").run(flow.stem_input, keep_values=True)
    our_nodes = {layer.path: node for node, layer in ours.layers()}
    named = places(flow)
    path_of = {named[place]: path for path, place in tried.layers.items()}
    agree = 0
    for node, layer in flow.layers():
        twin = our_nodes[path_of[node]]
        if difference(_without_bias(node), _without_bias(twin)) > _DIFFERENT:
            where = f"{layer.path}, here {path_of[node]}, is the first layer that differs"
            return agree, [where, *_how(node, twin, layer)]
        agree += 1
    behind = [node for node in (flow.logits, *before(flow.logits)) if flow.logits.layer is None]
    said = ", ".join(map(str, behind)) or "nothing"
    return agree, [f"all layers agree, and the output does not: behind the last runs {said}"]


def _without_bias(node: Node) -> np.ndarray:
    """A layer's output; of a convolution without its bias, which the twins have elsewhere."""
    assert node.value is not None
    layer = layer_of(node)
    if layer.kind != "conv" or "bias" not in layer.arrays or node.value.ndim != 4:
        return node.value
    return node.value - layer.arrays["bias"][:, None, None]


def _how(node: Node, twin: Node, layer: Layer) -> Iterator[str]:
    own, ours = layer.arguments, layer_of(twin).arguments
    for name in ("stride", "padding", "dilation"):
        if name in own and [*own[name]] != [*ours[name]]:
            yield f"its {name} is {tuple(own[name])}, here {tuple(ours[name])}"
    assert node.value is not None
    assert twin.value is not None
    if node.value.shape != twin.value.shape:
        yield f"it returns {node.value.shape}, here {twin.value.shape}"
    yield from _operations(node, twin)


def _operations(node: Node, twin: Node) -> Iterator[str]:
    """What runs before a layer in one network and not in the other."""
    own, ours = (Counter(map(str, before(one))) for one in (node, twin))
    if more := own - ours:
        yield f"before it the network computes {', '.join(more.elements())}"
    if more := ours - own:
        yield f"before it the twin computes {', '.join(more.elements())}"


def _other_layers(flow: Flow) -> Iterator[str]:
    """How the layers differ from those of the nearest row."""
    named = places(flow)
    close = nearest(shapes_of(named))
    paths = {place: layer_of(node).path for place, node in named.items()}
    if close is None:
        kinds = Counter(layer_of(node).kind for node in named.values())
        joins = sum(node.is_join for node in flow.nodes)
        said = ", ".join(f"{count} {_WORDS[kind]}" for kind, count in kinds.items())
        yield f"it has {said} and {joins} residual additions, and no row is near"
        return
    name = name_of(close[0].network)
    for problem in close[1]:
        words = [
            paths.get(word.rstrip(","), word.rstrip(",")) + "," * word.endswith(",")
            for word in problem.split(" ")
        ]
        yield f"not {name}, the nearest: {' '.join(words)}"
