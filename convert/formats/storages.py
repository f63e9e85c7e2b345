"""Tensors as arrays of the memory that a file of torch keeps for them, read a piece at a time."""

import math
from collections.abc import Callable, Iterator
from io import FileIO

import numpy as np

from convert.arrays import BFLOAT16
from convert.formats.pickles import Storage, Tensor

_READ_AT_ONCE, _LARGEST_GAP = 2**22, 2**16  # bytes
StartOf = Callable[[Storage], int]  # where the memory of a storage begins in its file


class Place:
    """A tensor, and where in the file its memory is.

    Raises:
        ValueError: the tensor is not within its storage.
    """

    def __init__(self, name: str, tensor: Tensor, start_of: StartOf):
        self.name, self.tensor, self.dtype = name, tensor, dtype_of(tensor.storage)
        self.num_bytes = math.prod(tensor.shape) * self.dtype.itemsize
        last = sum(
            (size - 1) * step for size, step in zip(tensor.shape, tensor.strides, strict=True)
        )
        num_spanned = last + 1 if self.num_bytes else 0
        if tensor.offset + num_spanned > tensor.storage.numel:
            raise ValueError(f"{name} is larger than its memory"[:200])
        first = tensor.storage.start + tensor.offset
        self.start = start_of(tensor.storage) + first * self.dtype.itemsize
        self.end = self.start + num_spanned * self.dtype.itemsize

    def view(self, memory: np.ndarray, start: int) -> np.ndarray:
        """The tensor in bytes of the file that begin at `start`."""
        values = memory[self.start - start : self.end - start].view(self.dtype)
        if self.num_bytes == values.nbytes and _is_in_order(self.tensor):
            return values.reshape(self.tensor.shape)
        strides = [step * self.dtype.itemsize for step in self.tensor.strides]
        return np.lib.stride_tricks.as_strided(values, self.tensor.shape, strides)


def read_in_pieces(file: FileIO, places: list[Place]) -> Iterator[tuple[Place, np.ndarray]]:
    """The tensors in the order of their memory, neighbours in one piece of it.

    Fresh memory costs more than what is read into it, and least in large pieces. Each is free again
    when all of its tensors have been taken over.
    """
    places = sorted(places, key=lambda place: place.start)
    first = 0
    while first < len(places):
        start, end, after = places[first].start, places[first].end, first + 1
        while (
            after < len(places)
            and places[after].start <= end + _LARGEST_GAP
            and places[after].end <= start + _READ_AT_ONCE
        ):
            end, after = max(end, places[after].end), after + 1
        memory = np.empty(end - start, np.uint8)
        file.seek(start)
        left = memory.data
        while left:
            if not (count := file.readinto(left)):
                raise ValueError("it ends early")
            left = left[count:]
        for place in places[first:after]:
            yield place, place.view(memory, start)
        first = after


def _is_in_order(tensor: Tensor) -> bool:
    """Whether the last axis varies fastest and nothing is left out."""
    expected = 1
    for size, step in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if size != 1 and step != expected:
            return False
        expected *= size
    return True


def dtype_of(storage: Storage) -> np.dtype:
    """NumPy's name for what a storage holds."""
    return BFLOAT16 if storage.dtype == "bfloat16" else np.dtype(storage.dtype)
