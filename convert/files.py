"""Files of weights: written whole or not at all, read strictly, and loaded as either twin."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from convert import collector
from convert.arrays import checksum, value_problems
from convert.atomic import naming, replacing
from convert.description import described_parts, only_description
from convert.errors import ConversionError
from convert.folding import without_masks
from convert.formats import FORMS, READ_ONLY_FORMS, contents, numpy_pickle, pytorch
from convert.formats.form import Contents, Reader, Visitor
from convert.layouts.timm import architecture_problems
from convert.models import judge
from convert.weights import Weights, decode_description, encode_description
from convert.wrappers import common_prefix, take_prefix, unwrap

AnyForm = TypeVar("AnyForm", bound=Reader)
SUFFIXES = tuple(FORMS)  # written and read
READABLE = (*SUFFIXES, *READ_ONLY_FORMS)
_LOOKED_AT = 2**10  # bytes that show a file's form


@collector.paused()
def write_weights(path: Path, weights: Weights, *, allow_nonfinite: bool = False) -> None:
    """Writes arrays and their description; see `save`."""
    weights.check_preprocessing()
    form = _form(path, FORMS)
    arrays, metadata = _as_torch_orders(weights), encode_description(weights)
    problems = [] if arrays else ["there is no array"]
    for name, array in arrays.items():
        problems += value_problems(name, array, allow_nonfinite=allow_nonfinite)
    if problems:
        raise ConversionError(f"{path} is not written:", problems)
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
        has_metadata = all(written.metadata.get(name) == text for name, text in metadata.items())
        if wrong or not has_metadata:
            raise ConversionError(f"{path} reads back otherwise than written:", wrong)


def _as_torch_orders(weights: Weights) -> Mapping[str, np.ndarray]:
    """The arrays in the order of torch's state dict: that of a Flax model's is another."""
    names = [] if weights.classifier is None else weights.classifier.tensors()
    is_ours = {*names} == {*weights.arrays}
    return {name: weights.arrays[name] for name in names} if is_ours else weights.arrays


def read_description(path: Path) -> Weights:
    """What a file says of its model and its preprocessing, without the arrays."""
    names: list[str] = []
    read = read_contents(path, lambda name, _: names.append(name))
    return Weights({}, **decode_description(path, read.metadata, len(names)))


@collector.paused()
def read_file(
    path: Path, *, suffix: str | None = None, entry: str = "", prefix: str = ""
) -> Weights:
    """Whatever a file holds, with its faults: `convert.models.judge` refuses them.

    A prefix that torch's wrappers put before every name is removed. Nothing in the file is run,
    and memory stays below three times the file and 200 MB.

    Args:
        path: the file.
        suffix: of its form, where neither its content nor its own name tells.
        entry: which state dict of several in what `torch.save` wrote.
        prefix: take only the tensors whose names begin with it, and remove it.

    Raises:
        ConversionError: neither content nor suffix is of a known form, or the file is damaged,
            empty or needs code to load.
        OSError: the file cannot be read.
    """
    arrays: dict[str, np.ndarray] = {}
    read = read_contents(path, arrays.__setitem__, suffix, entry)
    return as_weights(path, arrays, read, prefix)


def as_weights(
    path: Path, arrays: Mapping[str, np.ndarray], read: Contents, prefix: str = ""
) -> Weights:
    """The arrays that were read, by their names without prefixes, and what was said of them.

    Args:
        path: of the file, or of the index of several files, for messages.
        arrays: by their names there.
        read: what else it holds.
        prefix: as for `read_file`.

    Raises:
        ConversionError: no name begins with the prefix, there is no array, or the description is
            damaged.
    """
    faults = (*read.problems, *architecture_problems(read.architectures))
    try:  # the file's name of each array, by its name without prefixes
        names = {name: name for name in arrays}
        names, notes = take_prefix(names, prefix) if prefix else unwrap(names)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error
    description = _describe(path, read, arrays, common_prefix(names))
    arrays, names, more = without_masks({n: arrays[theirs] for n, theirs in names.items()}, names)
    if any(name != theirs for name, theirs in names.items()):
        description = {"names": names, **description}
    if not arrays:
        raise ConversionError(
            f"{path} holds what no weights should:", [*faults, "there is no array"]
        )
    return Weights(arrays, **description, notes=(*read.notes, *notes, *more), faults=faults)


def read_weights(path: Path, *, allow_nonfinite: bool = False) -> Weights:
    """As `read_file`; faults of the file, and values that no weight has, are a ConversionError."""
    weights = read_file(path)
    judge(path, weights, as_described=False, allow_nonfinite=allow_nonfinite)
    return weights


def _describe(path: Path, read: Contents, names: Collection[str], part: str) -> dict[str, Any]:
    """What a file says of the tensors whose names begin with `part`, as fields of `Weights`."""
    if read.modules is None:
        return decode_description(path, read.metadata, len(names))
    found = described_parts(read.modules, names, part)
    only = only_description(found)
    if found and only is None:
        raise ConversionError(
            f"{path} holds networks that are described differently: say which one to take",
            [f"--prefix {prefix}" for prefix in found],
        )
    return decode_description(path, only or {}, len(names))


def read_contents(
    path: Path, visit: Visitor, suffix: str | None = None, entry: str = ""
) -> Contents:
    """Visits every array of a file, whatever its form; the arguments are those of `read_file`."""
    with path.open("rb") as file:  # a clear FileNotFoundError or PermissionError before any parser
        first = file.read(_LOOKED_AT)
        file.seek(max(file.seek(0, 2) - _LOOKED_AT, 0))
        last = file.read()
    if not first:
        raise ConversionError(f"{path} is not a whole file: it is empty")
    if what := contents.no_weights(first, last, path.name):
        raise ConversionError(f"{path} {what}")
    form = contents.form_of(first) or _form(path, {**FORMS, **READ_ONLY_FORMS}, suffix)
    if not entry:
        return form.read(path, visit)
    for pickled in (pytorch, numpy_pickle):
        if form is pickled:
            return pickled.read(path, visit, entry)
    raise ConversionError(
        f"--entry is for what torch.save wrote or pickles of arrays, and {path} is another file"
    )


def _form(path: Path, forms: Mapping[str, AnyForm], suffix: str | None = None) -> AnyForm:
    suffix = (path.suffix if suffix is None else suffix).lower()
    if suffix not in forms:
        raise ConversionError(f"{path}: weights are in {', '.join(forms)} files")
    return forms[suffix]
