"""`.pkl`, `.pdparams`: a pickle of NumPy arrays by name, of Detectron2 and PaddlePaddle."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.errors import ConversionError
from convert.formats.entries import advise, find_state_dict
from convert.formats.form import Contents, Visitor
from convert.formats.pickles import Unknown, read_pickle
from convert.wrappers import stated_architectures

_TABLE = "StructuredToParameterName@@"  # of other names, beside Paddle's arrays
# Paddle's words for what torch calls otherwise; its linear layers are (in, out).
_PADDLES = {"_mean": "running_mean", "_variance": "running_var"}
_PADDLES_NOTE = "these are Paddle's names and axes of linear layers, and torch's were made of them"
_KINDS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")


def read(path: Path, visit: Visitor, entry: str = "") -> Contents:
    """Visits every array of the mapping, which may be an entry of a larger dictionary."""
    unsafe: set[str] = set()
    try:
        content, _ = read_pickle(path.read_bytes(), unsafe)
        content = _with_arrays(content)
    except Exception as error:  # of many kinds for damaged and hostile files
        if not unsafe:
            raise ConversionError(f"{path} is not a whole pickle of arrays: {error}") from error
        content = None
    if unsafe:
        raise ConversionError(
            f"{path} needs code to load, which is not run here:",
            [*(f"asks for: {name[:200]!r}"[:220] for name in sorted(unsafe)), *advise(path, None)],
        )
    if isinstance(content, Mapping):
        content = {name: value for name, value in content.items() if name != _TABLE}
    state_dict, notes = find_state_dict(path, content, entry)
    if any(name.endswith("._variance") for name in state_dict):
        state_dict, notes = _from_paddle(state_dict), (*notes, _PADDLES_NOTE)
    for name, array in state_dict.items():
        visit(name, array)
    return Contents({}, notes=notes, architectures=stated_architectures(content))


def _with_arrays(content: Any, depth: int = 0) -> Any:
    """A pickle's content with arrays in place of their descriptions."""
    if isinstance(content, Mapping) and depth < 2:
        return {name: _with_arrays(value, depth + 1) for name, value in content.items()}
    if isinstance(content, tuple) and len(content) == 2 and isinstance(content[0], str):
        return _with_arrays(content[1], depth)  # Paddle's: a name and an array
    array = _array(content) if isinstance(content, Unknown) else None
    return content if array is None else array


def _array(value: Unknown) -> np.ndarray | None:
    """The array that an object describes; None where it is another object."""
    match value.name.rpartition(".")[2], value.state, value.arguments:
        case "_reconstruct", (_, tuple(shape), Unknown("numpy.dtype") as kind, order, data), _:
            is_fortran = bool(order)
        case "_frombuffer", _, (data, Unknown("numpy.dtype") as kind, tuple(shape), order):
            is_fortran = order == "F"
        case _:
            return None
    if isinstance(data, str):
        data = data.encode("latin-1")
    memory, dtype = data.state if isinstance(data, Unknown) else data, _dtype(kind)
    is_shape = all(type(size) is int and size >= 0 for size in shape)
    if dtype is None or not isinstance(memory, bytes | memoryview) or not is_shape:
        return None
    if len(memory) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"an array of {dtype} {shape} has {len(memory)} bytes")
    array = np.frombuffer(memory, dtype).reshape(shape, order="F" if is_fortran else "C")
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def _dtype(value: Unknown) -> np.dtype | None:
    """What `numpy.dtype("f4", False, True)` and the byte order in its state say; else None."""
    match value.arguments, value.state:
        case (str(kind), *_), (_, ("<" | ">" | "|" | "=") as order, *_) if kind in _KINDS:
            return np.dtype(f"{order}{kind}")
    return None


def _from_paddle(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    arrays = {}
    for name, array in state_dict.items():
        path, _, leaf = name.rpartition(".")
        arrays[f"{path}.{_PADDLES.get(leaf, leaf)}"] = array.T if array.ndim == 2 else array
    return arrays
