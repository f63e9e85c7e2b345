"""Either twin of weights that say which model they are."""

import os
import warnings
from pathlib import Path
from typing import Any, Literal

from convert.errors import ConversionError
from convert.files import read_file
from convert.hub import is_address
from convert.importing import Statement, as_ours
from convert.models import find_builder, judge
from convert.sources import read_source
from convert.weights import Weights


def load(
    path: str | os.PathLike[str],
    backend: Literal["torch", "flax"],
    *,
    entry: str = "",
    allow_nonfinite: bool = False,
) -> Any:
    """The model of a file that `save` wrote, or of the hub, in eval mode, as a torch or Flax twin.

    Args:
        path: the file, or an address such as `hf://timm/resnet50.a1_in1k`: whatever is there is
            imported as `resnet-convert import` does it without options, its head kept. What that
            command notes (what no tensor shows and is assumed, what is left out or folded) is one
            UserWarning.
        backend: which twin.
        entry: which state dict to take, where `torch.save` wrote those of several twins.
        allow_nonfinite: accept NaN, infinite values and negative variances.

    Raises:
        ConversionError: the file is damaged, does not describe its model, has other tensors than
            that model, or a value is NaN, infinite or a negative variance; or the hub has no such
            weights, or none of a network of ours.
        OSError: the file cannot be read.
        ValueError: the backend is unknown.
    """
    build = find_builder(backend)
    weights = _read(path, entry, allow_nonfinite)
    classifier, arrays = weights.classifier, dict(weights.arrays)
    assert classifier is not None
    del weights
    try:
        return build(classifier, arrays, take=True)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error


def _read(path: str | os.PathLike[str], entry: str, allow_nonfinite: bool) -> Weights:
    """Weights that say which model they are."""
    if is_address(path):
        source = read_source(path, entry=entry).accepted(keeps_preprocessing=False)
        weights = as_ours(source, Statement(allow_nonfinite=allow_nonfinite))
        where_from, *notes = weights.notes
        if notes:  # who calls `load` sees them nowhere else
            text = "\n  ".join([f"{where_from}:", *notes])
            warnings.warn(text, stacklevel=3)  # at the call of `load`
        return weights
    path = Path(path)
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
    return weights
