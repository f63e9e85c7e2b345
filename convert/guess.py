"""Which layout and model a file of tensors is of, from names and shapes alone."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np

from convert.errors import ConversionError
from convert.layouts import LAYOUTS, layout_spec, read_layout, with_channels, with_head
from convert.layouts.layout import Layout, Shapes
from convert.layouts.mismatch import find_prefixes, shape_problems
from convert.options import as_options
from resnet_spec import DIALECT, MODELS, RATES, ClassifierSpec, ResNetSpec, ShortcutKind, find_spec


@dataclass(frozen=True)
class Guess:
    """A layout and a model that a file may be of.

    Attributes:
        layout: key of `LAYOUTS`.
        model: full name in our table.
        classifier: the network as the layout's package has it, and the head that is there.
        share: of all names, how many are there with the right shape; 1.0 is all and no other.
        has_counters: whether all `num_batches_tracked` are there that the layout has.
        problems: where not all fit, a sentence for each of the first that do not.
    """

    layout: str
    model: str
    classifier: ClassifierSpec
    share: float
    has_counters: bool = True
    problems: tuple[str, ...] = ()

    @property
    def undecided(self) -> list[str]:
        """What tensors cannot show, as it was taken: `padding='even'`."""
        return undecided(self.classifier.network)

    @property
    def options(self) -> str:
        """Those by which `import` takes it."""
        spec, usual = self.classifier.network, layout_spec(self.model, self.layout)
        fields = {"layout": self.layout, "model": self.model}
        if spec.shortcut != usual.shortcut:
            fields["shortcut"] = spec.shortcut
        return as_options(fields)


# What other packages vary, too, without another name or shape of any tensor (timm's `act_layer`,
# `aa_layer`, `output_stride` and `global_pool`, torchvision's `replace_stride_with_dilation`).
_AS_IN_THE_PAPERS = (
    "ReLU",
    "no anti-aliasing (blur or average pooling before a stride)",
    "no dilation (another output stride)",
    "average pooling before the head",
    "BatchNorm's epsilon 1e-5",
)
_NAMED = 4  # problems of the nearest network
_FIRST = "stages.0.0.conv1"  # a layer that every network has, whatever its stem


def undecided(spec: ResNetSpec, stated: Collection[str] = ()) -> list[str]:
    """What tensors of this network cannot show, but for the fields that are `stated`."""
    names = [name for name in DIALECT if spec.block != "basic" or name != "bottleneck_stride"]
    if spec.shortcut in ("identity", "centred_identity"):
        names.append("shortcut")
    names += [name for name in RATES if getattr(spec, name) > 0]
    fields = [f"{name}={getattr(spec, name)!r}" for name in names if name not in stated]
    small = ["no max pooling after the first convolution"] if spec.small_images else []
    return [*fields, *_AS_IN_THE_PAPERS, *small]


_SHORTCUTS: tuple[ShortcutKind, ...] = ("projection", "identity", "full_projection", "convolution")


def guess(shapes: Shapes) -> list[Guess]:
    """The layouts and models that fit exactly, else the nearest one, else nothing.

    Args:
        shapes: of all tensors by name, as they are in the file.
    """
    candidates = list(_candidates(shapes))
    exact = [found for candidate in candidates if (found := _fit(shapes, *candidate)) is not None]
    if exact:
        return exact
    nearest = [_overlap(shapes, *candidate) for candidate in candidates]
    largest = max((one.share for one in nearest), default=0)
    if largest == 0:
        return []
    best = [(_problems(shapes, one), one) for one in nearest if one.share == largest]
    problems, found = max(best, key=lambda pair: len(pair[0]))  # the layout with most to say
    return [replace(found, problems=tuple(problems))]


def find_prefix(names: Collection[str]) -> str | None:
    """A prefix behind which the names of a known layout are; the first, where there are several."""
    spec = find_spec("ResNet18")
    for layout in LAYOUTS.values():
        layer = dict(layout.names(spec))[_FIRST]
        for prefix in find_prefixes(names, layout.spelling.name(layer, "weight", 4)):
            if prefix:
                return prefix
    return None


def _candidates(shapes: Shapes) -> Iterator[tuple[Layout, str, ResNetSpec]]:
    """The networks in every layout whose first block the file has a convolution of."""
    names = _of_about_the_depth(shapes)
    tensors = {name: np.broadcast_to(np.int8(0), shape) for name, shape in shapes.items()}
    for layout in LAYOUTS.values():
        whole = layout.whole_names(shapes)
        for name in names:
            for spec in _variants(layout, name):
                if layout.spelling.name(dict(layout.names(spec))[_FIRST], "weight", 4) in whole:
                    yield layout, name, with_channels(spec, tensors, layout.name)


def _of_about_the_depth(shapes: Shapes) -> list[str]:
    """Names of the networks with about as many 3x3 convolutions: spares comparisons.

    1x1 convolutions are not counted: attention in other networks' blocks has more of them.
    """
    kernels = ({shape[:2], shape[2:]} for shape in shapes.values() if len(shape) == 4)
    num_spatial = sum((1, 1) not in ends for ends in kernels)
    distances: dict[str, float] = {}
    for name in (*MODELS, *_other_widths(shapes)):
        spec = find_spec(name)
        fewest = sum(spec.stage_depths) * {"basic": 2, "bottleneck": 1}[spec.block]
        most = fewest + 4  # stems, and shortcuts of 3x3
        distances[name] = max(fewest / (num_spatial + 1), num_spatial / most)
    enough = max(1.25, min(distances.values()))
    return [name for name, distance in distances.items() if distance <= enough]


def _variants(layout: Layout, name: str) -> Iterator[ResNetSpec]:
    """A model with each shortcut that the layout can express, the usual one first."""
    row = layout.adapt(find_spec(name))
    for shortcut in dict.fromkeys((row.shortcut, *_SHORTCUTS)):
        spec = replace(row, shortcut=shortcut)
        if not layout.problems(spec):
            yield spec


def _other_widths(shapes: Shapes) -> set[str]:
    """Names of Wide ResNets whose widths the table does not list, but the file may have."""
    channels = {shape[0] for shape in shapes.values() if len(shape) == 4}
    widths = {p // first for p in channels for first in (16, 64) if p % first == 0 and p > first}
    bases = {name.partition("-")[0] for name in MODELS if "WideResNet" in name}
    return {f"{base}-{width}" for base in bases for width in widths} - set(MODELS)


def _fit(shapes: Shapes, layout: Layout, name: str, spec: ResNetSpec) -> Guess | None:
    placeholders = {
        key: np.broadcast_to(np.int64(0) if "num_batches" in key else np.float32(0), shape)
        for key, shape in shapes.items()
    }
    try:
        _, classifier = read_layout(
            placeholders, spec, layout.name, reset_counters=True, allow_nonfinite=True
        )
    except ConversionError:
        return None
    has_counters = set(layout.tensors(classifier).values()) <= set(layout.whole_names(shapes))
    return Guess(layout.name, name, classifier, 1.0, has_counters)


def _overlap(shapes: Shapes, layout: Layout, name: str, spec: ResNetSpec) -> Guess:
    whole = layout.whole_names(shapes)
    given = {key: _torch_shape(layout, key, shape) for key, shape in whole.items()}
    classifier = _head_of(given, layout, spec)
    theirs, ours = layout.tensors(classifier), classifier.tensors()
    same = sum(given.get(their) == ours[key] for key, their in theirs.items())
    return Guess(layout.name, name, classifier, same / len({*theirs.values(), *given}))


def _head_of(given: Shapes, layout: Layout, spec: ResNetSpec) -> ClassifierSpec:
    """The network with the head that is there; of a 1x1 convolution, too."""
    head = dict(layout.names(spec))["head"]
    weight, bias = (layout.spelling.name(head, *leaf) for leaf in (("weight", 2), ("bias", 1)))
    shape = given.get(weight, ())
    flat = shape[:2] if shape[2:] in ((), (1, 1)) else ()
    return with_head(spec, {weight: flat}, weight, bias in given or not layout.may_lack_bias)


def _problems(shapes: Shapes, found: Guess) -> list[str]:
    """The signs of another network, and the first of what does not fit."""
    layout = LAYOUTS[found.layout]
    theirs, ours = layout.tensors(found.classifier), found.classifier.tensors()
    given = {
        key: layout.spelling.to_ours(key, np.broadcast_to(np.int8(0), shape))
        for key, shape in layout.whole_names(shapes).items()
    }
    problems = shape_problems(layout, {their: ours[key] for key, their in theirs.items()}, given)
    signs = layout.signs({name: array.shape for name, array in given.items()})
    more = len(problems) - _NAMED
    return [*signs, *problems[:_NAMED], *([f"and {more} more"] if more > 0 else [])]


def _torch_shape(layout: Layout, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return layout.spelling.to_ours(name, np.broadcast_to(np.int8(0), shape)).shape
