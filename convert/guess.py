"""Which layout and model a file of tensors is of, from names and shapes alone."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np

from convert.errors import ConversionError
from convert.layouts import LAYOUTS, read_layout, with_head
from convert.layouts.layout import Layout, Shapes
from convert.layouts.mismatch import find_prefixes, shape_problems
from resnet_spec import DIALECT, MODELS, ClassifierSpec, ResNetSpec, ShortcutKind, find_spec


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


def undecided(spec: ResNetSpec, stated: Collection[str] = ()) -> list[str]:
    """What tensors of this network cannot show, but for the fields that are `stated`."""
    names = [name for name in DIALECT if spec.block != "basic" or name != "bottleneck_stride"]
    if spec.shortcut in ("identity", "centred_identity"):
        names.append("shortcut")
    fields = [f"{name}={getattr(spec, name)!r}" for name in names if name not in stated]
    return [*fields, *_AS_IN_THE_PAPERS]


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
    nearest = [(_overlap(shapes, *candidate), candidate) for candidate in candidates]
    best, candidate = max(nearest, key=lambda pair: pair[0].share, default=(None, None))
    if best is None or candidate is None or best.share == 0:
        return []
    return [replace(best, problems=tuple(_problems(shapes, candidate[0], best.classifier)))]


def find_prefix(names: Collection[str]) -> str | None:
    """A prefix behind which the names of a known layout are; the first, where there are several."""
    spec = find_spec("ResNet18")
    for layout in LAYOUTS.values():
        layer = dict(layout.names(spec))["stages.0.0.conv1"]
        for prefix in find_prefixes(names, layout.spelling.name(layer, "weight", 4)):
            if prefix:
                return prefix
    return None


def _candidates(shapes: Shapes) -> Iterator[tuple[Layout, str, ResNetSpec]]:
    """The networks in every layout that has a name for the stem which the file has, too."""
    num_convs = sum(len(shape) == 4 for shape in shapes.values())
    names = [n for n in (*MODELS, *_other_widths(shapes)) if _has_about(find_spec(n), num_convs)]
    for layout in LAYOUTS.values():
        whole = layout.whole_names(shapes)
        for name in names:
            for spec in _variants(layout, name):
                stem = layout.spelling.name(next(iter(layout.names(spec)))[1], "weight", 4)
                if len(whole.get(stem, ())) == 4:
                    in_planes = _torch_shape(layout, stem, whole[stem])[1]
                    yield layout, name, replace(spec, in_planes=in_planes)


def _has_about(spec: ResNetSpec, num_convs: int) -> bool:
    """Whether a network may have so many convolutions, give or take a few: spares comparisons."""
    blocks = sum(spec.stage_depths)
    fewest = blocks * {"basic": 2, "bottleneck": 3}[spec.block]
    return fewest * 0.8 <= num_convs <= (fewest + blocks + 2) * 1.2


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


def _problems(shapes: Shapes, layout: Layout, classifier: ClassifierSpec) -> list[str]:
    theirs, ours = layout.tensors(classifier), classifier.tensors()
    given = {
        key: layout.spelling.to_ours(key, np.broadcast_to(np.int8(0), shape))
        for key, shape in layout.whole_names(shapes).items()
    }
    problems = shape_problems(layout, {their: ours[key] for key, their in theirs.items()}, given)
    more = len(problems) - _NAMED
    return [*problems[:_NAMED], *([f"and {more} more"] if more > 0 else [])]


def _torch_shape(layout: Layout, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return layout.spelling.to_ours(name, np.broadcast_to(np.int8(0), shape)).shape
