"""Files of weights: written whole or not at all, read strictly, and loaded as either twin."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from convert import collector
from convert.arrays import checksum, value_problems
from convert.atomic import naming, replacing
from convert.errors import ConversionError
from convert.formats import FORMS, READ_ONLY_FORMS, Form, pytorch
from convert.formats.contents import Contents, Visitor
from convert.formats.signatures import LONGEST, name_form
from convert.layouts.timm_config import architecture_problems
from convert.models import arrays_of, build_flax, build_torch, check, describe
from convert.weights import Weights, decode_description, encode_description
from convert.wrappers import take_prefix, unwrap, unwrap_module
from resnet_spec import ClassifierSpec, Preprocessing

__all__ = [
    "READABLE",
    "SUFFIXES",
    "Weights",
    "load",
    "read_description",
    "read_weights",
    "save",
    "write_weights",
]

SUFFIXES = tuple(FORMS)  # written and read
READABLE = (*SUFFIXES, *READ_ONLY_FORMS)


def save(
    path: str | os.PathLike[str],
    model: Any,
    *,
    preprocessing: Preprocessing | None = None,
    statistics_batch_size: int | None = None,
    allow_nonfinite: bool = False,
) -> None:
    """Writes either twin, with its description, to a file of one of `SUFFIXES`.

    The tensors have our names and torch's axes: torch's own loaders read them into the twin. The
    file appears whole, read back and compared, or not at all. A model knows neither of its
    preprocessing nor of the batch that its running variances were taken over, which training on
    may change: say them, as `load_preprocessing` and `load_statistics_batch_size` give them back.

    Raises:
        ConversionError: the model cannot be described (own blocks, own head) or is not what it
            was built as, the preprocessing is of another number of channels or classes, a value
            is none of a weight, the suffix is unknown, or what was written reads back otherwise.
        OSError: the file cannot be written.
        ValueError: `statistics_batch_size` is not a positive integer.
    """
    model = unwrap_module(model)
    classifier = dataclasses.replace(describe(model), statistics_batch_size=statistics_batch_size)
    arrays = arrays_of(model)
    check(classifier, arrays)
    weights = Weights(arrays, classifier, preprocessing)
    write_weights(Path(path), weights, allow_nonfinite=allow_nonfinite)


def load(
    path: str | os.PathLike[str],
    backend: Literal["torch", "flax"],
    *,
    entry: str = "",
    allow_nonfinite: bool = False,
) -> Any:
    """The model of a file that `save` wrote, in eval mode, as a torch or a Flax twin.

    Args:
        path: the file.
        backend: which twin.
        entry: of several twins' state dicts in what `torch.save` wrote, the one to take.
        allow_nonfinite: take NaN, infinite values and negative variances, too.

    Raises:
        ConversionError: the file is damaged, does not describe its model, its tensors are not
            the ones of the model it describes, or a value is none of a weight.
        OSError: the file cannot be read.
        ValueError: the backend is unknown.
    """
    if backend not in ("torch", "flax"):
        raise ValueError(f"backend is 'torch' or 'flax', not {backend!r}")
    if Path(path).is_dir():
        raise ConversionError(
            f"{path} is a folder: `resnet-convert import {path} -o FILE` makes a file of it"
        )
    weights = read_weights(Path(path), entry=entry, judge_values=False)
    if weights.classifier is None:
        raise ConversionError(
            f"{path} does not say which model it holds: name its layout and model, as in "
            "`resnet-convert import FILE --layout torchvision --model ResNet50 -o OUT`"
        )
    build = build_torch if backend == "torch" else build_flax
    classifier, arrays = weights.classifier, dict(weights.arrays)
    judge(Path(path), weights, classifier=classifier, allow_nonfinite=allow_nonfinite)
    del weights
    try:
        return build(classifier, arrays, take=True)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error


@collector.put_off()
def write_weights(path: Path, weights: Weights, *, allow_nonfinite: bool = False) -> None:
    """Writes arrays and their description; see `save`."""
    weights.check_preprocessing()
    form = _form(path, reads=False)
    problems = _value_problems(weights.arrays, allow_nonfinite)
    if problems:
        raise ConversionError(f"{path} is not written:", problems)
    arrays, metadata = weights.arrays, encode_description(weights)
    checksums: Mapping[str, int] = {}
    same: set[str] = set()

    def compare(name: str, read: np.ndarray) -> None:
        written = arrays.get(name)
        if written is None or (read.shape, read.dtype) != (written.shape, written.dtype):
            return
        if checksum(read) == checksums[name]:
            same.add(name)

    with replacing(path) as temporary:
        with naming(path):
            checksums = form.write(temporary, arrays, metadata)
        written = form.read(temporary, compare)
        wrong = sorted(set(arrays) - same)
        is_told = all(written.metadata.get(name) == text for name, text in metadata.items())
        if wrong or not is_told:
            raise ConversionError(f"{path} reads back otherwise than written:", wrong)


def read_description(path: Path) -> Weights:
    """What a file says of its model and its preprocessing, without the arrays.

    Raises:
        ConversionError: the suffix is unknown, or the file or its description is damaged.
        OSError: the file cannot be read.
    """
    names: list[str] = []
    contents = _read(path, lambda name, _: names.append(name))
    return Weights({}, **decode_description(path, contents.metadata, len(names)))


@collector.put_off()
def read_weights(
    path: Path,
    *,
    suffix: str | None = None,
    entry: str = "",
    prefix: str = "",
    allow_nonfinite: bool = False,
    judge_values: bool = True,
) -> Weights:
    """Arrays by name, their description where the file has one, and notes on what was left out.

    A prefix that torch's wrappers put before every name is taken off. Nothing in the file is run,
    and memory stays below three times the file and 200 MB.

    Args:
        path: the file.
        suffix: of the form that it is in, where its own name does not tell.
        entry: of the state dicts in what `torch.save` wrote, the one to take.
        prefix: take only the tensors whose names begin so, and take it off.
        allow_nonfinite: take NaN, infinite values and negative variances, too.
        judge_values: False takes whatever is there, and names the file's `faults`: who asks says
            at once all that is wrong with it, by `judge`.

    Raises:
        ConversionError: the suffix is unknown, the file is damaged or needs code to load, a name
            is there twice, an array is empty, or a value is none of a weight: all are listed.
        OSError: the file cannot be read.
    """
    arrays: dict[str, np.ndarray] = {}
    contents = _read(path, arrays.__setitem__, suffix, entry)
    description = decode_description(path, contents.metadata, len(arrays))
    try:
        arrays, notes = take_prefix(arrays, prefix) if prefix else unwrap(arrays)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error
    weights = Weights(
        arrays,
        **description,
        notes=(*contents.notes, *notes),
        faults=(*contents.problems, *architecture_problems(contents.architectures)),
    )
    if judge_values or not arrays:
        judge(path, weights, allow_nonfinite=allow_nonfinite)
    return weights


def judge(
    path: Path,
    weights: Weights,
    *,
    classifier: ClassifierSpec | None = None,
    allow_nonfinite: bool = False,
) -> None:
    """Raises a ConversionError with all that is wrong with a file's arrays.

    With a classifier, also where they are not its own.
    """
    problems = [*weights.faults, *_value_problems(weights.arrays, allow_nonfinite)]
    try:
        if classifier is not None:
            check(classifier, weights.arrays)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error.what}", [*error.problems, *problems]) from error
    if problems:
        raise ConversionError(f"{path} holds what no weights should:", problems)


def _read(path: Path, visit: Visitor, suffix: str | None = None, entry: str = "") -> Contents:
    form = _form(path, suffix)
    if entry and form is not pytorch:
        raise ConversionError(f"--entry is for what torch.save wrote, and {path} is another file")
    with path.open("rb") as file:  # a clear FileNotFoundError or PermissionError before any parser
        first = file.read(LONGEST)
    if not first:
        raise ConversionError(f"{path} is not a whole file: it is empty")
    try:
        return pytorch.read(path, visit, entry) if entry else form.read(path, visit)
    except ConversionError as error:
        if not (hint := name_form(first, form)):
            raise
        raise ConversionError(f"{path} {hint}; {error.what}", error.problems) from error


def _form(path: Path, suffix: str | None = None, *, reads: bool = True) -> Form:
    suffix = (path.suffix if suffix is None else suffix).lower()
    forms = {**FORMS, **(READ_ONLY_FORMS if reads else {})}
    if suffix not in forms:
        raise ConversionError(f"{path}: weights are in {', '.join(forms)} files")
    return forms[suffix]


def _value_problems(arrays: Mapping[str, np.ndarray], allow_nonfinite: bool) -> list[str]:
    if not arrays:
        return ["there is no array"]
    return [
        problem
        for name, array in arrays.items()
        for problem in value_problems(name, array, allow_nonfinite=allow_nonfinite)
    ]
