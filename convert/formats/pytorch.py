"""`.pt`, `.pth` and `.th`: the state dict in what `torch.save` wrote, if it needs no code."""

import functools
import itertools
import math
import weakref
import zipfile
from collections.abc import Callable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from convert.arrays import BFLOAT16, as_bytes, crc32
from convert.description import own_metadata
from convert.errors import ConversionError
from convert.formats.archives import open_archive, unpacked_size
from convert.formats.entries import advise, find_state_dict
from convert.formats.form import Contents, Visitor
from convert.formats.pickles import LARGEST_PICKLE, Storage, Tensor, read_pickle, write_pickle
from convert.wrappers import stated_architectures

_ZIP = b"PK\x03\x04"
_FOLDER, _ALIGNMENT = "archive", 64  # of the members of a file that is written; bytes
_LOCAL_HEADER = 30  # bytes of a zip's member before its name; the last four are two lengths
_ZIP64_EXTRA = 20  # bytes that a member of more than 2 GiB has in its header, too
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
# Bytes read at once: if arrays are not kept, few enough for the processor's cache; if they are,
# enough that NumPy asks for large pages.
_LOOKED_AT, _KEPT = 2**20, 2**24
_LARGEST_GAP = 2**16  # bytes
_MOST_SHAPES = 256  # remembered: a network has few, however many tensors
_StartOf = Callable[[Storage], int]  # where the memory of a storage begins in its file


def write(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> dict[str, int]:
    """Writes a state dict, and text where a module's state dict has the versions of its layers.

    As `torch.save` does, but without torch, and only one array at a time is put in C order.
    """
    checksums = {}
    with path.open("wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:

        def add(name: str, content: bytes | memoryview) -> int:
            """As `archive.writestr`, which seeks back to write a checksum, and is slower for it."""
            member = zipfile.ZipInfo(f"{_FOLDER}/{name}")
            member.header_offset = archive.start_dir
            num_before = member.header_offset + _LOCAL_HEADER + len(member.filename) + 4
            if len(content) > zipfile.ZIP64_LIMIT:
                num_before += _ZIP64_EXTRA
            gap = -num_before % _ALIGNMENT
            member.extra = b"FB" + gap.to_bytes(2, "little") + bytes(gap)  # torch's own letters
            member.file_size = member.compress_size = len(content)
            member.CRC = crc32(content)
            header = member.FileHeader()
            file.write(header)
            file.write(content)
            archive.filelist.append(member)
            archive.start_dir += len(header) + len(content)
            return member.CRC

        tensors = [(name, _describe_array(str(i), a)) for i, (name, a) in enumerate(arrays.items())]
        add("data.pkl", write_pickle(tensors, metadata))
        add("byteorder", b"little")
        memory = np.empty(max((a.nbytes for a in arrays.values()), default=0), np.uint8)
        for (name, tensor), array in zip(tensors, arrays.values(), strict=True):
            checksums[name] = add(f"data/{tensor.storage.key}", as_bytes(array, memory))
        version = zipfile.ZipInfo(f"{_FOLDER}/version")  # of 1980: a name alone takes the clock
        archive.writestr(version, b"3\n")
    return checksums


def _describe_array(key: str, array: np.ndarray) -> Tensor:
    """An array in C order in a storage of its own."""
    storage = Storage(_name(array.dtype), key, array.size)
    return Tensor(storage, 0, array.shape, _strides_in_order(array.shape))


@functools.cache
def _name(dtype: np.dtype) -> str:
    return dtype.name  # NumPy computes it each time


def read(path: Path, visit: Visitor, entry: str = "") -> Contents:
    """Visits every tensor of the state dict, which may be an entry of a larger dictionary.

    `entry` is its name there, where it is not the only one. This does not use torch, whose reader
    takes the whole file into memory, and any amount of memory for a small hostile file.
    """
    try:
        with path.open("rb", buffering=0) as file:
            content, start_of = _open(path, file)
            state_dict, notes = find_state_dict(path, content, entry)
            places = [_Place(name, tensor, start_of) for name, tensor in state_dict.items()]
            # views of one another may take the same memory twice
            if sum(max(p.num_bytes, p.end - p.start) for p in places) > 2 * path.stat().st_size:
                raise ValueError("its tensors are larger than the file: they overlap")
            places_read = _read_in_pieces(file, places)
            if any(a.start > b.start for a, b in itertools.pairwise(places)):
                arrays = dict(places_read)
                places_read = ((place, arrays.pop(place)) for place in places)
            for place, array in places_read:
                visit(place.name, array)
    except ConversionError:
        raise
    except Exception as error:  # of a dozen kinds for damaged, hostile and unusual files
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConversionError(f"{path} is not a whole file of plain tensors: {reason}") from error
    modules = getattr(state_dict, "metadata", None)
    return Contents(
        own_metadata(modules),
        notes=notes,
        architectures=stated_architectures(content) if state_dict is not content else (),
        modules=modules,
    )


def _open(path: Path, file: FileIO) -> tuple[Any, _StartOf]:
    """What was saved, with descriptions in place of tensors."""
    unsafe: set[str] = set()
    opened: tuple[Any, _StartOf] | None = None
    try:
        is_zip = file.read(len(_ZIP)) == _ZIP
        opened = _open_zip(path, file, unsafe) if is_zip else _open_legacy(file, unsafe)
    except ValueError:
        if not unsafe:  # the names that were found say more
            raise
    if unsafe or opened is None:
        raise ConversionError(
            f"{path} needs code to load, which is not run here:",
            [
                *(f"asks for: {name[:200]!r}"[:220] for name in sorted(unsafe)),
                *advise(path, None if opened is None else opened[0]),
            ],
        )
    return opened


def _open_zip(path: Path, file: FileIO, unsafe: set[str]) -> tuple[Any, _StartOf]:
    """Since torch 1.6: a zip archive of a pickle and the memory of each storage."""
    with open_archive(path) as archive:
        _check_members(path, archive)
        members = {member.filename: member for member in archive.infolist()}
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"it has {len(pickles)} members data.pkl")
    if members[pickles[0]].file_size > LARGEST_PICKLE:
        raise ConversionError(
            f"{path} has {members[pickles[0]].file_size} bytes beside its tensors, too many to be "
            "read: most likely its values are NumPy arrays or lists:",
            advise(path, has_arrays=True),
        )
    folder = pickles[0].removesuffix("data.pkl")

    def read(name: str) -> bytes:
        file.seek(_start(file, members[name]))
        return file.read(members[name].file_size)

    def start_of(storage: Storage) -> int:
        member = members.get(f"{folder}data/{storage.key}")
        if member is None:
            raise ValueError(f"the memory of a tensor is not there: {storage.key!r}"[:100])
        if (storage.start + storage.numel) * _dtype_of(storage).itemsize > member.file_size:
            raise ValueError("a tensor is larger than its memory")
        return _start(file, member)

    if f"{folder}byteorder" in members and read(f"{folder}byteorder") != b"little":
        raise ValueError("its numbers do not begin with their lowest byte")
    content, _ = read_pickle(read(pickles[0]), unsafe)
    return content, start_of


def _start(file: FileIO, member: zipfile.ZipInfo) -> int:
    """Where the content of a member begins, behind a header of variable length."""
    file.seek(member.header_offset)
    header = file.read(_LOCAL_HEADER)
    if header[: len(_ZIP)] != _ZIP or len(header) < _LOCAL_HEADER:
        raise ValueError("its directory is not that of its members")
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return member.header_offset + _LOCAL_HEADER + name + extra


def _check_members(path: Path, archive: zipfile.ZipFile) -> None:
    members = archive.infolist()
    if any(member.filename.endswith("/constants.pkl") for member in members):
        raise ConversionError(
            f"{path} holds a TorchScript program: re-save its weights, where you trust it, by",
            [f"torch.save(torch.jit.load({str(path)!r}).state_dict(), 'weights.pt')"],
        )
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("its members are compressed, which torch.save never does")
    if any(member.flag_bits & 1 for member in members):
        raise ValueError("its members are encrypted")
    if len({member.filename for member in members}) < len(members):
        raise ValueError("it has a member twice")
    if unpacked_size(archive) > path.stat().st_size:
        raise ValueError("its members overlap")


def _open_legacy(file: FileIO, unsafe: set[str]) -> tuple[Any, _StartOf]:
    """Before torch 1.6: magic number, version, system, content, keys; then storage by storage."""
    file.seek(0)
    head = file.read(2 * LARGEST_PICKLE)
    end, storages, values = 0, dict[str, Storage](), []
    for _ in range(5):
        value, end = read_pickle(head, unsafe, end, storages)
        values.append(value)
    magic, version, _, content, keys = values
    if magic != _LEGACY_MAGIC or version != _LEGACY_PROTOCOL:
        raise ValueError("it is neither of the two forms that torch.save writes")
    starts: dict[str, int] = {}
    for key in keys:
        size = storages[key].numel * _dtype_of(storages[key]).itemsize
        file.seek(end)
        if int.from_bytes(file.read(8), "little") != storages[key].numel:
            raise ValueError("the memory of a tensor is not of its size")
        starts[key] = end + 8
        end += 8 + size
    if end > file.seek(0, 2):
        raise ValueError("it ends early")
    return content, lambda storage: starts[storage.key]


class _Place:
    """A tensor, and where in the file its memory is; a ValueError if not within its storage."""

    def __init__(self, name: str, tensor: Tensor, start_of: _StartOf):
        self.name, self.tensor, self.dtype = name, tensor, _dtype_of(tensor.storage)
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


def _read_in_pieces(file: FileIO, places: list[_Place]) -> Iterator[tuple[_Place, np.ndarray]]:
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
    axes = zip(shape, strides, _strides_in_order(shape), strict=True)
    is_in_order = all(size == 1 or step == expected for size, step, expected in axes)
    return num_values, last + 1 if num_values else 0, is_in_order


@functools.lru_cache(_MOST_SHAPES)
def _strides_in_order(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Steps from value to value along each axis where the last varies fastest."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _dtype_of(storage: Storage) -> np.dtype:
    """NumPy's dtype of a storage."""
    return BFLOAT16 if storage.dtype == "bfloat16" else np.dtype(storage.dtype)
