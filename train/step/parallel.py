"""One step over the devices of one or many processes; the only place that names `pmap`."""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train.config import Config
from train.errors import DivergedError, StoppedError, UserError
from train.run.together import ending_together
from train.step.train_step import EvalStep, TrainStep

AXIS = "devices"


@dataclass(frozen=True)
class Spread:
    """How runs and their batches lie on the devices.

    Attributes:
        method: jax.pmap, or jax.jit of a shard_map: the same step, equal to rounding.
        seeds: runs side by side in one state, as its leading axis; None for one run without it.
        over: what each device has: its share of the batch of every run, or whole runs.
        streamed: images come with each batch; else they are on every device.
    """

    method: Literal["pmap", "jit"] = "pmap"
    seeds: int | None = None
    over: Literal["batch", "seeds"] = "batch"
    streamed: bool = False

    @property
    def axis_name(self) -> str | None:
        """Over which a step averages."""
        return AXIS if self.over == "batch" else None

    def train(self, step: TrainStep) -> Callable[..., Any]:
        """(state, data, indices) -> (state, metrics); the state's memory is used again.

        Data and indices are as `place_batch` gives them. What comes out is whole, and where the
        batch lies over the devices the same on all.
        """
        if self.seeds is not None:
            step = jax.vmap(step, (0, None, 0))
        indices = PartitionSpec(AXIS)
        return self._map(step, num_states=1, indices=indices, donate_argnums=(0,))

    def evaluate(self, step: EvalStep) -> Callable[..., Any]:
        """(params, statistics, data, indices) -> sums, in the same way."""
        if self.seeds is not None:
            step = jax.vmap(step, (0, 0, None, None))
        indices = PartitionSpec(AXIS) if self.over == "batch" else PartitionSpec()
        return self._map(step, num_states=2, indices=indices)

    def _map(
        self,
        step: Callable[..., Any],
        *,
        num_states: int,
        indices: PartitionSpec,
        donate_argnums: tuple[int, ...] = (),
    ) -> Callable[..., Any]:
        if self.method == "pmap" and self.over == "batch":
            in_axes = (*[None] * num_states, 0 if self.streamed else None, 0)
            return jax.pmap(
                step, AXIS, in_axes=in_axes, out_axes=None, donate_argnums=donate_argnums
            )

        def of_shard(*arguments: Any) -> Any:
            *states, data, chosen = arguments
            if self.over == "batch":  # a device's share has a leading axis of length 1
                chosen = chosen[0]
                data = jax.tree.map(lambda a: a[0], data) if self.streamed else data
            return step(*states, data, chosen)

        data = PartitionSpec(AXIS) if self.streamed else PartitionSpec()
        in_specs = (*[self._state] * num_states, data, indices)
        # without check_vma=False the gradients of a replicated state would be summed once more
        mapped = jax.shard_map(
            of_shard, mesh=_mesh(), in_specs=in_specs, out_specs=self._state, check_vma=False
        )
        return jax.jit(mapped, donate_argnums=donate_argnums)

    @property
    def _state(self) -> PartitionSpec:
        return PartitionSpec() if self.over == "batch" else PartitionSpec(AXIS)

    def place_state(self, tree: Any) -> Any:
        """A copy of host arrays on the devices; all processes must have the same."""
        return _place(tree, self._state)

    def place_batch(self, tree: Any) -> Any:
        """What `split` gave, on its way to the devices; it is not waited for."""
        if self.over == "seeds":
            return tree
        if jax.process_count() == 1:
            return jax.device_put(tree, NamedSharding(_mesh(), PartitionSpec(AXIS)))
        if self.method == "pmap":
            return tree  # which takes each process's own share
        sharding = NamedSharding(_mesh(), PartitionSpec(AXIS))
        return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, a), tree)

    def split(self, array: np.ndarray) -> np.ndarray:
        """What this process's devices get of a batch, its last axis: (..., batch).

        (devices, ..., batch / devices) of this process, or where whole runs lie on the devices all.
        """
        if self.over == "seeds":
            return array
        count, local = jax.device_count(), jax.local_device_count()
        parts = np.moveaxis(array.reshape(*array.shape[:-1], count, -1), -2, 0)
        first = jax.process_index() * local
        return np.ascontiguousarray(parts[first : first + local])


def place_data(tree: Any) -> Any:
    """A copy of host arrays on every device; all processes must have the same."""
    return _place(tree, PartitionSpec())


def _place(tree: Any, spec: PartitionSpec) -> Any:
    # copied by XLA: a step takes the memory of its state, which NumPy must not own
    copy = jax.jit(lambda t: jax.tree.map(jnp.copy, t), out_shardings=NamedSharding(_mesh(), spec))
    return copy(tree)


@functools.cache  # asked for at every step, and the devices stay the same
def _mesh() -> Mesh:
    return Mesh(np.array(jax.devices()), (AXIS,))


def to_host(tree: Any) -> Any:
    """Copies as NumPy arrays: a step takes the memory of its state, which NumPy would share."""
    return jax.tree.map(np.array, tree)


@contextmanager
def processes(config: Config) -> Iterator[None]:
    """Joins the other processes for as long as it lasts, where the configuration says so.

    Raises:
        UserError: they cannot be found.
    """
    if not config.distributed:
        _check_devices()
        yield
        return
    try:
        jax.distributed.initialize(config.coordinator, config.num_processes, config.process_id)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"--distributed: the processes did not find each other ({error}): on a TPU pod, Slurm "
            "or Open MPI start one process on each host; elsewhere say --coordinator HOST:PORT "
            "--num-processes N --process-id I"
        ) from error
    try:
        with ending_together():
            yield
    except (StoppedError, DivergedError):  # of all processes at the same step
        jax.distributed.shutdown()
        raise
    jax.distributed.shutdown()  # not after an error of one: it would wait for the others


def _check_devices() -> None:
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where its plugin is not there
        asked = os.environ.get("JAX_PLATFORMS") or "any kind"
        raise UserError(f"JAX finds no device of {asked}. {error}".strip()) from error


def is_only_process() -> bool:
    """Whether no other process trains the same run."""
    return jax.process_count() == 1


def is_first_process() -> bool:
    """Whether this process writes and prints."""
    return jax.process_index() == 0


def from_first_process(make: Callable[[], Any]) -> Any:
    """What `make` returns in the first process, a tree of arrays of known form, in all of them.

    Args:
        make: the others call it for the form alone.

    Raises:
        UserError: it failed in the first process, whose own error is raised there.
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
    """Does something in the first process only; the others wait for it.

    Raises:
        UserError: it failed; in the first process its own error is raised.
    """

    def act() -> np.ndarray:
        if is_first_process():
            action()
        return np.zeros(())

    from_first_process(act)


def any_process() -> Callable[[bool], Any]:
    """A function that all processes call at every step: whether one of them says yes.

    Its answer is read with `bool`, later: to wait for it at once would hold up the devices.
    """
    if jax.process_count() == 1:
        return bool
    sharding = NamedSharding(_mesh(), PartitionSpec(AXIS))
    largest = jax.jit(jnp.max, out_shardings=NamedSharding(_mesh(), PartitionSpec()))

    def ask(is_yes: bool) -> Any:
        local = np.full(jax.local_device_count(), is_yes, np.int32)
        return largest(jax.make_array_from_process_local_data(sharding, local))

    return ask


def enable_float64() -> None:
    """Lets JAX compute in float64, which it otherwise takes for float32."""
    jax.config.update("jax_enable_x64", True)


def has_float64() -> bool:
    """Whether JAX computes in float64 where that is asked for."""
    return bool(jax.config.read("jax_enable_x64"))


def describe_devices() -> str:
    """`8 tpu devices`, `8 cpu devices of 2 processes`."""
    count, platform = jax.device_count(), jax.devices()[0].platform
    processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{count} {platform} device{'s' if count > 1 else ''}{processes}"


def check_batch_size(config: Config) -> None:
    """Raises a UserError if a batch, or a part of it, does not spread evenly over the devices."""
    size, devices = config.global_batch_size, jax.device_count()
    multiple = devices * config.accumulate_steps
    if size % multiple:
        parts = f" in {config.accumulate_steps} parts" if config.accumulate_steps > 1 else ""
        raise UserError(
            f"--global-batch-size {size}{parts} does not divide by the {devices} devices: "
            f"{size - size % multiple or multiple} does"
        )
