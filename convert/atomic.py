"""Files that appear whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from convert.errors import ConversionError


def check_text(path: Path) -> None:
    """Raises a ConversionError for a path that is no text, which not every writer can take."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError as error:
        name = str(path).encode(errors="backslashreplace").decode()
        raise ConversionError(
            f"{name} is not UTF-8, and what writes this kind of file takes no other name: give "
            "another, or write it elsewhere and rename it"
        ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place, on disk, when all went well.

    Raises:
        OSError: the file cannot be written; what was at `path` before is still there.
    """
    mode = 0o666 & ~_umask()
    try:
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix
        )
    except OSError as error:  # of a name that nobody has asked for
        raise OSError(error.errno, error.strerror, str(path)) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Whatever stops a writer, as an OSError that names `path`.

    The system names no open file, nor a library the one that it was to become; and they have errors
    of their own for a full disk.
    """
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    except (ConversionError, ImportError):
        raise
    except Exception as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def sync_tree(folder: Path) -> None:
    """Puts every file of a new folder on disk, and the folders' own entries."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for path in (*folder.rglob("*"), folder):
        if path.is_dir():
            sync_folder(path)


def sync_folder(folder: Path) -> None:
    """Makes the new name outlast a power cut, where the system can."""
    # Both files are whole: a system that cannot open or sync a folder may only forget the rename.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
