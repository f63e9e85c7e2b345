"""Zip archives of arrays, as `.npz` and `.pt` are, opened without trusting their directory."""

import contextlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

# Each 46 bytes of a directory may become an object of some 700 bytes; 40,000 members fit.
_LARGEST_DIRECTORY = 2**22


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive, of which only the directory is read; a long one is a BadZipFile."""
    with _ShortReads(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
        yield archive


class _ShortReads(io.BufferedReader):
    """A file that refuses to hand out much at once, as only a hostile directory asks for."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _LARGEST_DIRECTORY:
            raise zipfile.BadZipFile(f"a directory of {size} bytes")
        return super().read(size)


def unpacked_size(archive: zipfile.ZipFile) -> int:
    """Bytes that all members say they have when unpacked."""
    return sum(member.file_size for member in archive.infolist())
