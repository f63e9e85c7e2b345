"""HDF5 as Keras writes it: `.weights.h5`, the older `.h5`, and `.keras`, an archive around one.

Arrays are called by their layer's name and Keras's word for the variable: `conv1_conv/kernel`,
within a nested model `resnet50/conv1_conv/kernel`.
"""

import contextlib
import io
import mmap
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from convert.arrays import is_floating
from convert.errors import ConversionError
from convert.formats.archives import open_archive
from convert.formats.form import Contents, Visitor

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MEMBER = "model.weights.h5"  # of a `.keras` archive
# What a compiled model keeps beside its weights.
_TRAINING = ("optimizer", "optimizer_weights", "metrics", "_compile_metrics", "compile_metrics")
_OLD_ROOT = "model_weights"  # of a whole model in the older form
_PLACES = ("layers", "vars")  # groups of Keras 3 that are no layers
# Keras 3 numbers the variables of a layer: by their count and the axes of the first.
_VARIABLES = {
    (True, 1): ("kernel",),
    (True, 2): ("kernel", "bias"),
    (False, 4): ("gamma", "beta", "moving_mean", "moving_variance"),
}
_CHUNK = 2**20  # bytes of an archive that are read at once
_DEEPEST = 16  # groups in groups
_MOST_OBJECTS = 100_000
_LONGEST_NAME = 2**16  # bytes
_VARIABLE_LENGTH = 9  # the class of a type, in the low half of its first byte


def read(path: Path, visit: Visitor) -> Contents:
    """Visits every array of the layers; optimizer and metrics are left out, with a note.

    Links to other files, compressed arrays and arrays that the file does not hold are refused: no
    more is read than the file is long.

    Raises:
        ConversionError: the file is damaged, or h5py is not installed.
    """
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ConversionError(
            f"{path} is an HDF5 file, as Keras writes them, and h5py, which reads it, is not "
            "installed: install flax-resnet[keras]"
        ) from error
    try:
        content = _unpacked(path)
        _check_names(content)
        with h5py.File(content, "r") as file:
            reader = _Reader(h5py, path.stat().st_size)
            root = reader.child(file, _OLD_ROOT) if _OLD_ROOT in file else file
            names: set[str] = set()
            for name, array in reader.arrays(root, ()):
                if name in names:
                    raise ValueError(f"two arrays are called {name}")
                names.add(name)
                visit(name, array)
            left_out = [name for name in _TRAINING if name in file]
    except ConversionError:
        raise
    except Exception as error:  # of several kinds for damaged and hostile files
        reason = str(error) or type(error).__name__
        raise ConversionError(f"{path} is not a whole HDF5 file of Keras: {reason}") from error
    notes = [f"left out: {name!r}, part of a training state" for name in left_out]
    return Contents({}, notes=tuple(notes))


def _unpacked(path: Path) -> Path | io.BytesIO:
    """The HDF5 file itself, or the one in an archive."""
    with path.open("rb") as file:
        if file.read(len(SIGNATURE)) == SIGNATURE:
            return path
    with open_archive(path) as archive:
        member = archive.getinfo(_MEMBER)
        if member.file_size > path.stat().st_size:
            raise ValueError(f"{_MEMBER} is compressed, which Keras does not do")
        content = io.BytesIO()
        with archive.open(member) as file:
            shutil.copyfileobj(file, content, _CHUNK)
        content.seek(0)
        return content


def _check_names(content: Path | io.BytesIO) -> None:
    """Raises a ValueError for a name that is longer than any: HDF5 takes the memory, then reads."""
    with contextlib.ExitStack() as opened:
        if isinstance(content, io.BytesIO):
            data: Any = content.getvalue()
        else:
            file = opened.enter_context(content.open("rb"))
            data = opened.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        place = data.find(b"name\0")
        while place >= 0:
            length = _name_length(data, place)
            if length > _LONGEST_NAME:
                raise ValueError(f"the name of a layer has {length} bytes")
            place = data.find(b"name\0", place + 1)


def _name_length(data: Any, place: int) -> int:
    """Of the value of an attribute "name" whose own name is at this place; 0 if it is none.

    HDF5 file format specification 3.0, section IV.A.2.m: the message's version, the sizes of the
    name, of the type and of the shape, then these, then for a string its length and its address.
    """

    def number(start: int, size: int) -> int:
        return int.from_bytes(data[start : start + size], "little")

    for version, distance in ((1, 8), (2, 8), (3, 9)):
        start = place - distance
        if start < 0 or number(start, 1) != version or number(start + 2, 2) != len(b"name\0"):
            continue
        unit = 8 if version == 1 else 1  # to whose multiples it fills up
        name, kind, shape = (-(-number(start + k, 2) // unit) * unit for k in (2, 4, 6))
        if number(place + name, 1) % 16 == _VARIABLE_LENGTH:
            return number(place + name + kind + shape, 4)
    return 0


class _Reader:
    """Walks through a file that is not trusted."""

    def __init__(self, h5py: Any, size: int):
        self.h5py, self.bytes_left, self.objects_left = h5py, size, _MOST_OBJECTS

    def child(self, group: Any, key: str) -> Any:
        """An object that is in this file; of more than `_MOST_OBJECTS` it is an error."""
        if group.get(key, getclass=True, getlink=True) is not self.h5py.HardLink:
            raise ValueError(f"{key[:60]!r} is a link to another place")
        self.objects_left -= 1
        if self.objects_left < 0:
            raise ValueError(f"more than {_MOST_OBJECTS} groups and arrays")
        return group[key]

    def arrays(self, group: Any, path: tuple[str, ...]) -> Iterator[tuple[str, np.ndarray]]:
        """(name, array) of everything below a group of the layer at `path`."""
        if len(path) > _DEEPEST:
            raise ValueError(f"groups in groups, more than {_DEEPEST} deep")
        keys = sorted((key for key in group if path or key not in _TRAINING), key=_by_numbers)
        arrays: dict[str, Any] = {}
        for key in keys:
            child = self.child(group, key)
            if isinstance(child, self.h5py.Dataset):
                arrays[key] = child
            elif isinstance(child, self.h5py.Group):
                yield from self.arrays(child, self._inner(path, key, child))
            else:
                raise ValueError(f"{key[:60]!r} is neither a group nor an array")
        for key, leaf in zip(arrays, _leaves(arrays), strict=True):
            yield "/".join((*path, leaf)), self._array(key, arrays[key])

    def _inner(self, path: tuple[str, ...], key: str, group: Any) -> tuple[str, ...]:
        """The path of the layer that a group is of."""
        if key in _PLACES:
            return path
        # Keras 3 calls the group by the layer's class and number, its older form twice by the name.
        variables = group.get("vars")
        name = None if variables is None else variables.attrs.get("name")
        name = name if isinstance(name, str) else key
        return path if path[-1:] == (name,) else (*path, name)

    def _array(self, key: str, dataset: Any) -> np.ndarray:
        dtype, length = dataset.dtype, dataset.nbytes
        if not is_floating(dtype.newbyteorder("=")) and dtype.kind not in "iub":
            raise ValueError(f"{key[:60]!r} is an array of {dtype}")
        if dataset.external or dataset.is_virtual or dataset.id.get_storage_size() != length:
            raise ValueError(f"{key[:60]!r} is compressed, or not whole in this file")
        self.bytes_left -= length
        if self.bytes_left < 0:
            raise ValueError("its arrays are larger than the file")
        array = dataset[()]
        return np.asarray(array, dtype.newbyteorder("="))


def _leaves(arrays: dict[str, Any]) -> list[str]:
    """Keras's words for the variables of one layer, `kernel:0` and numbers among their keys."""
    keys = [key.partition(":")[0] for key in arrays]
    if keys != [str(number) for number in range(len(keys))] or not keys:
        return keys
    first = next(iter(arrays.values()))
    return list(_VARIABLES.get((len(first.shape) > 1, len(keys)), keys))


def _by_numbers(key: str) -> list[tuple[int, str]]:
    """`conv2d_9` before `conv2d_10`."""
    parts = re.split(r"(\d+)", key)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
