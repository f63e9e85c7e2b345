"""Weights in several files, with an index that says which tensor is in which."""

import json
from pathlib import Path

import numpy as np

from convert.errors import ConversionError
from convert.files import as_weights, read_contents
from convert.formats.form import Contents
from convert.weights import Weights

SUFFIX = ".index.json"
_LARGEST_INDEX = 2**23  # bytes; 60,000 names fit


def read_shards(index: Path, prefix: str = "") -> Weights:
    """The tensors of all files that an index names, with their faults.

    They are read as those of one file: a prefix is removed that all of them have, and not one that
    all of one file have.

    Args:
        index: such as `model.safetensors.index.json` or `pytorch_model.bin.index.json`; the files
            are beside it.
        prefix: take only the tensors whose names begin with it, and remove it.

    Raises:
        ConversionError: the index or a file is damaged, or a file is missing.
        OSError: a file cannot be read.
    """
    places = _read_index(index)
    arrays: dict[str, np.ndarray] = {}
    faults, architectures = list[str](), list[str]()
    missing = [
        name for name in dict.fromkeys(places.values()) if not (index.parent / name).exists()
    ]
    if missing:
        raise ConversionError(f"{index} names files that are not beside it:", missing)
    for file in dict.fromkeys(places.values()):
        suffix = ".pt" if file.endswith(".bin") else None
        found: dict[str, np.ndarray] = {}
        read = read_contents(index.parent / file, found.__setitem__, suffix)
        faults += read.problems
        architectures += read.architectures
        for name in found:
            if places.get(name) != file:
                faults.append(f"left over: {name} in {file}, where the index does not have it")
        arrays |= found
    faults += [f"missing: {name} in {file}" for name, file in places.items() if name not in arrays]
    note = f"from {len({*places.values()})} files, as {index.name} names them"
    read = Contents({}, tuple(faults), (note,), tuple(architectures))
    return as_weights(index, arrays, read, prefix)


def _read_index(index: Path) -> dict[str, str]:
    with index.open("rb") as file:
        text = file.read(_LARGEST_INDEX + 1)
    try:
        places = json.loads(text)["weight_map"] if len(text) <= _LARGEST_INDEX else None
    except Exception as error:  # of several kinds, RecursionError among them
        raise ConversionError(f"{index} is no index of weights: {error}") from error
    is_map = isinstance(places, dict) and all(isinstance(name, str) for name in places.values())
    if not is_map or not places:
        raise ConversionError(f"{index} is no index of weights: it has no weight_map of names")
    if outside := [name for name in places.values() if Path(name).name != name]:
        raise ConversionError(f"{index} names files outside its folder:", outside[:4])
    return places
