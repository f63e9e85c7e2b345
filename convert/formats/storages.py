"""The tensors of a file of torch as arrays, read from their memory in it a piece at a time."""

import functools
import math
import weakref
from collections.abc import Callable, Iterator
from io import FileIO

import numpy as np

from convert.arrays import BFLOAT16
from convert.formats.pickles import Storage, Tensor

# Bytes read at once: if arrays are not kept, few enough for the processor's cache; if they are,
# enough that NumPy asks for large pages.
_LOOKED_AT, _KEPT = 2**20, 2**24
_LARGEST_GAP = 2**16  # bytes
_MOST_SHAPES = 256  # remembered: a network has few, however many tensors
StartOf = Callable[[Storage], int]  # where the memory of a storage begins in its file


class Place:
    """A tensor, and where in the file its memory is; a ValueError if not within its storage."""

    def __init__(self, name: str, tensor: Tensor, start_of: StartOf):
        self.name, self.tensor, self.dtype = name, tensor, dtype_of(tensor.storage)
        num_values, num_spanned, self.is_in_order = _extent(tensor.shape, tensor.strides)
        self.num_bytes = num_values * self.dtype.itemsize
        if tensor.offset + num_spanned > tensor.storage.numel:
            raise ValueError(f"{name} is larger than its memory"[:200])
        first = tensor.storage.start + tensor.offset
        self.start = start_of(tensor.storage) + first * self.dtype.itemsize
        self.end = self.start + num_spanned * self.dtype.itemsize

    def view(self, memory: np.ndarray, start: int) -> np.ndarray:
        """The tensor in bytes of the file that begin at `start`."""
        values = memory[self.start - start : self.end - start].view(self.dtype)
        if self.is_in_order:
            return values.reshape(self.tensor.shape)
        strides = [step * self.dtype.itemsize for step in self.tensor.strides]
        return np.lib.stride_tricks.as_strided(values, self.tensor.shape, strides)


def read_in_pieces(file: FileIO, places: list[Place]) -> Iterator[tuple[Place, np.ndarray]]:
    """The tensors in the order of their memory; neighbours share one piece of it.

    Allocating memory costs more than reading, and least in large pieces. A piece is freed with the
    last of its tensors; while the caller keeps none, pieces are small.
    """
    places = sorted(places, key=lambda place: place.start)
    first, read_at_once = 0, _LOOKED_AT
    last, before_last = None, None
    while first < len(places):
        start, end, after = places[first].start, places[first].end, first + 1
        while (
            after < len(places)
            and places[after].start <= end + _LARGEST_GAP
            and places[after].end <= start + read_at_once
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
        last, before_last = weakref.ref(memory), last  # the caller may still look at the last one
        del memory
        is_kept = before_last is not None and before_last() is not None
        read_at_once = _KEPT if is_kept else _LOOKED_AT


@functools.lru_cache(_MOST_SHAPES)
def _extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, int, bool]:
    """Number of values of a tensor, number that its memory spans, and whether it is in C order."""
    num_values = math.prod(shape)
    last = sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    axes = zip(shape, strides, strides_in_order(shape), strict=True)
    is_in_order = all(size == 1 or step == expected for size, step, expected in axes)
    return num_values, last + 1 if num_values else 0, is_in_order


@functools.lru_cache(_MOST_SHAPES)
def strides_in_order(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Steps from value to value along each axis where the last varies fastest."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def dtype_of(storage: Storage) -> np.dtype:
    """NumPy's dtype of a storage."""
    return BFLOAT16 if storage.dtype == "bfloat16" else np.dtype(storage.dtype)
