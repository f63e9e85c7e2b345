"""What a layout is: another package's names for the layers of these networks, and its limits."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from convert.errors import ConversionError
from convert.layouts.spelling import TORCH, Spelling
from resnet_spec import DIALECT, RATES, ClassifierSpec, ResNetSpec

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """Another package's spelling of the networks that it shares with ours.

    Attributes:
        name: what a user calls it.
        about: whose it is, in a few words.
        names: (our layer, their layer) for every layer of a network: a bijection.
        limits: fields of the spec by the values that the package's networks can have.
        differences: other reasons why the package has no such network, a sentence each.
        adapt: a row of our table as the package has the network of that name.
        spelling: how an array is called and laid out within its layer.
        has_conv_head: whether the head is written as a 1x1 convolution; both are read.
        may_lack_bias: whether a head can be without; else a bias that is not there is missing.
        whole_names: tensors under other names that the networks have, by the layout's names: of a
            part of the package's network, or of kin.
        signs: differences that the tensors themselves show, where they are of no network of ours.
    """

    name: str
    about: str
    names: Callable[[ResNetSpec], Iterator[tuple[str, str]]]
    limits: Mapping[str, Collection[Any]] = field(default_factory=dict)
    differences: Callable[[ResNetSpec], Iterable[str]] = lambda spec: ()
    adapt: Callable[[ResNetSpec], ResNetSpec] = lambda spec: spec
    spelling: Spelling = TORCH
    has_conv_head: Callable[[ResNetSpec], bool] = lambda spec: False
    may_lack_bias: bool = False
    whole_names: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda tensors: tensors
    signs: Callable[[Shapes], Iterable[str]] = lambda shapes: ()

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
        """What neither names nor shapes show, where the package's usual network has it otherwise.

        Who reads the tensors by the layout must be told: fields of the spec, the rates of training
        among them, and with biased variances the batch that they were taken over.
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
        """Our name of every tensor -> theirs; counters only where the package has them."""
        self.check(classifier.network)
        if classifier.num_classes is not None and not (classifier.head_bias or self.may_lack_bias):
            raise ConversionError(f"the heads of {self.name} have a bias, and this one has none")
        layers = dict(self.names(classifier.network))
        return {
            f"{path}.{leaf}": self.spelling.name(layers[path], leaf, len(shape))
            for path, shapes in classifier.layers()
            for leaf, shape in shapes.items()
            if self.spelling.has_counters or leaf != "num_batches_tracked"
        }


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
