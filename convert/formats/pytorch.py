"""`.pt`, `.pth` and `.th`: what `torch.save` wrote, its state dict, and nothing that needs code."""

import collections
import io
import mmap
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convert.arrays import copy_into, share_tensor, to_numpy
from convert.errors import ConversionError
from convert.formats.archives import open_archive, unpacked_size
from convert.formats.contents import Contents, Visitor
from convert.formats.pickles import LARGEST_PICKLE, scan

if TYPE_CHECKING:
    import torch

_ZIP = b"PK\x03\x04"
_LEGACY_PICKLES = 5  # magic number, version, system, content, keys of the storages
_ALIGNMENT = 64  # bytes
_MOST_COPIED = 2**23  # calls that copy a container, times the length of the pickle


def write(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a state dict, and text where a module's state dict has the versions of its layers."""
    import torch

    state_dict: Any = collections.OrderedDict(_tensors(arrays))
    state_dict._metadata = {"": dict(metadata)}
    torch.save(state_dict, path)


def _tensors(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, "torch.Tensor"]]:
    """Copies in one piece of memory, which is given back at once; of many, some would stay."""
    starts = np.cumsum(
        [0, *(-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays.values())]
    )
    memory = np.empty(starts[-1], np.uint8)
    for start, (name, array) in zip(starts[:-1], arrays.items(), strict=True):
        copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        copy_into(copy, array)
        yield name, share_tensor(copy)


def read(path: Path, visit: Visitor) -> Contents:
    """Visits every tensor of the state dict, which may be an entry of a larger dictionary.

    Raises:
        ConversionError: the file is damaged, needs code to load (all that it asks for is listed),
            or holds no state dict or several.
    """
    import torch

    try:
        _check_pickles(path)
        # Read, not mapped: a tensor's memory is free again as soon as a model has taken it over.
        content = torch.load(path, map_location="cpu", weights_only=True)
        state_dict, notes = _find_state_dict(path, content)
        left = path.stat().st_size
        for name, tensor in state_dict.items():
            array = to_numpy(tensor)
            left -= array.nbytes
            if left < 0:
                raise ValueError(f"tensors up to {name} are larger than the file: they overlap")
            visit(name, array)
    except ConversionError:
        raise
    except Exception as error:  # of a dozen kinds for damaged, hostile and unusual files
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConversionError(f"{path} is not a whole file of plain tensors: {reason}") from error
    metadata: Any = getattr(state_dict, "_metadata", None)
    own = metadata.get("") if isinstance(metadata, Mapping) else None
    return Contents(own if isinstance(own, Mapping) else {}, notes=notes)


def _check_pickles(path: Path) -> None:
    """Refuses what asks for code, or for memory out of proportion, before torch reads it."""
    unsafe: set[str] = set()
    for pickle in _pickles(path):
        try:
            result = scan(pickle)
        except ValueError:
            if unsafe:  # what was found says more than what is missing
                break
            raise
        unsafe |= set(result.unsafe)
        if result.copies * pickle.tell() > _MOST_COPIED:
            raise ValueError(f"it copies containers {result.copies} times")
    if unsafe:
        raise ConversionError(
            f"{path} needs code to load, which is not run here:", _advice(path, unsafe)
        )


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_ZIP)) == _ZIP


def _pickles(path: Path) -> Iterator[io.BytesIO]:
    return _pickles_in_zip(path) if _is_zip(path) else _legacy_pickles(path)


def _legacy_pickles(path: Path) -> Iterator[io.BytesIO]:
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with content:
        start = 0
        for _ in range(_LEGACY_PICKLES):
            window = io.BytesIO(content[start : start + LARGEST_PICKLE])
            yield window
            start += window.tell()


def _pickles_in_zip(path: Path) -> Iterator[io.BytesIO]:
    with open_archive(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("its members are compressed, which torch.save never does")
        if unpacked_size(archive) > path.stat().st_size:
            raise ValueError("its members overlap")
        if any(member.filename.endswith("/constants.pkl") for member in members):
            raise ConversionError(
                f"{path} holds a TorchScript program: re-save its weights, where you trust it, by",
                [f"torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pt')"],
            )
        for member in members:
            if member.filename.endswith(".pkl"):
                if member.file_size > LARGEST_PICKLE:
                    raise ValueError(f"a pickle of {member.file_size} bytes is too long")
                yield io.BytesIO(archive.read(member))


def _advice(path: Path, unsafe: set[str]) -> list[str]:
    """What a file asks for, and the two lines that make a plain one of it."""
    return [
        *(f"asks for: {name[:200]!r}"[:220] for name in sorted(unsafe)),
        "if you trust it, re-save its weights where it was made, with its project at hand:",
        f"  content = torch.load({path.name!r}, map_location='cpu', weights_only=False)",
        "  torch.save(content['state_dict'], 'weights.pt')  # or content['model'], or "
        "content.state_dict() where it is a whole model",
    ]


def _find_state_dict(path: Path, content: Any) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The only mapping of names to tensors: all that there is, or one entry of it."""
    if _is_state_dict(content):
        return content, ()
    entries = content if isinstance(content, Mapping) else {}
    found = [name for name, entry in entries.items() if _is_state_dict(entry)]
    if not found:
        raise ConversionError(
            f"{path} does not hold a state dict, a mapping of names to tensors: it is "
            f"{_describe(content)}"
        )
    if len(found) > 1:
        raise ConversionError(
            f"{path} holds {len(found)} state dicts: write the one you want to a file of its own:",
            [
                f"torch.save(torch.load({path.name!r}, map_location='cpu')[{name!r}], 'weights.pt')"
                for name in found
            ],
        )
    notes = [f"the state dict is the entry {found[0]!r}"]
    notes += [f"left out: {n!r}, {_describe(e)}" for n, e in entries.items() if n != found[0]]
    return entries[found[0]], tuple(notes)


def _is_state_dict(content: Any) -> bool:
    import torch

    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(name, str) for name in content)
        and all(map(torch.is_tensor, content.values()))
    )


def _describe(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, Mapping):
        names = ", ".join(repr(name)[:40] for name in list(value)[:8])
        return f"a mapping of {len(value)} entries ({names}{', ...' if len(value) > 8 else ''})"
    if isinstance(value, bool | int | float | str):
        return repr(value)[:60]
    return f"of type {type(value).__name__}"
