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
    target = path.resolve() if path.is_symlink() else path
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(
            dir=target.parent, prefix=f".{target.stem}-", suffix=target.suffix
        )
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        # The system names no open file, and the temporary one is a name that nobody has asked for.
        is_foreign = error.filename not in (None, str(temporary)) and temporary is not None
        if error.errno is None or is_foreign:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """The errors that libraries have of their own, for a full disk too, as an OSError of `path`."""
    try:
        yield
    except (OSError, ConversionError, ImportError, MemoryError) as error:
        if not isinstance(error, OSError) or error.errno is not None:
            raise
        raise OSError(f"{path} cannot be written: {error}") from error
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise OSError(f"{path} cannot be written: {reason}") from error


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
