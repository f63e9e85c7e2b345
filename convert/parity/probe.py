"""The interface by which `compare` runs a network and reads its layers, in either framework."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from convert.errors import ConversionError

Arrays = dict[str, np.ndarray]
Sections = dict[str, Arrays]  # by a key of `comparison.SECTIONS`
OUTPUT = "output"  # the name of what the network returns, the last of its activations

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 1e-4, 0.9, 1e-4  # small: the loss has no lower bound

# Arguments of a call that say whether it trains; the others say that it does not.
TRAINS = ("train", "training", "is_training", "is_train")
TESTS = ("deterministic", "use_running_average", "inference", "eval", "is_eval")
MODES = f"its call takes one of {', '.join((*TRAINS, *TESTS))}"

# Rates of layers that drop branches at random, by the usual names of their classes.
DROPS_BRANCHES = {"StochasticDepth": ("rate", "p"), "DropPath": ("drop_prob", "rate")}

# The field's words for layers, by the classes of torch, Flax NNX, linen and the twins.
_KINDS = {
    **dict.fromkeys(("Conv1d", "Conv2d", "Conv3d", "Conv"), "convolution"),
    **dict.fromkeys(("_ConvTransposeNd", "ConvTranspose"), "transposed convolution"),
    **dict.fromkeys(("Linear", "Dense", "LinearGeneral", "DenseGeneral"), "linear"),
    **dict.fromkeys(("_BatchNorm", "BatchNorm"), "batch norm"),
    **dict.fromkeys(("Embedding", "Embed"), "embedding"),
    **dict.fromkeys(("MultiheadAttention", "MultiHeadAttention"), "attention"),
    "MultiHeadDotProductAttention": "attention",
}


def kind_of(module: type) -> str:
    """The kind of a layer of this class; of an unknown one, the name of the class."""
    names = (kind.__name__ for kind in module.__mro__)
    return next((_KINDS[name] for name in names if name in _KINDS), module.__name__)


@dataclass(frozen=True)
class Layer:
    """A module that ran.

    Attributes:
        name: its path.
        kind: as `kind_of` says it.
        shapes: of its own weights, with torch's axes.
        has_layers: whether other modules that ran are inside.
    """

    name: str
    kind: str
    shapes: tuple[tuple[int, ...], ...]
    has_layers: bool


def layers_of(kinds: Mapping[str, str], weights: Arrays) -> list[Layer]:
    """The modules that ran, in order, from their kinds and all weights by name."""
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for name, array in weights.items():
        if array.ndim:
            shapes.setdefault(name.rpartition(".")[0], []).append(array.shape)
    parents = {name[:place] for name in kinds for place, sign in enumerate(name) if sign == "."}
    return [
        Layer(name, kind, tuple(shapes.get(name, ())), name in parents)
        for name, kind in kinds.items()
    ]


class Probe(Protocol):
    """A copy of a network in one precision on one device, that draws nothing at random.

    Names are the network's own. Activations are by layer, in the order in which the layers ended
    (of one that is called twice, the last time), and end with what the network returned, as
    `OUTPUT`. Other arrays have torch's leaves and axes.

    Attributes:
        outputs: names of what the network returned.
        beside_logits: names of what it returned, too, but that is not compared.
    """

    outputs: tuple[str, ...]
    beside_logits: tuple[str, ...]

    def layers(self) -> list[Layer]:
        """The modules that ran in `evaluate`, by when they ended."""
        ...

    def weights(self) -> Arrays:
        """Parameters and statistics."""
        ...

    def given(self) -> Arrays:
        """Parameters and statistics as they were given, in their own precision."""
        ...

    def tied(self) -> Mapping[str, frozenset[str]]:
        """All names of each parameter that has more than one, by each of them."""
        ...

    def load(self, weights: Arrays) -> None:
        """Replaces weights; all have a name and a shape of this network's."""
        ...

    def evaluate(self, images: np.ndarray) -> Sections:
        """Activations in eval mode, as the section `eval`."""
        ...

    def train(self, images: np.ndarray, loss: "Loss") -> Sections:
        """A forward and a backward pass in train mode: `train`, `gradients` and `statistics`."""
        ...

    def steps(self, images: np.ndarray, loss: "Loss", count: int) -> Sections:
        """Parameters after steps of SGD with momentum and weight decay, as `steps`."""
        ...


@dataclass(frozen=True)
class Loss:
    """Mean cross-entropy of `labels` (n,), or a sum of the outputs with seeded random weights.

    Attributes:
        channels_first: outputs that torch has with channels on axis 1 where Flax has them last:
            their weights are turned for torch.
    """

    seed: int
    labels: np.ndarray | None
    channels_first: frozenset[str] = field(default=frozenset())

    def weights(self, shapes: Sequence[tuple[int, ...]]) -> Iterator[np.ndarray]:
        """The weights of outputs of these shapes: standard normal, the same in any framework."""
        generator = np.random.default_rng(self.seed)
        return (generator.standard_normal(shape) for shape in shapes)

    def check(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Raises a ConversionError if outputs of these shapes have no such loss."""
        if not shapes:
            raise ConversionError(
                "a network returns no floating-point array, so that nothing has a gradient: "
                "compare networks that return what comes before"
            )
        if self.labels is None:
            return
        if len(shapes) != 1 or len(shapes[0]) != 2:
            raise ConversionError(f"labels are for outputs (n, classes), and these are {shapes}")
        if self.labels.max() >= shapes[0][1]:
            raise ConversionError(
                f"labels reach {self.labels.max()}, but a network has classes 0 to "
                f"{shapes[0][1] - 1}"
            )


def flatten_output(output: Any) -> dict[str, Any]:
    """The arrays of what a network returns: of models of transformers the logits.

    A single one is `OUTPUT`, in whatever it is returned; of several the names begin so. A tuple
    with names, of which one may be `logits`, is a tuple.
    """
    found = _flatten(output, OUTPUT)
    return found if len(found) > 1 else dict(zip((OUTPUT,), found.values(), strict=False))


def _flatten(output: Any, name: str) -> dict[str, Any]:
    output = output.logits if _has_logits(output) else output
    if isinstance(output, Mapping):
        entries = sorted(((str(k), v) for k, v in output.items()), key=lambda entry: entry[0])
    elif isinstance(output, tuple | list):
        entries = [(str(key), value) for key, value in enumerate(output)]
    else:
        return {} if output is None else {name: output}
    found: dict[str, Any] = {}
    for key, value in entries:
        found |= _flatten(value, f"{name}.{key}")
    return found


def end_with(activations: dict[str, Any], outputs: dict[str, Any]) -> dict[str, Any]:
    """Activations that end with what a network returned, also if a layer has the same name."""
    return {n: array for n, array in activations.items() if n not in outputs} | outputs


def _has_logits(output: Any) -> bool:
    return hasattr(output, "logits") and not isinstance(output, tuple)


def beside_logits(output: Any) -> tuple[str, ...]:
    """Names of the arrays that a model of transformers returns beside its logits."""
    if not _has_logits(output):
        return ()
    entries = output if isinstance(output, Mapping) else vars(output)
    return tuple(n for n, v in entries.items() if n != "logits" and hasattr(v, "shape"))


def first_array(output: Any) -> Any:
    """A layer's output; of attention, which returns its weights too, the first."""
    return output[0] if isinstance(output, tuple) and output else output
