"""`.safetensors`: a JSON header and the arrays' bytes."""

import collections
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.arrays import checksum, in_order
from convert.errors import ConversionError
from convert.formats.form import Contents, Visitor

# Parsed JSON takes up to 25 times its length in memory; 60,000 tensors fit.
_LARGEST_HEADER = 2**23


def write(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> dict[str, int]:
    """Writes arrays, and text as the header's `__metadata__`."""
    from safetensors.numpy import save_file

    laid_out = {name: in_order(array) for name, array in arrays.items()}
    save_file(laid_out, path, metadata={"format": "pt", **metadata})
    _sort_metadata(path)
    return {name: checksum(array) for name, array in laid_out.items()}


def read(path: Path, visit: Visitor) -> Contents:
    """Visits every tensor; a name that is in the header twice is a problem."""
    from safetensors import safe_open

    problems = _duplicates(path)
    try:
        with safe_open(path, framework="np", backend="pread") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                visit(name, file.get_tensor(name))
            metadata = file.metadata()
    except BaseException as error:
        if isinstance(error, AttributeError):  # the library asks NumPy for the dtype by its name
            raise ConversionError(f"{path} holds a dtype that NumPy lacks: {error}") from error
        # A panic of the library's Rust code is no Exception, and its class cannot be imported.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise _damaged(path, error) from error
        raise
    return Contents(metadata or {}, problems)


def _sort_metadata(path: Path) -> None:
    """Puts the metadata in the order of its names, so that equal content is equal bytes.

    The library's order differs from call to call. Sorted, the header has the same length.
    """
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        content = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        file.seek(8)
        file.write(content.ljust(length))


def _duplicates(path: Path) -> tuple[str, ...]:
    """The names that the header gives twice, of which the library would keep the last."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _LARGEST_HEADER:
                raise ValueError(f"a header of {length} bytes is more than {_LARGEST_HEADER}")
            header = file.read(length)
        names: list[str] = []

        def note_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            if len(pairs) != len({name for name, _ in pairs}):
                counts = collections.Counter(name for name, _ in pairs)
                names.extend(name for name, count in counts.items() if count > 1)
            return dict(pairs)

        json.loads(header, object_pairs_hook=note_repeated)
    except Exception as error:  # of several kinds, RecursionError and MemoryError among them
        raise _damaged(path, error) from error
    return tuple(f"duplicate: the header has {name} more than once" for name in names)


def _damaged(path: Path, error: BaseException) -> ConversionError:
    return ConversionError(f"{path} is not a whole safetensors file: {error}")
