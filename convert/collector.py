"""Pauses Python's garbage collection while many objects are made."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Pauses garbage collection: one pass over all objects takes as long as reading a large file.

    Reference counting frees a network without it. The next collection frees whatever is left over,
    because it is young.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
