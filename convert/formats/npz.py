"""`.npz`: a zip archive of NumPy's own `.npy` files, one for each array."""

import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from convert.arrays import BFLOAT16, checksum, in_order
from convert.errors import ConversionError
from convert.formats.archives import open_archive, unpacked_size
from convert.formats.form import Contents, Visitor

_METADATA = "__metadata__"  # the name of an array of one string, a JSON object of texts
_DTYPES = "dtypes"  # the entry in it that names the dtypes that NumPy does not know, by array
_SUFFIX = ".npy"
_CHUNK = 2**20
_DTYPES_READ = (
    *("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1", "c8", "c16", "V2"),
)
_LARGEST_STRING = 2**24


def write(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> dict[str, int]:
    """Writes arrays, uncompressed, and text; bfloat16 is stored as `V2`, and its name as text."""
    dtypes = {name: "bfloat16" for name, array in arrays.items() if array.dtype == BFLOAT16}
    text = json.dumps({**metadata, _DTYPES: json.dumps(dtypes)})
    checksums = {}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in {_METADATA: np.array(text), **arrays}.items():
            laid_out = in_order(array)
            plain = laid_out.view("V2") if array.dtype == BFLOAT16 else laid_out
            member = zipfile.ZipInfo(name + _SUFFIX)
            # Above 2 GB a member is written as Zip64, and no other: Python before 3.11.4 gives
            # Zip64 other bytes.
            member.file_size = plain.nbytes
            with archive.open(member, "w") as file:
                np.lib.format.write_array(file, plain, allow_pickle=False)
            if name != _METADATA:
                checksums[name] = checksum(laid_out)
    return checksums


def read(path: Path, visit: Visitor) -> Contents:
    """Visits every array; a name is never used as a path.

    Raises:
        ConversionError: the file is damaged, holds pickled objects, or would unpack to more than
            twice its size and 100 MB.
    """
    try:
        with open_archive(path) as archive:
            size, unpacked = path.stat().st_size, unpacked_size(archive)
            if unpacked > 2 * size + 100e6:
                raise ValueError(
                    f"{size} bytes would unpack to {unpacked}, more than twice that and 100 MB "
                    "(if you trust it: numpy.savez(new, **numpy.load(old)) re-saves it unpacked)"
                )
            return _read_members(archive, visit)
    except Exception as error:  # of a dozen kinds for damaged and hostile files
        reason = str(error) or type(error).__name__
        raise ConversionError(f"{path} is not a whole npz file of arrays: {reason}") from error


def _read_members(archive: zipfile.ZipFile, visit: Visitor) -> Contents:
    members: dict[str, zipfile.ZipInfo] = {}
    problems = []
    for member in archive.infolist():
        name = member.filename.removesuffix(_SUFFIX)
        if not member.filename.endswith(_SUFFIX):
            problems.append(f"left over: {member.filename} is no array, whose name ends in .npy")
        elif name in members:
            problems.append(f"duplicate: the archive has {name} more than once")
        else:
            members[name] = member
    metadata: dict[str, Any] = {}
    if _METADATA in members:
        metadata = json.loads(_read_array(archive, members.pop(_METADATA)).item())
    dtypes = json.loads(metadata.get(_DTYPES, "{}"))
    notes = []
    for name, member in members.items():
        array = _read_array(archive, member)
        if array.dtype.kind == "U":
            notes.append(f"left out: {name}, which is text")
            continue
        if array.dtype == "V2":
            if dtypes.get(name) != "bfloat16":
                notes.append(f"{name} has two bytes a value and no dtype: taken as bfloat16")
            array = array.view(BFLOAT16)
        visit(name, array)
    return Contents(metadata, tuple(problems), tuple(notes))


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One array; memory is allocated only after its size was compared with the member's."""
    with archive.open(member) as file:
        shape, is_fortran, dtype = _read_header(file)
        length = math.prod(shape) * dtype.itemsize
        left = member.file_size - file.tell()
        if length != left or (dtype.kind == "U" and length > _LARGEST_STRING):
            raise ValueError(f"{member.filename} holds {left} bytes for {dtype} {shape}")
        content = np.empty(length, np.uint8)
        for start in range(0, length, _CHUNK):
            _fill(file, content[start : start + _CHUNK])
        if file.read(1):  # which also checks the checksum
            raise ValueError(f"{member.filename} is longer than it says")
    if not dtype.isnative:  # in place: a copy would double the memory
        content.view(dtype).byteswap(inplace=True)
    array = content.view(dtype.newbyteorder("="))
    return array.reshape(shape, order="F" if is_fortran else "C")


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"an array of format {version}")
    read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
    shape, is_fortran, dtype = read_header(file)
    is_text = dtype.kind == "U" and shape == ()
    if not is_text and dtype.newbyteorder("=").str[1:] not in _DTYPES_READ:
        raise ValueError(f"an array of dtype {dtype}")
    if any(length < 0 for length in shape):
        raise ValueError(f"an array of shape {shape}")
    return shape, is_fortran, dtype


def _fill(file: IO[bytes], chunk: np.ndarray) -> None:
    while chunk.size:
        content = file.read(chunk.size)
        if not content:
            raise ValueError("the archive ends early")
        chunk[: len(content)] = np.frombuffer(content, np.uint8)
        chunk = chunk[len(content) :]
