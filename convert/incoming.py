"""A source's weights under our names, of the model that it or the user states, and as asked for."""

import argparse
import dataclasses

from convert.arrays import counters_reset
from convert.errors import ConversionError
from convert.guess import undecided
from convert.heads import change_head, without_head
from convert.layouts import HEAD_ALONE, find_layout, layout_spec, read_layout, with_channels
from convert.options import as_options, stated
from convert.sources import Source
from convert.weights import Weights
from convert.wrappers import name_some, without_training_state
from resnet_spec import DIALECT, PREPROCESSINGS, RATES, ResNetSpec

_OURS = "flax-resnet"


def as_ours(source: Source, options: argparse.Namespace) -> Weights:
    """The source's weights under our names, with notes on what was left out or taken on trust.

    Raises:
        ConversionError: nothing says which model they are, or their source says another than the
            user; or they are not those of the model.
    """
    weights, described = source.weights, source.weights.classifier
    layout = options.layout or _OURS
    if source.layout is not None and layout == source.layout:
        layout = _OURS  # the folder's names are translated already
    spec, notes = _find_network(source, layout, options), list(weights.notes)
    if described is None and source.beside is None:
        taken = ", ".join(undecided(spec, stated(options)))
        notes.append(f"not to be seen in tensors, taken as {taken}")
    arrays = weights.arrays
    if find_layout(layout).spelling.has_collections:
        arrays, left_out = without_training_state(arrays)
        notes += left_out
    if options.head != "keep":
        arrays, left_out = without_head(arrays, spec, layout)
        if left_out:
            notes.append(f"left out: {name_some(left_out)}, the head")
        elif options.head == "drop":
            raise ConversionError(f"--head drop: {options.source} has no head")
    _check_stated(spec, layout, options)
    faults = list(weights.faults)
    if options.head == "keep" and layout == _OURS:
        faults += _missing_head(weights)
    given = arrays
    try:
        arrays, classifier = read_layout(
            given,
            spec,
            layout,
            reset_counters=options.reset_counters,
            allow_nonfinite=options.allow_nonfinite,
        )
    except ConversionError as error:
        problems = [*faults, *error.problems]
        if options.head == "keep" and HEAD_ALONE in problems:
            problems.append("--head drop leaves it out, --head new:N makes another")
        raise ConversionError(error.what, problems) from error
    if faults:
        raise ConversionError(f"{options.source} holds what no weights should:", faults)
    notes += counters_reset(arrays, given) if options.reset_counters else []
    if described is not None:
        classifier = dataclasses.replace(
            classifier, statistics_batch_size=described.statistics_batch_size
        )
        changes = stated(options)
        if options.model is not None:
            asked = layout_spec(options.model, layout, **changes)
            notes += [
                f"not as {options.model}: {difference} (--{name.replace('_', '-')} changes it)"
                for difference in asked.training_differences(described.network)
                if (name := difference.partition(":")[0]) not in changes
            ]
        notes += [
            f"instead of the source's {name}, {value}: {changes[name]}"
            for name, value in described.network.to_json().items()
            if changes.get(name, value) != value
        ]
    if (batch_size := options.statistics_batch_size) is not None:
        classifier = dataclasses.replace(classifier, statistics_batch_size=batch_size)
    return dataclasses.replace(weights, arrays=arrays, classifier=classifier, notes=tuple(notes))


def _missing_head(weights: Weights) -> list[str]:
    """What is missing of the head that a source says it has, where its network is there."""
    if weights.classifier is None:
        return []
    expected = weights.classifier.tensors()
    if not expected.keys() & weights.arrays.keys():
        return []
    return [
        f"missing: {name} {shape}, which it says it has (--head new:{shape[0]} makes a new head)"
        for name, shape in expected.items()
        if name.startswith("head.") and name not in weights.arrays
    ]


def _check_stated(spec: ResNetSpec, layout: str, options: argparse.Namespace) -> None:
    """As `Layout.check`, with the way in for what a user states that the package has not."""
    try:
        find_layout(layout).check(spec)
    except ConversionError as error:
        foreign = {
            name: value
            for name, value in stated(options).items()
            if name in (*DIALECT, *RATES) and any(p.startswith(f"{name}=") for p in error.problems)
        }
        if not foreign:
            raise
        said = as_options(foreign)
        way = (
            f"a file that has these names all the same comes in by two steps: without {said}, "
            f"then, from the file that this makes: resnet-convert import THAT {said} -o OUTPUT"
        )
        raise ConversionError(error.what, [*error.problems, way]) from error


def as_asked(
    weights: Weights, options: argparse.Namespace, *, is_headless: bool = False
) -> Weights:
    """Described weights with the head and the preprocessing that the user asks for.

    With `is_headless` the old head has been left out.
    """
    weights = change_head(weights, options.head, is_headless=is_headless)
    if options.preprocessing is None:
        return weights
    if weights.preprocessing is not None:
        print(f"note: instead of the source's preprocessing, {weights.preprocessing}")
    if options.preprocessing == "none":
        return dataclasses.replace(weights, preprocessing=None)
    assert weights.classifier is not None
    known = PREPROCESSINGS[options.preprocessing]
    names = known.class_names
    if names is not None and len(names) != weights.classifier.num_classes:
        names = None
    if options.head != "keep":  # a head that nobody has trained yet
        names = None
    elif weights.preprocessing is not None and weights.preprocessing.class_names is not None:
        names = weights.preprocessing.class_names  # of the head, not of the pictures
    known = dataclasses.replace(known, class_names=names)
    return dataclasses.replace(weights, preprocessing=known)


def _find_network(source: Source, layout: str, options: argparse.Namespace) -> ResNetSpec:
    """The network, of which what the source and the user say must agree."""
    weights, described = source.weights, source.weights.classifier
    changes = stated(options)
    if (
        described is not None
        and layout != _OURS
        and described.tensors().keys() <= weights.arrays.keys()
    ):
        raise ConversionError(
            f"{options.source} says itself which model it is, and has the names of the layout "
            f"{_OURS}: leave out --layout {layout}, --model is not needed"
        )
    if described is not None and (layout == _OURS or options.model is not None):
        spec = dataclasses.replace(described.network, **changes)
        asked = spec
        if options.model is not None:
            asked = with_channels(
                layout_spec(options.model, layout, **changes), weights.arrays, layout
            )
        differences = asked.differences(described.network)
        if problems := [d for d in differences if d.partition(":")[0] not in changes]:
            raise ConversionError(f"{options.source} says that it is of another network:", problems)
        return spec
    if options.model is None and source.beside is not None:
        raise ConversionError(
            f"give the folder, {options.source.parent}, whose config.json says what it holds, or "
            "--model and --layout"
        )
    if options.model is None:
        raise ConversionError(
            f"give --model, the name in our table of what {options.source} holds, and --layout "
            "where its names are not ours: `resnet-convert inspect` guesses both"
        )
    spec = with_channels(layout_spec(options.model, layout, **changes), weights.arrays, layout)
    source.check_beside(options.source, spec)
    return spec
