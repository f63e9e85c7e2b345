"""A process of several that fails alone says so, and the others end with it.

They would wait for it in the next step until JAX gives up, after minutes and without a reason; and
it, before it ends, for them.
"""

import atexit
import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax._src import distributed  # where Orbax, too, has the client from: it has no public name

from train.errors import DivergedError, StoppedError, exit_code

_FAILURE = "flax-resnet/failure"
_GLANCE = 1.0  # seconds between two looks for it
_GRACE = 3.0  # seconds for all to see it, or to end by themselves
_GRACE_OF_FIRST = 30.0  # seconds for the first one, which may be writing a checkpoint


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Ends the other processes soon after an error of this one, and this one after theirs.

    An error of all at the same step (StoppedError, DivergedError) is left to them.
    """
    client: Any = distributed.global_state.client
    is_over = threading.Event()
    listener = threading.Thread(target=_listen, args=(client, is_over), daemon=True)
    listener.start()
    try:
        yield
    except (StoppedError, DivergedError):
        raise
    except BaseException as error:
        line = " ".join(str(error).split()) or type(error).__name__
        told = f"process {jax.process_index()} failed: {line}"
        # before JAX's own, which would wait for the others
        atexit.register(_leave, exit_code(error))
        # another's failure, which may be the cause of this one, is left; nobody may listen any more
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            client.key_value_set(_FAILURE, told)
        raise
    finally:
        is_over.set()
        listener.join()


def _listen(client: Any, is_over: threading.Event) -> None:
    while not is_over.wait(_GLANCE):
        try:
            told = client.key_value_try_get(_FAILURE)
        except jax.errors.JaxRuntimeError:  # nothing was told
            continue
        # the first one has the message: it ends after the others
        if not is_over.wait(_GRACE if jax.process_index() else _GRACE_OF_FIRST):
            print(f"resnet-train: {told}; this process ends, too", file=sys.stderr, flush=True)
            os._exit(1)  # the main thread waits in a step, where no exception reaches it


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(2 * _GRACE)
    os._exit(code)
