"""Which layout and model a file of tensors is of, from names and shapes alone."""

from collections.abc import Collection, Iterable, Iterator
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
        return as_options(fields) + ("" if self.has_counters else " --reset-counters")


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
_NEAR = 1.25  # times as many 3x3 convolutions, or fewer
_ENOUGH = 0.5  # of the names, for the nearest network to be believed without trying all others
_MOST_WIDTHS = 12  # that are tried of one file


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
    views = [_View(layout, shapes) for layout in LAYOUTS.values()]
    names = (*MODELS, *_other_widths(shapes))
    near = _of_about_the_depth(shapes, names)
    candidates = list(_candidates(views, near))
    exact = [found for candidate in candidates if (found := _fit(*candidate)) is not None]
    if exact:
        return exact
    best = _nearest(candidates)
    if best is None or best.share < _ENOUGH:  # cut off, or of a depth that the table has not
        best = _nearest([*candidates, *_candidates(views, [n for n in names if n not in near])])
    return [] if best is None else [best]


def find_prefix(names: Collection[str]) -> str | None:
    """A prefix behind which the names of a known layout are; the first, where there are several."""
    spec = find_spec("ResNet18")
    for layout in LAYOUTS.values():
        layer = dict(layout.names(spec))[_FIRST]
        for prefix in find_prefixes(names, layout.spelling.name(layer, "weight", 4)):
            if prefix:
                return prefix
    return None


class _View:
    """A file's tensors as one layout has them.

    Attributes:
        layout: the layout.
        tensors: stand-ins for the file's, which take no memory, under the layout's names.
        given: their shapes with torch's axes.
    """

    def __init__(self, layout: Layout, shapes: Shapes):
        self.layout = layout
        self.tensors = {
            name: np.broadcast_to(np.int64(0) if "num_batches" in name else np.float32(0), shape)
            for name, shape in layout.whole_names(shapes).items()
        }
        to_ours = layout.spelling.to_ours
        self.given = {name: to_ours(name, array).shape for name, array in self.tensors.items()}

    def begins(self, spec: ResNetSpec) -> bool:
        """Whether the convolution of a network's stem, or the first of a block, is there."""
        names = self.layout.names(spec)
        stem = next(names)[1]
        first = next(theirs for ours, theirs in names if ours == _FIRST)
        return any(self.layout.spelling.name(n, "weight", 4) in self.given for n in (stem, first))


_Candidate = tuple[_View, str, ResNetSpec]


def _candidates(views: Iterable[_View], names: Iterable[str]) -> Iterator[_Candidate]:
    """Those of the networks of which a view has the beginning."""
    for view in views:
        for name in names:
            for spec in _variants(view.layout, name):
                if view.begins(spec):
                    yield view, name, with_channels(spec, view.tensors, view.layout.name)


def _of_about_the_depth(shapes: Shapes, names: Iterable[str]) -> list[str]:
    """Networks with about as many 3x3 convolutions as are there: spares comparisons."""
    found, num_spatial = [], len(_spatial_kernels(shapes))
    for name in names:
        spec = find_spec(name)
        fewest = sum(spec.stage_depths) * {"basic": 2, "bottleneck": 1}[spec.block]
        most = fewest + 4  # stems, and shortcuts of 3x3
        if fewest <= _NEAR * (num_spatial + 1) and num_spatial <= _NEAR * most:
            found.append(name)
    return found


def _spatial_kernels(shapes: Shapes) -> list[tuple[int, ...]]:
    """Shapes of convolutions but 1x1: attention in other networks' blocks has more of these."""
    kernels = [shape for shape in shapes.values() if len(shape) == 4]
    return [shape for shape in kernels if (1, 1) not in (shape[:2], shape[2:])]


def _variants(layout: Layout, name: str) -> Iterator[ResNetSpec]:
    """A model with each shortcut that the layout can express, the usual one first."""
    row = layout.adapt(find_spec(name))
    for shortcut in dict.fromkeys((row.shortcut, *_SHORTCUTS)):
        spec = replace(row, shortcut=shortcut)
        if not layout.problems(spec):
            yield spec


def _other_widths(shapes: Shapes) -> set[str]:
    """Names of Wide ResNets whose widths the table does not list, but the file may have."""
    channels = {planes for shape in _spatial_kernels(shapes) for planes in (shape[0], shape[3])}
    widths = {p // first for p in channels for first in (16, 64) if p % first == 0 and p > first}
    bases = {name.partition("-")[0] for name in MODELS if "WideResNet" in name}
    likely = sorted(widths)[:_MOST_WIDTHS]  # the first stage is the narrowest
    return {f"{base}-{width}" for base in bases for width in likely} - set(MODELS)


def _fit(view: _View, name: str, spec: ResNetSpec) -> Guess | None:
    layout = view.layout
    num_tensors = len(layout.tensors(ClassifierSpec(spec)))
    if not num_tensors / 2 < len(view.given) <= num_tensors + 2:  # counters, the head
        return None
    try:
        _, classifier = read_layout(
            view.tensors, spec, layout.name, reset_counters=True, allow_nonfinite=True
        )
    except ConversionError:
        return None
    has_counters = set(layout.tensors(classifier).values()) <= set(view.given)
    return Guess(layout.name, name, classifier, 1.0, has_counters)


def _nearest(candidates: Iterable[_Candidate]) -> Guess | None:
    """With the largest share of names that fit; of several, that with most signs of another."""
    pairs = [(_overlap(*candidate), candidate[0]) for candidate in candidates]
    largest = max((found.share for found, _ in pairs), default=0)
    if largest == 0:
        return None
    best = [(*_problems(v, found), found) for found, v in pairs if found.share == largest]
    signs, problems, found = max(best, key=lambda entry: len(entry[0]))
    return replace(found, problems=(*signs, *problems))


def _overlap(view: _View, name: str, spec: ResNetSpec) -> Guess:
    given, layout = view.given, view.layout
    classifier = _head_of(given, layout, spec)
    theirs, ours = layout.tensors(classifier), classifier.tensors()
    same = sum(given.get(their) == ours[key] for key, their in theirs.items())
    num_missing = sum(their not in given for their in theirs.values())
    return Guess(layout.name, name, classifier, same / (len(given) + num_missing))


def _head_of(given: Shapes, layout: Layout, spec: ResNetSpec) -> ClassifierSpec:
    """The network with the head that is there; of a 1x1 convolution, too."""
    head = dict(layout.names(spec))["head"]
    weight, bias = (layout.spelling.name(head, *leaf) for leaf in (("weight", 2), ("bias", 1)))
    shape = given.get(weight, ())
    flat = shape[:2] if shape[2:] in ((), (1, 1)) else ()
    return with_head(spec, {weight: flat}, weight, bias in given or not layout.may_lack_bias)


def _problems(view: _View, found: Guess) -> tuple[list[str], list[str]]:
    """The signs of another network, and the first of what does not fit."""
    layout = view.layout
    theirs, ours = layout.tensors(found.classifier), found.classifier.tensors()
    given = {n: np.broadcast_to(np.int8(0), shape) for n, shape in view.given.items()}
    problems = shape_problems(layout, {their: ours[key] for key, their in theirs.items()}, given)
    more = len(problems) - _NAMED
    shown = [*problems[:_NAMED], *([f"and {more} more"] if more > 0 else [])]
    return list(layout.signs(view.given)), shown
