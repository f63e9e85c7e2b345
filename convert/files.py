"""Files of weights: written whole or not at all, read strictly, and loaded as either twin."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from convert import collector
from convert.arrays import checksum, value_problems
from convert.atomic import naming, replacing
from convert.errors import ConversionError
from convert.formats import FORMS, READ_ONLY_FORMS, pytorch, safetensors
from convert.formats.form import Contents, Form, Visitor
from convert.layouts.timm import architecture_problems
from convert.models import find_builder, judge
from convert.weights import Weights, decode_description, encode_description
from convert.wrappers import take_prefix, unwrap

SUFFIXES = tuple(FORMS)  # written and read
READABLE = (*SUFFIXES, *READ_ONLY_FORMS)
_ZIP = b"PK\x03\x04"
_OLD_TORCH = b"\x80\x02\x8a\x0a"  # a pickle of protocol 2 that begins with a long number
_TAR = slice(257, 262)  # where a tar archive says that it is one


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
        entry: which state dict to take, where `torch.save` wrote those of several twins.
        allow_nonfinite: accept NaN, infinite values and negative variances.

    Raises:
        ConversionError: the file is damaged, does not describe its model, has other tensors than
            that model, or a value is NaN, infinite or a negative variance.
        OSError: the file cannot be read.
        ValueError: the backend is unknown.
    """
    path, build = Path(path), find_builder(backend)
    if path.is_dir():
        raise ConversionError(
            f"{path} is a folder: `resnet-convert import {path} -o FILE` makes a file of it"
        )
    weights = read_file(path, entry=entry)
    if weights.classifier is None:
        raise ConversionError(
            f"{path} does not say which model it holds: `resnet-convert import {path} -o OUT` "
            "finds it out and writes a file that says it"
        )
    judge(path, weights, allow_nonfinite=allow_nonfinite)
    classifier, arrays = weights.classifier, dict(weights.arrays)
    del weights
    try:
        return build(classifier, arrays, take=True)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error


@collector.paused()
def write_weights(path: Path, weights: Weights, *, allow_nonfinite: bool = False) -> None:
    """Writes arrays and their description; see `save`."""
    weights.check_preprocessing()
    form = _form(path, FORMS)
    arrays, metadata = weights.arrays, encode_description(weights)
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


def read_description(path: Path) -> Weights:
    """What a file says of its model and its preprocessing, without the arrays."""
    names: list[str] = []
    contents = _read(path, lambda name, _: names.append(name))
    return Weights({}, **decode_description(path, contents.metadata, len(names)))


@collector.paused()
def read_file(
    path: Path, *, suffix: str | None = None, entry: str = "", prefix: str = ""
) -> Weights:
    """Whatever a file holds, with its faults: `convert.models.judge` refuses them.

    A prefix that torch's wrappers put before every name is removed. Nothing in the file is run,
    and memory stays below three times the file and 200 MB.

    Args:
        path: the file.
        suffix: of its form, where its own name does not tell.
        entry: which state dict of several in what `torch.save` wrote.
        prefix: take only the tensors whose names begin with it, and remove it.

    Raises:
        ConversionError: the suffix is unknown, or the file is damaged, empty or needs code to load.
        OSError: the file cannot be read.
    """
    arrays: dict[str, np.ndarray] = {}
    contents = _read(path, arrays.__setitem__, suffix, entry)
    description = decode_description(path, contents.metadata, len(arrays))
    faults = (*contents.problems, *architecture_problems(contents.architectures))
    try:
        arrays, notes = take_prefix(arrays, prefix) if prefix else unwrap(arrays)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error
    if not arrays:
        raise ConversionError(
            f"{path} holds what no weights should:", [*faults, "there is no array"]
        )
    return Weights(arrays, **description, notes=(*contents.notes, *notes), faults=faults)


def read_weights(path: Path, *, allow_nonfinite: bool = False) -> Weights:
    """As `read_file`; faults of the file, and values that no weight has, are a ConversionError."""
    weights = read_file(path)
    judge(path, weights, as_described=False, allow_nonfinite=allow_nonfinite)
    return weights


def _read(path: Path, visit: Visitor, suffix: str | None = None, entry: str = "") -> Contents:
    form = _form(path, {**FORMS, **READ_ONLY_FORMS}, suffix)
    if entry and form is not pytorch:
        raise ConversionError(f"--entry is for what torch.save wrote, and {path} is another file")
    with path.open("rb") as file:  # a clear FileNotFoundError or PermissionError before any parser
        first = file.read(_TAR.stop)
    if not first:
        raise ConversionError(f"{path} is not a whole file: it is empty")
    try:
        return pytorch.read(path, visit, entry) if entry else form.read(path, visit)
    except ConversionError as error:
        if not (hint := _other_form(first, form)):
            raise
        raise ConversionError(f"{path} {hint}; {error.what}", error.problems) from error


def _form(path: Path, forms: Mapping[str, Form], suffix: str | None = None) -> Form:
    suffix = (path.suffix if suffix is None else suffix).lower()
    if suffix not in forms:
        raise ConversionError(f"{path}: weights are in {', '.join(forms)} files")
    return forms[suffix]


def _other_form(first: bytes, form: Form) -> str:
    """What a file with these first bytes is, and what to do; empty if it may be of this form."""
    if form is not safetensors and first[8:9] == b"{":
        return "begins as a safetensors file: rename it to .safetensors"
    if form is safetensors and first.startswith(_ZIP):
        return "begins as what torch.save or numpy.savez writes: rename it to .pt or .npz"
    if form is not pytorch and first.startswith(_OLD_TORCH):
        return "begins as what torch.save writes: rename it to .pt"
    if first[_TAR] == b"ustar":
        return "is an archive of tar: unpack it, and name the file in it"
    if first.startswith(b"\x1f\x8b"):
        return "is compressed: gunzip < FILE > NEW makes a file to read"
    if first.startswith(b"\x89HDF"):
        return "is an HDF5 file, as Keras writes them, and no layout here has Keras's names"
    if first.startswith(b"\x93NUMPY"):
        return "is a single array, an .npy file"
    return ""
