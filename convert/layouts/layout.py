"""What a layout is: another package's names for the layers of these networks, and its limits."""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from convert import leaves
from convert.errors import ConversionError
from convert.folding import EPSILON
from resnet_spec import DIALECT, RATES, ClassifierSpec, ResNetSpec, find_spec

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Spelling:
    """How a package names and transposes the arrays of one layer.

    Attributes:
        is_flax: kernels are (h, w, in, out) and called `kernel`, not (out, in, h, w) and `weight`.
        has_collections: parameters and statistics are separate trees, `params/...`.
        has_counters: normalisations count their batches.
        separator: between the parts of a name.
    """

    is_flax: bool = False
    has_collections: bool = False
    has_counters: bool = True
    separator: str = "."

    def name(self, layer: str, leaf: str, num_axes: int) -> str:
        """The full name of an array whose leaf torch calls `weight`, `bias`, `running_mean` ..."""
        leaf = leaves.flax_leaf(leaf, num_axes) if self.is_flax else leaf
        name = f"{layer}{self.separator}{leaf}"
        if self.has_collections:
            return f"{'batch_stats' if leaf in ('mean', 'var') else 'params'}/{name}"
        return name

    def to_ours(self, name: str, array: np.ndarray) -> np.ndarray:
        """An array of theirs with torch's axes; `name` is theirs."""
        return leaves.to_torch(self._dotted(name), array) if self.is_flax else array

    def to_theirs(self, name: str, array: np.ndarray) -> np.ndarray:
        """The inverse of `to_ours`."""
        return leaves.to_flax(self._dotted(name), array) if self.is_flax else array

    def parts(self, name: str) -> list[str]:
        """The keys in the package's trees that lead to an array."""
        return name.split(self.separator)

    def _dotted(self, name: str) -> str:
        return name.replace(self.separator, ".")


TORCH = Spelling()
NNX = Spelling(is_flax=True, has_counters=False)
LINEN = Spelling(is_flax=True, has_collections=True, has_counters=False, separator="/")
# Limits of the packages whose networks compute as torch's and torchvision's do.
TORCHS_DIALECT = {
    "padding": ("even",),
    "stem_padding": ("even",),
    "bottleneck_stride": ("3x3",),
}


@dataclass(frozen=True)
class Layout:
    """Another package's names for the networks that it shares with ours.

    Attributes:
        name: what a user calls it.
        about: the package, in a few words.
        names: (our layer, their layer) for every layer of a network: a bijection.
        limits: fields of the spec, each with the values that the package's networks can have.
        differences: other reasons why the package has no such network, a sentence each.
        adapt: changes a row of our table to the package's network of that name.
        spelling: how an array is named and transposed within its layer.
        has_conv_bias: whether every convolution has a bias, which `convert.folding` takes away.
        epsilon: of its BatchNorms, likewise.
        has_conv_head: whether the head is written as a 1x1 convolution; both kinds are read.
        may_lack_bias: whether a head may have no bias; otherwise an absent bias is an error.
        whole_names: renames tensors to the layout's names where a file has others, because it
            holds a part of the package's network or comes from a related package.
        signs: signs in the tensors of a network that is not one of ours, a sentence each.
    """

    name: str
    about: str
    names: Callable[[ResNetSpec], Iterator[tuple[str, str]]]
    limits: Mapping[str, Collection[Any]] = field(default_factory=dict)
    differences: Callable[[ResNetSpec], Iterable[str]] = lambda spec: ()
    adapt: Callable[[ResNetSpec], ResNetSpec] = lambda spec: spec
    spelling: Spelling = TORCH
    has_conv_bias: bool = False
    epsilon: float = EPSILON
    has_conv_head: Callable[[ResNetSpec], bool] = lambda spec: False
    may_lack_bias: bool = False
    whole_names: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda tensors: tensors
    signs: Callable[[Shapes], Iterable[str]] = lambda shapes: ()

    def network(
        self, name: str, tensors: Mapping[str, np.ndarray] | None = None, **changes: Any
    ) -> ResNetSpec:
        """The network of a name in our table as the package has it, with `changes` to its fields.

        It takes images of as many channels as the first convolution among `tensors` takes.
        """
        row = self.adapt(find_spec(name))
        return self.with_channels(ResNetSpec.from_json({**row.to_json(), **changes}), tensors or {})

    def with_channels(self, spec: ResNetSpec, tensors: Mapping[str, np.ndarray]) -> ResNetSpec:
        """A network for images of as many channels as the first convolution takes."""
        tensors = self.whole_names(tensors)
        stem = self.tensor_name(spec, "stem.conv", "weight", 4)
        if stem not in tensors or tensors[stem].ndim != 4:
            return spec
        in_planes = self.spelling.to_ours(stem, tensors[stem]).shape[1]
        return dataclasses.replace(spec, in_planes=max(in_planes, 1))

    def with_head(self, spec: ResNetSpec, shapes: Shapes) -> ClassifierSpec:
        """The description with the head that is there; shapes are by their names, torch's axes."""
        bias = self.tensor_name(spec, "head", "bias", 1)
        shape = shapes.get(self.tensor_name(spec, "head", "weight", 2), ())
        if len(shape) != 2 and shape[2:] != (1, 1):
            return ClassifierSpec(spec)
        return ClassifierSpec(spec, int(shape[0]), bias in shapes or not self.may_lack_bias)

    def problems(self, spec: ResNetSpec) -> list[str]:
        """Every difference between a network and those of the package, by the field's name."""
        limits = [
            f"{name}={getattr(spec, name)!r}: {self.name} has only "
            + " or ".join(map(repr, allowed))
            for name, allowed in self.limits.items()
            if getattr(spec, name) not in allowed
        ]
        return [*limits, *self.differences(spec)]

    def check(self, spec: ResNetSpec) -> None:
        """Raises a ConversionError that lists why the package has no such network."""
        if problems := self.problems(spec):
            raise ConversionError(f"the layout {self.name} cannot express this model:", problems)

    def lost_fields(self, classifier: ClassifierSpec) -> dict[str, Any]:
        """The fields that a file in this layout loses, where they differ from the package's usual.

        Neither names nor shapes show them, so whoever reads the file must be told: fields of the
        spec, the rates of training among them, and with biased variances their batch size.
        """
        spec = classifier.network
        usual = {name: getattr(ResNetSpec, name) for name in DIALECT}
        taken = self.adapt(dataclasses.replace(spec, **usual))
        fields = {name: getattr(spec, name) for name in (*DIALECT, "shortcut")}
        lost = {name: value for name, value in fields.items() if value != getattr(taken, name)}
        lost |= {name: getattr(spec, name) for name in RATES if getattr(spec, name) > 0}
        if classifier.statistics_batch_size is not None:
            lost["statistics_batch_size"] = classifier.statistics_batch_size
        return lost

    def tensors(self, classifier: ClassifierSpec) -> dict[str, str]:
        """Our name of every tensor -> theirs; counters only where the package has them.

        The bias of a convolution, which our networks have not, is `stem.conv.bias`.
        """
        self.check(classifier.network)
        if classifier.num_classes is not None and not (classifier.head_bias or self.may_lack_bias):
            raise ConversionError(f"the heads of {self.name} have a bias, and this one has none")
        layers = dict(self.names(classifier.network))
        return {
            f"{path}.{leaf}": self.spelling.name(layers[path], leaf, len(shape))
            for path, shapes in self._layers(classifier)
            for leaf, shape in shapes.items()
            if self.spelling.has_counters or leaf != "num_batches_tracked"
        }

    def _layers(self, classifier: ClassifierSpec) -> Iterator[tuple[str, Shapes]]:
        for path, shapes in classifier.layers():
            is_conv = len(weight := shapes["weight"]) == 4
            yield path, {**shapes, "bias": weight[:1]} if self.has_conv_bias and is_conv else shapes

    def shapes(self, classifier: ClassifierSpec) -> dict[str, tuple[int, ...]]:
        """Their name of every tensor -> its shape with torch's axes."""
        ours = {f"{p}.{n}": shape for p, s in self._layers(classifier) for n, shape in s.items()}
        return {theirs: ours[name] for name, theirs in self.tensors(classifier).items()}

    def tensor_name(self, spec: ResNetSpec, layer: str, leaf: str, num_axes: int) -> str:
        """Their name of one tensor of our `layer`; of the first layers this takes no time."""
        theirs = next(theirs for ours, theirs in self.names(spec) if ours == layer)
        return self.spelling.name(theirs, leaf, num_axes)

    def head_path(self, spec: ResNetSpec) -> str:
        """What all names of a head begin with, whatever is within it: `fc.`."""
        separator = self.spelling.separator
        parts = self.tensor_name(spec, "head", "weight", 2).split(separator)[:-1]
        while parts[-1].isdigit():  # transformers' is the second of `classifier`
            parts.pop()
        return separator.join([*parts, ""])


def _our_names(spec: ResNetSpec) -> Iterator[tuple[str, str]]:
    for path, _ in itertools.chain(spec.convolutions(), spec.norms(), [("head", None)]):
        yield path, path


OURS = Layout(
    "flax-resnet", "our own names, those of the torch twin", _our_names, may_lack_bias=True
)


def walk(
    spec: ResNetSpec,
    *,
    stem: str = "",
    stem_bn: str = "",
    block: Callable[[int, int], str],
    conv: str,
    bn: str,
    count_from: int = 1,
    separator: str = ".",
    shortcut: str = "",
    shortcut_bn: str = "",
    norm: str = "",
    head: str,
) -> Iterator[tuple[str, str]]:
    """(our layer, theirs) for every layer, from the names that most packages' scheme needs.

    Args:
        spec: the network.
        stem: the first convolution.
        stem_bn: its normalisation, with post-activation.
        block: the path of a block from its stage and its place in the stage, both from 0.
        conv: within a block, its convolutions, with `{}` for their number.
        bn: within a block, its normalisations, likewise.
        count_from: the first convolution's number.
        separator: between a block's path and the names within.
        shortcut: within a block, its shortcut's convolution.
        shortcut_bn: within a block, the normalisation after it, with post-activation.
        norm: the last normalisation, with pre-activation.
        head: the linear layer.
    """
    yield "stem.conv", stem
    if not spec.preact:
        yield "stem.bn", stem_bn
    for ours in spec.blocks():
        theirs = block(ours.stage, ours.index)
        for place in range(len(ours.convs)):
            number = place + count_from
            yield f"{ours.path}.conv{place + 1}", f"{theirs}{separator}{conv.format(number)}"
            yield f"{ours.path}.bn{place + 1}", f"{theirs}{separator}{bn.format(number)}"
        if ours.shortcut is not None:
            yield f"{ours.path}.shortcut.conv", f"{theirs}{separator}{shortcut}"
        if ours.has_shortcut_norm:
            yield f"{ours.path}.shortcut_bn", f"{theirs}{separator}{shortcut_bn}"
    if spec.preact:
        yield "norm", norm
    yield "head", head
