"""What a file, a run or a folder holds: `resnet-convert inspect`."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convert.arrays import digest, dtype_problems, value_problems
from convert.errors import ConversionError
from convert.guess import Guess, find_prefix, guess, name_of, undecided
from convert.hub import shown
from convert.inference import is_program, read_program_description
from convert.layouts import OURS
from convert.models import check
from convert.names import (
    RESIDUAL,
    by_layout,
    by_structure,
    of_part,
    open_layers,
    other_network,
    probably_other_network,
    under_our_names,
    with_names,
    within,
)
from convert.sources import Source, read_source
from convert.structure import Recognition
from convert.weights import Weights
from convert.wrappers import name_some, without_training_state
from resnet_spec import ClassifierSpec

_SHOWN = 8  # problems of one match shown to a person
# What is not trained, by torch's names and Flax's.
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "mean", "var")


def inspect(
    path: Path,
    prefix: str = "",
    entry: str = "",
    *,
    renames: Sequence[str] = (),
    has_names: bool = False,
) -> dict[str, Any]:
    """Format, layout, model, head, dtypes and numbers of a source, as JSON values.

    Args:
        path: a file, a run or a folder.
        prefix: look only at the tensors of a file whose names begin with it, and remove it.
        entry: which state dict of several in what `torch.save` wrote.
        renames: replacements `OLD=NEW` in the names.
        has_names: tell also what the file calls our tensors.

    Raises:
        ConversionError: the source is damaged or its form is not known.
        OSError: it cannot be read.
    """
    if is_program(path):
        if entry or prefix:
            raise ConversionError(f"--entry and --prefix are for weights, and {path} is a program")
        note = "a model for inference: its tensors were not looked at"
        weights = read_program_description(path)
        weights = dataclasses.replace(weights, notes=(note, *weights.notes))
        source = Source(path, weights, f"{path.suffix} file")
    else:
        source = read_source(path, entry=entry, prefix=prefix, reset_counters=True)
        source = with_names(source, renames)
    weights = source.weights
    if weights.faults:
        raise ConversionError(f"{path} holds what no weights should:", weights.faults)
    notes, ours = list(_notes(source)), dict[str, np.ndarray]()
    names: dict[str, str] = {}
    if weights.classifier is not None:
        matches = [_described(weights, (source.layout or OURS).name)]
        ours = {} if matches[0]["problems"] else dict(weights.arrays)
        names = dict(weights.names) or {name: name for name in ours}
    else:
        arrays, left_out = without_training_state(weights.arrays)
        notes += left_out
        found = guess({name: array.shape for name, array in arrays.items()})
        matches = [_guessed(one) for one in found]
        if found and found[0].share == 1:
            recognised = (by_layout(arrays, found[0]),)
        else:
            structure = by_structure(arrays)
            notes += [*other_network(arrays), *probably_other_network(arrays)]
            recognised = structure.networks
            if not recognised and (part := within(arrays)) is not None:
                notes += [*part.problems, *part.notes]
                recognised = of_part(arrays, part)
            matches = [_recognised(one, len(recognised)) for one in recognised] or matches
            if structure.left_over:
                no_layer = name_some(structure.left_over)
                notes.append(f"no layer of a ResNet of ours has {no_layer}")
        if len(recognised) == 1 and not recognised[0].open:
            ours, names = _under_our_names(arrays, recognised[0]), dict(recognised[0].names)
        if not matches and weights.arrays:
            notes.append(f"the first names are {name_some(weights.arrays)}")
        inner = find_prefix(weights.arrays)
        if inner is not None and not names:
            notes.append(f"names of a known layout are behind {inner!r}: --prefix {inner}")
    preprocessing = weights.preprocessing
    return {
        "source": shown(path),
        "format": source.form,
        "matches": matches,
        "tensors": len(weights.arrays),
        "parameters": sum(
            array.size for name, array in weights.arrays.items() if not name.endswith(_BUFFERS)
        ),
        "digest": digest(ours) if ours else None,
        "dtypes": dict(collections.Counter(str(a.dtype) for a in weights.arrays.values())),
        "preprocessing": None if preprocessing is None else preprocessing.to_json(),
        "notes": notes,
        **({"names": names} if has_names else {}),
    }


def _under_our_names(arrays: Mapping[str, np.ndarray], found: Recognition) -> dict[str, np.ndarray]:
    """The arrays of a file whose network is known; none where their values do not fit."""
    try:
        ours, _ = under_our_names(arrays, found)
        check(found.classifier, ours)
    except ConversionError:  # of dtypes that lose bits, which the notes name
        return {}
    return ours


def _described(weights: Weights, layout: str) -> dict[str, Any]:
    classifier = weights.classifier
    assert classifier is not None
    problems: list[str] = []
    try:
        if weights.arrays:
            check(classifier, weights.arrays)
    except ConversionError as error:
        problems = error.problems
    return {
        "layout": layout,
        "model": name_of(classifier.network),
        "sure": "the file says so, but lacks its tensors" if problems else "the file says so",
        "problems": problems,
        **_fields(classifier),
        "options": "",
        "undecided": [],
    }


def _fields(classifier: ClassifierSpec) -> dict[str, Any]:
    return {
        "num_classes": classifier.num_classes,
        "statistics_batch_size": classifier.statistics_batch_size,
        "spec": classifier.network.to_json(),
    }


def _guessed(found: Guess) -> dict[str, Any]:
    exact = "every name and shape fits"
    if not found.has_counters:
        exact += ", but num_batches_tracked are missing (--reset-counters takes them as zero)"
    return {
        "layout": found.layout.name,
        "model": found.model,
        "sure": exact
        if found.share == 1
        else f"only {int(100 * found.share)}% of the names fit: nearest",
        "problems": list(found.problems),
        **_fields(found.classifier),
        "options": found.options if found.share == 1 else "",
        "undecided": found.undecided,
    }


def _recognised(found: Recognition, count: int) -> dict[str, Any]:
    sure = "every tensor has its place"
    if count > 1:
        sure = f"one of {count} networks that have these tensors"
    elif found.open:
        sure = "but not which layer is which"
    return {
        "layout": None,
        "model": name_of(found.classifier.network),
        "sure": sure,
        "problems": list(open_layers(found)),
        **_fields(found.classifier),
        "options": "",
        "undecided": [RESIDUAL, *undecided(found.classifier.network)],
    }


def _notes(source: Source) -> Iterator[str]:
    weights = source.weights
    yield from weights.notes
    if weights.unsaid is not None:
        yield f"left out: its preprocessing: {weights.unsaid}"
    if source.refused is not None:
        yield f"refused by `import`: {source.refused}"
    for name, array in weights.arrays.items():
        yield from value_problems(name, array)
        yield from dtype_problems(name, array)


def as_text(found: dict[str, Any]) -> str:
    """What `inspect` found, as lines of text for a person."""
    lines = [f"{found['source']}: {found['format']}"]
    for match in found["matches"]:
        spec = match["spec"]
        head = "no head" if match["num_classes"] is None else f"head of {match['num_classes']}"
        by = f"in the layout {match['layout']}"
        if match["layout"] is None:
            by = "recognised by structure"
        lines.append(
            f"  {match['model']} {by} ({match['sure']}), {spec['shortcut']} shortcuts, {head}"
        )
        if match["statistics_batch_size"] is not None:
            lines.append(f"    running variances over batches of {match['statistics_batch_size']}")
        if match["options"]:
            lines.append(f"    import it with {match['options']}")
        lines += [f"    {problem}" for problem in match["problems"][:_SHOWN]]
        if (more := len(match["problems"]) - _SHOWN) > 0:
            lines.append(f"    and {more} more")
        if match["undecided"]:
            lines.append(f"    tensors do not show this, taken as {', '.join(match['undecided'])}")
    if not found["matches"]:
        lines.append("  no known layout or model fits")
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in found["dtypes"].items())
    if found["tensors"]:
        lines.append(f"  {found['parameters']:,} parameters; {found['tensors']} tensors: {dtypes}")
    if found["digest"] is not None:
        lines.append(f"  digest of the weights: {found['digest']}")
    if (preprocessing := found["preprocessing"]) is not None:
        size, fraction = preprocessing["image_size"], preprocessing["crop_fraction"]
        lines.append(
            f"  images of {size} pixels, mean {preprocessing['mean']}, standard deviation "
            f"{preprocessing['std']}"
        )
        lines.append(
            f"    pictures of another size: {preprocessing['interpolation']}, the shorter side to "
            f"{int(size / fraction)}, the middle of it kept"
        )
        if (names := preprocessing["class_names"]) is not None:
            lines.append(f"  classes: {name_some(names)}")
    lines += [f"  note: {note}" for note in found["notes"]]
    names = found.get("names", {})
    width = max(map(len, names), default=0)
    return "\n".join([*lines, *(f"  {ours:{width}}  {names[ours]}" for ours in names)])
