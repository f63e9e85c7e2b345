"""The processes of one run: how they join, agree, and end together when one of them fails."""

import atexit
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed  # its client has no public name; Orbax takes it from here, too
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train.config import Config
from train.errors import DivergedError, StoppedError, UserError, exit_code

_FAILURE = "flax-resnet/failure"
_POLL = 1.0  # seconds between two looks for a failure of another process
_GRACE = 3.0  # seconds for all processes to see it, or to end by themselves
_SHUTDOWN = 3600  # seconds that the others wait for the first process, which checks the export
_GRACE_OF_FIRST = 30.0  # seconds for the first process, which may be writing a checkpoint


@contextlib.contextmanager
def joined(config: Config) -> Iterator[None]:
    """Joins the other processes while the context lasts; UserError without them or a device."""
    if not config.distributed:
        try:
            jax.devices()
        except (RuntimeError, AssertionError) as error:  # the latter without its plugin
            asked = os.environ.get("JAX_PLATFORMS") or "any kind"
            raise UserError(f"JAX finds no device of {asked}. {error}".strip()) from error
        yield
        return
    try:
        jax.distributed.initialize(
            config.coordinator,
            config.num_processes,
            config.process_id,
            shutdown_timeout_seconds=_SHUTDOWN,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"--distributed: the processes did not find each other ({error}): on a TPU pod, Slurm "
            "or Open MPI start one process on each host; elsewhere say --coordinator HOST:PORT "
            "--num-processes N --process-id I"
        ) from error
    try:
        with _ending_together():
            yield
    except (StoppedError, DivergedError):  # of all processes at the same step
        jax.distributed.shutdown()
        raise
    jax.distributed.shutdown()  # not after one's error: it would wait for the others


def is_only_process() -> bool:
    """Whether no other process trains the same run."""
    return jax.process_count() == 1


def is_first_process() -> bool:
    """Whether this process writes and prints."""
    return jax.process_index() == 0


def from_first_process(make: Callable[[], Any]) -> Any:
    """Returns in all processes what `make` returns in the first one: a tree of arrays.

    The others call `make` for shapes and dtypes; UserError if it failed in the first process.
    """
    if jax.process_count() == 1:
        return make()
    error: Exception | None = None
    try:
        tree = make()
    except Exception as raised:
        tree, error = None, raised
    has_failed = multihost_utils.broadcast_one_to_all(np.array(error is not None))
    if has_failed:
        raise error or UserError("the first process failed")
    return multihost_utils.broadcast_one_to_all(tree)


def in_first_process(action: Callable[[], None]) -> None:
    """Acts in the first process only; the others wait for it. Raises as `from_first_process`."""

    def act() -> np.ndarray:
        if is_first_process():
            action()
        return np.zeros(())

    from_first_process(act)


def any_process() -> Callable[[bool], Any]:
    """A function that all processes call at every step: whether any of them says yes.

    Read its answer by `bool` some steps later: waiting for it at once would stall the devices.
    """
    if jax.process_count() == 1:
        return bool
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    sharding = NamedSharding(mesh, PartitionSpec("devices"))
    largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def ask(is_yes: bool) -> Any:
        local = np.full(jax.local_device_count(), is_yes, np.int32)
        return largest(jax.make_array_from_process_local_data(sharding, local))

    return ask


@contextlib.contextmanager
def _ending_together() -> Iterator[None]:
    """Ends the other processes soon after an error of this one, and this one after theirs.

    Otherwise they would wait for each other in the next step until JAX gives up, after minutes and
    without a reason. StoppedError and DivergedError are of all processes at the same step: each
    ends by itself.
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
        # runs before JAX's own handler, which would wait for the others
        atexit.register(_leave, exit_code(error))
        # an earlier failure, maybe the cause of this one, is kept; the coordinator may have ended
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            client.key_value_set(_FAILURE, told)
        raise
    finally:
        is_over.set()
        listener.join()


def _listen(client: Any, is_over: threading.Event) -> None:
    while not is_over.wait(_POLL):
        try:
            told = client.key_value_try_get(_FAILURE)
        except jax.errors.JaxRuntimeError:  # no failure so far
            continue
        # the first process holds the message: it ends after the others
        if not is_over.wait(_GRACE if jax.process_index() else _GRACE_OF_FIRST):
            print(f"resnet-train: {told}; this process ends, too", file=sys.stderr, flush=True)
            os._exit(1)  # the main thread waits in a step, where no exception reaches it


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(2 * _GRACE)
    os._exit(code)
