"""A run's folder is one process's: no other begins or goes on there, and it stays in its place."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from train.config import Config
from train.errors import UserError
from train.run.folder import check_folder


@contextlib.contextmanager
def claimed(folder: Path, config: Config) -> Iterator[None]:
    """The folder, made and checked again, which no second process may begin or go on in.

    Raises:
        UserError: as `check_folder`; or another one is training there.
    """
    if config.resume:
        check_folder(folder, config)
    else:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--run-dir {folder}: {error}") from error
    with locked(folder):
        check_folder(folder, config)
        yield


@contextlib.contextmanager
def seeds_locked(folder: Path) -> Iterator[None]:
    """Keeps out whoever trains one of several seeds by itself, while all of them are begun.

    Raises:
        UserError: as `locked`.
    """
    with contextlib.ExitStack() as stack:
        for place in sorted(folder.glob("seed-*")):
            if place.is_dir():
                stack.enter_context(locked(place))
        yield


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a second process out of a run's folder; the lock ends with the process.

    Raises:
        UserError: another one is training there.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder}: another process is training this run") from error
        yield
    finally:
        os.close(descriptor)


def watch_place(folder: Path) -> Callable[[], None]:
    """What says whether a folder is still where it is now; it raises an OSError if not.

    A path leads elsewhere once its folder is renamed: files that are open go on in the one, new
    ones appear in another, and neither is a run.
    """
    before = os.stat(folder)

    def check() -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if os.path.samestat(os.stat(folder), before):
                return
        raise OSError(
            f"{folder}: the run's folder was moved or deleted while it was trained; where it is "
            "now, --resume --run-dir FOLDER goes on from its newest checkpoint"
        )

    return check
