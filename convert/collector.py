"""Python's search for circles of objects, put off while thousands of objects are made."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def put_off() -> Iterator[None]:
    """No search for circles meanwhile: one of all objects takes as long as reading a large file.

    A network is no such circle and is free with its last name; what is left of making it is found
    by the first search afterwards, as it is young.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
