"""Guesses the layout and model of a file of tensors from names and shapes alone."""

import contextlib
import functools
import operator
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from convert.errors import ConversionError, shorten
from convert.layouts import LAYOUTS, Layout, read_layout
from convert.layouts.layout import Shapes
from convert.layouts.translate import shape_problems
from convert.wrappers import find_prefixes
from resnet_spec import DIALECT, MODELS, RATES, ClassifierSpec, ResNetSpec, ShortcutKind, find_spec


@dataclass(frozen=True)
class Guess:
    """A layout and a model that a file may be of.

    Attributes:
        layout: the layout.
        model: full name in our table.
        classifier: the network as the layout's package has it, and the head that is there.
        share: the share of all names that are there with the right shape; 1.0 is all and no other.
        has_counters: whether every `num_batches_tracked` of the layout is there.
        problems: a sentence for each of the first tensors that do not fit.
    """

    layout: Layout
    model: str
    classifier: ClassifierSpec
    share: float
    has_counters: bool = True
    problems: tuple[str, ...] = ()

    @property
    def undecided(self) -> list[str]:
        """The values taken for what tensors cannot show: `padding='even'`."""
        return undecided(self.classifier.network)

    @property
    def options(self) -> str:
        """The options by which `import` takes it."""
        spec, usual = self.classifier.network, self.layout.network(self.model)
        fields = {"layout": self.layout.name, "model": self.model}
        if spec.shortcut != usual.shortcut:
            fields["shortcut"] = spec.shortcut
        return as_options(fields) + ("" if self.has_counters else " --reset-counters")


# What other packages can change without another name or shape of any tensor (timm's `act_layer`,
# `aa_layer`, `output_stride` and `global_pool`, torchvision's `replace_stride_with_dilation`).
_AS_IN_THE_PAPERS = (
    "ReLU",
    "no anti-aliasing (blur or average pooling before a stride)",
    "no dilation (another output stride)",
    "average pooling before the head",
)
_PREACT_SHORTCUTS = "shortcuts that begin behind the first BatchNorm and ReLU of their block"
_EPSILON = "BatchNorm's epsilon 1e-5"
_FIRST = "stages.0.0.conv1"  # a layer that every network has, whatever its stem
_FIRSTS = ("stem.conv", _FIRST)
_NEAR = 1.25  # largest ratio of the numbers of 3x3 convolutions
_ENOUGH = 0.5  # share of names from which on a network is near, and no others are tried
_MOST_WIDTHS = 12  # tried for one file


def undecided(spec: ResNetSpec, stated: Collection[str] = ()) -> list[str]:
    """What tensors of this network cannot show, except fields, or `epsilon`, that are `stated`."""
    is_identity = spec.shortcut in ("identity", "centred_identity")
    names = [name for name in DIALECT if spec.block != "basic" or name != "bottleneck_stride"]
    if is_identity:
        names.append("shortcut")
    names += [name for name in RATES if getattr(spec, name) > 0]
    fields = [f"{name}={getattr(spec, name)!r}" for name in names if name not in stated]
    small = ["no max pooling after the first convolution"] if spec.small_images else []
    epsilon = [] if "epsilon" in stated else [_EPSILON]
    shortcuts = [_PREACT_SHORTCUTS] if spec.preact and not is_identity else []
    return [*fields, *shortcuts, *_AS_IN_THE_PAPERS, *epsilon, *small]


def name_of(spec: ResNetSpec) -> str:
    """The name in the table, and the fields that differ from that row: `ResNet20, padding=same`."""
    names = list(ResNetSpec.__dataclass_fields__)
    shape = operator.attrgetter("block", "stage_depths", "preact")
    best: list[str] | None = None
    for name in (name for name, row in MODELS.items() if shape(row) == shape(spec)):
        wide = name if "Wide" in name else name.replace("ResNet", "WideResNet")
        for full in (name, f"{wide}-{spec.width}", f"{wide}-{spec.width}-{spec.drop_rate}"):
            with contextlib.suppress(ValueError):
                row = find_spec(full)
                differs = [f for f in names if getattr(row, f) != getattr(spec, f)]
                if best is None or len(differs) < len(best) - 1:
                    best = [full, *(f"{f}={getattr(spec, f)}" for f in differs)]
    if best is not None:
        return ", ".join(best)
    blocks = f"{spec.stage_depths} {'pre-activated ' if spec.preact else ''}{spec.block} blocks"
    return f"a network without a name in the table ({blocks}, {spec.shortcut} shortcuts)"


def as_options(fields: Mapping[str, Any]) -> str:
    """Fields as a user states them: `--bottleneck-stride 1x1`."""
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in fields.items())


_SHORTCUTS: tuple[ShortcutKind, ...] = ("projection", "identity", "full_projection", "convolution")


def guess(shapes: Shapes) -> list[Guess]:
    """The layouts and models that fit exactly, else the nearest one, else nothing.

    The shapes are those of all tensors in the file, by name.
    """
    if exact := guess_exactly(shapes):
        return exact
    views = [_View(layout, shapes) for layout in LAYOUTS.values()]
    names = (*MODELS, *_other_widths(shapes))
    near = _of_about_the_depth(shapes, names)
    candidates = list(_candidates(views, near))
    best = _nearest(candidates)
    if best is None or best.share < _ENOUGH:  # cut off, or of a depth that is not in the table
        best = _nearest([*candidates, *_candidates(views, [n for n in names if n not in near])])
    return [] if best is None or best.share < _ENOUGH else [best]


def guess_exactly(shapes: Shapes) -> list[Guess]:
    """The layouts and models of which a file has all tensors and no other."""
    likely = [layout for layout in LAYOUTS.values() if _has_first_layers(layout, shapes)]
    if not likely:
        return []
    views = [_View(layout, shapes) for layout in likely]
    near = _of_about_the_depth(shapes, (*MODELS, *_other_widths(shapes)))
    fits = (_fit(*candidate) for candidate in _candidates(views, near))
    return [found for found in fits if found is not None]


def _has_first_layers(layout: Layout, shapes: Shapes) -> bool:
    """Whether both first layers of some network are there, by the layout's names."""
    names = layout.whole_names(shapes)
    return any(first <= names.keys() for first in _first_layers(layout.name))


@functools.cache
def _first_layers(layout_name: str) -> set[frozenset[str]]:
    """The names of the first two convolutions, which differ from kind to kind of network."""
    layout = LAYOUTS[layout_name]
    kinds = {(row.block, row.preact, row.small_images): row for row in MODELS.values()}
    return {
        frozenset(layout.tensor_name(row, name, "weight", 4) for name in _FIRSTS)
        for row in map(layout.adapt, kinds.values())
    }


def find_prefix(names: Collection[str]) -> str | None:
    """A prefix of names of a known layout; the first, where there are several."""
    spec = find_spec("ResNet18")
    for layout in LAYOUTS.values():
        for prefix in find_prefixes(names, layout.tensor_name(spec, _FIRST, "weight", 4)):
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
        """Whether the first convolution of a network, or of its first block, is there."""
        return any(self.layout.tensor_name(spec, n, "weight", 4) in self.given for n in _FIRSTS)


_Candidate = tuple[_View, str, ResNetSpec]


def _candidates(views: Iterable[_View], names: Iterable[str]) -> Iterator[_Candidate]:
    """The networks whose first layers a view has."""
    for view in views:
        for name in names:
            for spec in _variants(view.layout, name):
                if view.begins(spec):
                    yield view, name, view.layout.with_channels(spec, view.tensors)


def _of_about_the_depth(shapes: Shapes, names: Iterable[str]) -> list[str]:
    """Networks with about as many 3x3 convolutions as the file: others need no comparison."""
    found, num_spatial = [], len(_spatial_kernels(shapes))
    for name in names:
        spec = find_spec(name)
        fewest = sum(spec.stage_depths) * {"basic": 2, "bottleneck": 1}[spec.block]
        most = fewest + 4  # stems, and shortcuts of 3x3
        if fewest <= _NEAR * (num_spatial + 1) and num_spatial <= _NEAR * most:
            found.append(name)
    return found


def _spatial_kernels(shapes: Shapes) -> list[tuple[int, ...]]:
    """Shapes of all convolutions except 1x1, of which attention in other networks has more."""
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
            view.tensors, spec, layout, reset_counters=True, allow_nonfinite=True
        )
    except ConversionError:
        return None
    has_counters = set(layout.tensors(classifier).values()) <= set(view.given)
    return Guess(layout, name, classifier, 1.0, has_counters)


def _nearest(candidates: Iterable[_Candidate]) -> Guess | None:
    """The one with the largest share of names that fit; of several, the one with most signs."""
    pairs = [(_overlap(*candidate), candidate[0]) for candidate in candidates]
    largest = max((found.share for found, _ in pairs), default=0)
    if largest == 0:
        return None
    best = [(*_problems(v, found), found) for found, v in pairs if found.share == largest]
    signs, problems, found = max(best, key=lambda entry: len(entry[0]))
    return replace(found, problems=(*signs, *problems))


def _overlap(view: _View, name: str, spec: ResNetSpec) -> Guess:
    given, layout = view.given, view.layout
    classifier = layout.with_head(spec, given)
    expected = layout.shapes(classifier)
    same = sum(given.get(theirs) == shape for theirs, shape in expected.items())
    num_missing = sum(theirs not in given for theirs in expected)
    return Guess(layout, name, classifier, same / (len(given) + num_missing))


def _problems(view: _View, found: Guess) -> tuple[list[str], list[str]]:
    """The signs of another network, and the first of what does not fit."""
    layout = view.layout
    problems = shape_problems(layout, layout.shapes(found.classifier), view.given)
    return list(layout.signs(view.given)), list(shorten(problems))
