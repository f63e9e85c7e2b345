"""Writes files and folders whole or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from convert.errors import ConversionError


def check_text(path: Path) -> None:
    """Raises a ConversionError for a path that is not UTF-8, which some writers cannot take."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError as error:
        name = str(path).encode(errors="backslashreplace").decode()
        raise ConversionError(
            f"{name} is not UTF-8, and the writer of this kind of file takes no other name: give "
            "another, or write it elsewhere and rename it"
        ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that replaces it, synced to disk, if the block succeeds.

    Raises:
        OSError: the file cannot be written; what was at `path` before is unchanged.
    """
    mode = 0o666 & ~_umask()
    target = path.resolve() if path.is_symlink() else path
    # Its name is known before it is there: a signal that ends the program at once finds it.
    temporary = target.with_name(f".{target.stem}-{secrets.token_hex(4)}{target.suffix}")
    try:
        temporary.touch(0o600, exist_ok=False)
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        # The system's error names no file or the temporary one: the user knows only `path`.
        is_foreign = error.filename not in (None, str(temporary))
        if error.errno is None or is_foreign:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turns libraries' own errors, such as for a full disk, into an OSError that names `path`."""
    try:
        yield
    except (OSError, ConversionError, ImportError, MemoryError) as error:
        if not isinstance(error, OSError) or error.errno is not None:
            raise
        raise OSError(f"{path} cannot be written: {error}") from error
    except Exception as error:
        raise OSError(f"{path} cannot be written: {str(error) or type(error).__name__}") from error


def sync_tree(folder: Path) -> None:
    """Puts every file of a new folder on disk, and the folders' own entries."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            with (Path(place) / name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(place))


def sync_folder(folder: Path) -> None:
    """Makes a new name survive a power cut, if the system can sync folders.

    If it cannot, it may only forget the rename: the file is whole under its old or new name.
    """
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
