"""Which layout and model a file of tensors is of, from names and shapes alone."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from convert.errors import ConversionError
from convert.layouts import LAYOUTS, read_layout
from convert.layouts.layout import Layout, Shapes
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
    """

    layout: str
    model: str
    classifier: ClassifierSpec
    share: float
    has_counters: bool = True

    @property
    def undecided(self) -> list[str]:
        """The fields that tensors cannot show, as they were taken: `padding='even'`."""
        spec = self.classifier.network
        names = [name for name in DIALECT if spec.block != "basic" or name != "bottleneck_stride"]
        if spec.shortcut in ("identity", "centred_identity"):
            names.append("shortcut")
        return [f"{name}={getattr(spec, name)!r}" for name in names]


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
    best = max(nearest, key=lambda found: found.share, default=None)
    return [best] if best is not None and best.share > 0 else []


def _candidates(shapes: Shapes) -> Iterator[tuple[Layout, str, ResNetSpec]]:
    """The networks in every layout that has a name for the stem which the file has, too."""
    num_convs = sum(len(shape) == 4 for shape in shapes.values())
    names = [n for n in (*MODELS, *_other_widths(shapes)) if _has_about(find_spec(n), num_convs)]
    for layout in LAYOUTS.values():
        for name in names:
            for spec in _variants(layout, name):
                stem = layout.spelling.name(next(iter(layout.names(spec)))[1], "weight", 4)
                if len(shapes.get(stem, ())) == 4:
                    in_planes = _torch_shape(layout, stem, shapes[stem])[1]
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
    expected = layout.tensors(classifier).values()
    return Guess(layout.name, name, classifier, 1.0, set(expected) <= set(shapes))


def _overlap(shapes: Shapes, layout: Layout, name: str, spec: ResNetSpec) -> Guess:
    classifier = ClassifierSpec(spec, 1)
    theirs, ours = layout.tensors(classifier), classifier.tensors()
    given = {key: _torch_shape(layout, key, shape) for key, shape in shapes.items()}
    same = sum(given.get(their) == ours[key] for key, their in theirs.items())
    return Guess(layout.name, name, ClassifierSpec(spec), same / len({*theirs.values(), *given}))


def _torch_shape(layout: Layout, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return layout.spelling.to_ours(name, np.broadcast_to(np.int8(0), shape)).shape
