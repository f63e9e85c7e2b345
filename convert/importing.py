"""Weights of any source under our names, with the head and preprocessing that the user asks for."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from convert.arrays import array_problems, counters_reset, is_counter, is_floating
from convert.errors import ConversionError
from convert.folding import EPSILON, fold
from convert.guess import as_options, undecided
from convert.layouts import OURS, Layout, read_layout
from convert.layouts.translate import HEAD_ALONE
from convert.names import RESIDUAL, determine, under_our_names
from convert.preprocessing import stated_preprocessing
from convert.sources import Source
from convert.structure import Recognition
from convert.weights import LARGEST_DESCRIPTION, Weights
from convert.wrappers import name_some, without_training_state
from resnet_spec import DIALECT, RATES, ClassifierSpec, ResNetSpec

_CAFFES = (
    "its BatchNorms have no statistics (means of 0, variances of 1), as Caffe's ResNets have in "
    "Detectron2 (MSRA) and MMDetection (caffe): these take channels in the order blue, green, red, "
    "from 0 to 255, and have the stride in the first 1x1, which no tensor shows"
)
_NEARLY = 1e-4  # Detectron2 takes its epsilon off a variance of one
_MOST_CLASSES = 10**6
_SEED = 0  # a new head is the same each time


@dataclass(frozen=True)
class Statement:
    """What the user says of weights.

    Attributes:
        layout: whose names they have, None where the user does not say it.
        model: the name in our table, None where the source says it.
        fields: fields of the spec that neither names nor shapes show.
        names: the file's name of layers or tensors by ours.
        epsilon: of every BatchNorm of the source.
        statistics_batch_size: that the running variances were taken over, None as the source says.
        reset_counters: take every `num_batches_tracked` as zero that is missing or no int64.
        allow_nonfinite: accept NaN, infinite values and negative variances.
    """

    layout: Layout | None = None
    model: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] | None = None
    epsilon: float = EPSILON
    statistics_batch_size: int | None = None
    reset_counters: bool = False
    allow_nonfinite: bool = False


def as_ours(source: Source, stated: Statement, head: str = "keep") -> Weights:
    """The source's weights under our names, with notes on what was left out or is not certain.

    Args:
        source: an accepted one.
        stated: what the user says of it.
        head: as for `change_head`; an old head that is not kept need not fit.

    Raises:
        ConversionError: nothing says which model they are, the source and the user disagree, or
            the tensors are not those of the model.
    """
    weights, described = source.weights, source.weights.classifier
    arrays, notes = weights.arrays, list(weights.notes)
    layout = stated.layout or OURS
    if layout == source.layout:
        layout = OURS  # translated already
    if layout.spelling.has_collections or stated.layout is None:
        arrays, left_out = without_training_state(arrays)
        notes += left_out
    found = _determine(source, arrays, stated, keeps_head=head == "keep")
    kept_open, in_file = list[str](), arrays
    if found is None:
        spec = _find_network(source, layout, stated)
        names = dict(layout.whole_names({name: name for name in arrays}))
        arrays = {name: arrays[theirs] for name, theirs in names.items()}
    else:
        recognition, sentence = found
        spec, names = recognition.classifier.network, dict(recognition.names)
        arrays, more = under_our_names(arrays, recognition)
        notes += [sentence, *more]
        kept_open = [RESIDUAL]
    epsilon = layout.epsilon if found is None else found[0].epsilon
    epsilon = epsilon if stated.epsilon == EPSILON else stated.epsilon
    if described is None and source.beside is None:
        known = () if epsilon == EPSILON else ("epsilon",)
        taken = ", ".join([*kept_open, *undecided(spec, (*stated.fields, *known))])
        notes.append(f"tensors do not show this, taken as {taken}")
    if head != "keep":
        arrays, left_out = _without_head(arrays, spec, layout)
        if left_out:
            theirs = [names.get(name, name) for name in left_out]
            notes.append(f"left out: {name_some(theirs)}, the head")
        elif head == "drop" and (found is None or not found[0].beside):
            raise ConversionError(f"--head drop: {source.path} has no head")
    _check_stated(spec, layout, stated)
    faults, biases = list(weights.faults), dict[str, np.ndarray]()
    if described is None:
        if not layout.has_conv_bias:
            arrays, biases = _without_biases(arrays, spec, layout)
        named = {names.get(name, name): array for name, array in biases.items()}
        faults += array_problems(named, stated.allow_nonfinite)
        arrays, more = _with_counters(arrays, spec, layout)
        notes += more
    if head == "keep" and layout == OURS:
        faults += _missing_head(weights)
    given = arrays
    try:
        arrays, classifier = read_layout(
            given,
            spec,
            layout,
            reset_counters=stated.reset_counters,
            allow_nonfinite=stated.allow_nonfinite,
        )
    except ConversionError as error:
        problems = [*faults, *(_with_names(problem, names) for problem in error.problems)]
        if head == "keep" and HEAD_ALONE in problems:
            problems.append("--head drop leaves it out, --head new:N makes another")
        raise ConversionError(error.what, problems) from error
    if faults:
        raise ConversionError(f"{source.path} holds what no weights should:", faults)
    if described is None and _has_no_statistics(arrays):
        is_open = spec.block == "bottleneck" and "bottleneck_stride" not in stated.fields
        if is_open and found is not None:
            raise ConversionError(
                f"{source.path}: {_CAFFES}: --bottleneck-stride 1x1 or 3x3 says it"
            )
        notes.append(_CAFFES)
    notes += counters_reset(arrays, given) if stated.reset_counters else []
    folded = {
        f"{path}.bias": biases[name] for path, name in _biases(spec, layout) if name in biases
    }
    with np.errstate(over="ignore"):  # to infinity, in float16
        arrays, more = fold({**arrays, **folded}, spec, epsilon)
    notes += more
    if described is None:
        if found is None:
            theirs = layout.tensors(classifier)
            theirs |= {f"{path}.bias": name for path, name in _biases(spec, layout)}
            names = {ours: names[name] for ours, name in theirs.items() if name in names}
        weights, more = _with_author_names(weights, names, in_file, epsilon)
        notes += [*more, *_dtypes(in_file)]
    elif epsilon != EPSILON:
        weights = dataclasses.replace(weights, names={})
    batch_size = stated.statistics_batch_size
    if described is not None:
        notes += _replaced(described.network, layout, stated)
        batch_size = described.statistics_batch_size if batch_size is None else batch_size
    classifier = dataclasses.replace(classifier, statistics_batch_size=batch_size)
    return dataclasses.replace(weights, arrays=arrays, classifier=classifier, notes=tuple(notes))


def change_head(weights: Weights, choice: str, *, is_headless: bool = False) -> Weights:
    """Weights with the head that `choice` says.

    Args:
        weights: of a described model.
        choice: `keep`; `drop`, which leaves the pooled features; or `new:N`, a linear layer of N
            classes, both parameters uniform as torch draws them, in the dtype of the convolutions.
        is_headless: the old head has been left out already.

    Raises:
        ConversionError: `choice` is none of these, or there is no head to drop.
    """
    if choice == "keep":
        return weights
    classifier, preprocessing = weights.classifier, weights.preprocessing
    assert classifier is not None
    body = {name: array for name, array in weights.arrays.items() if not name.startswith("head.")}
    if preprocessing is not None:  # class names are those of the old head
        preprocessing = dataclasses.replace(preprocessing, class_names=None)
    kind, _, number = choice.partition(":")
    num_classes, head = None, {}
    if choice == "drop":
        if classifier.num_classes is None and not is_headless:
            raise ConversionError("--head drop: these weights have no head")
    elif kind == "new" and number.isdecimal() and 0 < int(number) <= _MOST_CLASSES:
        num_classes, in_planes = int(number), classifier.network.out_planes
        generator, bound = np.random.default_rng(_SEED), in_planes**-0.5
        dtype = weights.arrays["stem.conv.weight"].dtype
        shapes = {"head.weight": (num_classes, in_planes), "head.bias": (num_classes,)}
        head = {n: generator.uniform(-bound, bound, s).astype(dtype) for n, s in shapes.items()}
    else:
        raise ConversionError(f"--head is keep, drop or new:N with N classes, not {choice!r}")
    return dataclasses.replace(
        weights,
        arrays={**body, **head},
        classifier=dataclasses.replace(classifier, num_classes=num_classes, head_bias=True),
        preprocessing=preprocessing,
    )


def change_as_asked(
    weights: Weights, head: str, preprocessing: str | None, *, is_headless: bool = False
) -> Weights:
    """Weights with another head, as `change_head` makes it, and another preprocessing.

    `preprocessing` is a text for `stated_preprocessing`, `none`, or None for the source's own. The
    names of the classes stay with the head.
    """
    weights = change_head(weights, head, is_headless=is_headless)
    if preprocessing is None:
        return weights
    if (before := weights.preprocessing) is not None:
        note = f"instead of the source's preprocessing, {before}"
        weights = dataclasses.replace(weights, notes=(*weights.notes, note))
    if preprocessing == "none":
        return dataclasses.replace(weights, preprocessing=None)
    assert weights.classifier is not None
    classifier = weights.classifier
    known, remark = stated_preprocessing(preprocessing, classifier.network)
    if remark:
        weights = dataclasses.replace(weights, notes=(*weights.notes, remark))
    names = known.class_names
    if head != "keep" or (names is not None and len(names) != classifier.num_classes):
        names = None  # nobody has trained a new head yet
    if head == "keep" and before is not None and before.class_names is not None:
        names = before.class_names
    known = dataclasses.replace(known, class_names=names)
    return dataclasses.replace(weights, preprocessing=known)


def _determine(
    source: Source, arrays: Mapping[str, np.ndarray], stated: Statement, *, keeps_head: bool
) -> tuple[Recognition, str] | None:
    """The network that names and shapes determine, where neither source nor user says it all."""
    described = source.weights.classifier is not None
    if stated.names is not None and (described or stated.layout is not None):
        other = f"{source.path} says itself" if described else "--layout says"
        raise ConversionError(f"leave out --names: {other} which tensor is which")
    if described or stated.layout is not None:
        return None
    if stated.names is None:
        if stated.model is None and source.beside is not None:
            return None  # which a message says
        if stated.model is not None and "stem.conv.weight" in arrays:
            return None  # our names
    try:
        found = determine(
            source.path,
            arrays,
            model=stated.model,
            fields=stated.fields,
            told=stated.names,
            keeps_head=keeps_head,
        )
    except ConversionError as error:
        raise ConversionError(error.what, [*source.weights.faults, *error.problems]) from error
    if found is not None:
        source.check_beside(found[0].classifier.network)
    return found


def _has_no_statistics(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether all BatchNorms are trained, but have the statistics with which they begin."""

    def all_are(leaf: str, value: float) -> bool:
        found = (array for name, array in arrays.items() if name.endswith(leaf))
        return all(np.abs(array.astype(np.float32) - value).max() < _NEARLY for array in found)

    is_trained = not all_are(".bn1.bias", 0)
    return is_trained and all_are(".running_mean", 0) and all_are(".running_var", 1)


def _biases(spec: ResNetSpec, layout: Layout) -> Iterator[tuple[str, str]]:
    """(our layer, the layout's name of its bias) of every convolution, which ours have not."""
    layers = dict(layout.names(spec))
    for path, _ in spec.convolutions():
        yield path, layout.spelling.name(layers[path], "bias", 1)


def _without_biases(
    arrays: Mapping[str, np.ndarray], spec: ResNetSpec, layout: Layout
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Tensors under a layout's names without the biases of convolutions, and these."""
    convolutions, biases = dict(spec.convolutions()), dict[str, np.ndarray]()
    for path, name in _biases(spec, layout):
        if name in arrays and arrays[name].shape == (convolutions[path].out_planes,):
            biases[name] = arrays[name]
    return {name: array for name, array in arrays.items() if name not in biases}, biases


def _with_counters(
    arrays: Mapping[str, np.ndarray], spec: ResNetSpec, layout: Layout
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Tensors with zero for each missing counter, as torch itself loads them, and a note."""
    names = layout.tensors(ClassifierSpec(spec)).values()
    missing = [name for name in names if is_counter(name) and name not in arrays]
    note = f"taken as zero: {len(missing)} num_batches_tracked, which the file lacks"
    zeros = {name: np.zeros((), np.int64) for name in missing}
    return {**arrays, **zeros}, [note] if missing else []


def _with_author_names(
    weights: Weights,
    names: Mapping[str, str],
    in_file: Mapping[str, np.ndarray],
    epsilon: float,
) -> tuple[Weights, list[str]]:
    """Weights that keep what their author called them, and a note where they cannot."""
    ours_of = {theirs: ours for ours, theirs in names.items()}
    kept = {ours_of[name]: weights.names.get(name, name) for name in in_file if name in ours_of}
    notes = []
    if epsilon != EPSILON:
        notes.append("the file's names are not kept: under them goes another epsilon")
    elif any(in_file[names[ours]].shape[:-1] == (1, 1, 1) for ours in kept if ".bn" in ours):
        notes.append("the file's names are not kept: its BatchNorms have the axes of images")
    elif len(json.dumps(kept)) > LARGEST_DESCRIPTION * 3 // 4:
        notes.append("the file's names are not kept: they are too long")
    if notes or all(ours == theirs for ours, theirs in kept.items()):
        return dataclasses.replace(weights, names={}), notes
    head = in_file.get(names.get("head.weight", ""))
    has_conv_head = head is not None and head.ndim == 4
    return dataclasses.replace(weights, names=kept, has_conv_head=has_conv_head), []


def _dtypes(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """A note on the floating-point dtypes of a file, unless all are float32."""
    counts = Counter(array.dtype.name for array in arrays.values() if is_floating(array.dtype))
    if set(counts) <= {"float32"}:
        return []
    said = ", ".join(f"{count} tensors of {name}" for name, count in counts.items())
    return [f"dtypes are kept: {said}"]


def _with_names(problem: str, names: Mapping[str, str]) -> str:
    """A sentence with the file's own names instead of ours, or of a layout's.

    A tensor that is missing is called as the others: `downsample` where a layout has `shortcut`.
    """
    pairs = ((ours.split("."), theirs.split(".")) for ours, theirs in names.items())
    parts = dict(
        p
        for ours, theirs in pairs
        if len(ours) == len(theirs)
        for p in zip(ours, theirs, strict=True)
    )

    def theirs(word: str) -> str:
        return names.get(word) or ".".join(parts.get(part, part) for part in word.split("."))

    kind, _, rest = problem.partition(": ")
    if kind not in ("missing", "left over", "shape"):
        return " ".join(names.get(word, word) for word in problem.split(" "))
    name, _, rest = rest.partition(" ")
    return f"{kind}: {theirs(name)} {rest}"


def _find_network(source: Source, layout: Layout, stated: Statement) -> ResNetSpec:
    """The network, on which the source and the user must agree."""
    weights, described = source.weights, source.weights.classifier
    has_our_names = described and described.tensors().keys() <= weights.arrays.keys()
    if has_our_names and layout != OURS:
        raise ConversionError(
            f"{source.path} says itself which model it is, and has the names of the layout "
            f"{OURS.name}: leave out --layout {layout.name}, --model is not needed"
        )
    if described is not None and (layout == OURS or stated.model is not None):
        spec = asked = dataclasses.replace(described.network, **stated.fields)
        if stated.model is not None:
            asked = layout.network(stated.model, weights.arrays, **stated.fields)
        differences = asked.differences(described.network)
        if problems := [d for d in differences if d.partition(":")[0] not in stated.fields]:
            raise ConversionError(f"{source.path} says that it is of another network:", problems)
        return spec
    if stated.model is None and source.beside is not None:
        raise ConversionError(
            f"give the folder, {source.path.parent}, whose config.json says what it holds, or "
            "--model and --layout"
        )
    if stated.model is None:
        raise ConversionError(
            f"give --model, the name in our table of what {source.path} holds, and --layout "
            "where its names are not ours: `resnet-convert inspect` guesses both"
        )
    spec = layout.network(stated.model, weights.arrays, **stated.fields)
    source.check_beside(spec)
    return spec


def _without_head(
    arrays: Mapping[str, np.ndarray], spec: ResNetSpec, layout: Layout
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Tensors without all that is under the head's name, `fc.1.weight` too, and these names."""
    layout.check(spec)
    arrays, path = layout.whole_names(arrays), layout.head_path(spec)
    left_out = [name for name in arrays if name.startswith(path)]
    return {name: array for name, array in arrays.items() if name not in left_out}, left_out


def _missing_head(weights: Weights) -> list[str]:
    """The tensors of the head that a source says it has, and lacks, if its network is there."""
    expected = {} if weights.classifier is None else weights.classifier.tensors()
    if not expected.keys() & weights.arrays.keys():
        return []
    return [
        f"missing: {name} {shape}, which it says it has (--head new:{shape[0]} makes a new head)"
        for name, shape in expected.items()
        if name.startswith("head.") and name not in weights.arrays
    ]


def _check_stated(spec: ResNetSpec, layout: Layout, stated: Statement) -> None:
    """As `Layout.check`, with the way in for what a user states and the package does not have."""
    try:
        layout.check(spec)
    except ConversionError as error:
        foreign = {
            name: value
            for name, value in stated.fields.items()
            if name in (*DIALECT, *RATES) and any(p.startswith(f"{name}=") for p in error.problems)
        }
        if not foreign:
            raise
        said = as_options(foreign)
        way = (
            f"a file that has these names all the same is imported in two steps: without {said}, "
            f"then, from the file that this makes: resnet-convert import THAT {said} -o OUTPUT"
        )
        raise ConversionError(error.what, [*error.problems, way]) from error


def _replaced(described: ResNetSpec, layout: Layout, stated: Statement) -> list[str]:
    """Notes on where the source's own description differs from the model's name, or is replaced."""
    notes = []
    if stated.model is not None:
        asked = layout.network(stated.model, **stated.fields)
        notes = [
            f"not as {stated.model}: {difference} (--{name.replace('_', '-')} changes it)"
            for difference in asked.training_differences(described)
            if (name := difference.partition(":")[0]) not in stated.fields
        ]
    return notes + [
        f"instead of the source's {name}, {value}: {stated.fields[name]}"
        for name, value in described.to_json().items()
        if stated.fields.get(name, value) != value
    ]
