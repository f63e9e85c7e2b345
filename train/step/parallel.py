"""How a step and its arrays lie on the devices; the only file that names `pmap`."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flax_resnet.convolution import on_platform
from train.config import Config
from train.errors import UserError
from train.step.train_step import EvalStep, TrainStep

AXIS = "devices"


@dataclass(frozen=True)
class Spread:
    """How runs and their batches lie on the devices.

    Attributes:
        devices: all of the run's; they may be ones to compile for, which are not there.
        method: jax.pmap, or jax.jit of a shard_map: the same step, equal up to rounding.
        seeds: number of runs along the state's leading axis; None for one run without that axis.
        over: each device has a share of the batch of every run, or whole runs.
        streamed: images come with each batch; otherwise they are on every device.
    """

    devices: tuple[Any, ...]
    method: Literal["pmap", "jit"] = "pmap"
    seeds: int | None = None
    over: Literal["batch", "seeds"] = "batch"
    streamed: bool = False

    @property
    def axis_name(self) -> str | None:
        """The axis over which a step averages."""
        return AXIS if self.over == "batch" else None

    def train(self, step: TrainStep) -> Callable[..., Any]:
        """(state, data, indices) -> (state, metrics); reuses the state's memory.

        Data and indices come from `place_batch`. With `over="batch"` the results are the same on
        all devices.
        """
        if self.seeds is not None:
            step = jax.vmap(step, (0, None, 0))
        indices = PartitionSpec(AXIS)
        return self._map(step, num_states=1, indices=indices, donate_argnums=(0,))

    def evaluate(self, step: EvalStep) -> Callable[..., Any]:
        """(params, statistics, data, indices) -> sums, likewise."""
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
        step = on_platform(self.devices[0].platform)(step)
        if self.method == "pmap" and self.over == "batch":
            in_axes = (*[None] * num_states, 0 if self.streamed else None, 0)
            return jax.pmap(
                step,
                AXIS,
                in_axes=in_axes,
                out_axes=None,
                devices=self.devices,
                donate_argnums=donate_argnums,
            )

        def of_shard(*arguments: Any) -> Any:
            *states, data, chosen = arguments
            if self.over == "batch":  # a device's share has a leading axis of length 1
                chosen = chosen[0]
                data = jax.tree.map(lambda a: a[0], data) if self.streamed else data
            return step(*states, data, chosen)

        data = PartitionSpec(AXIS) if self.streamed else PartitionSpec()
        in_specs = (*[self._state] * num_states, data, indices)
        # with check_vma the gradients of a replicated state would be summed twice
        mapped = jax.shard_map(
            of_shard, mesh=self._mesh, in_specs=in_specs, out_specs=self._state, check_vma=False
        )
        return jax.jit(mapped, donate_argnums=donate_argnums)

    @property
    def _state(self) -> PartitionSpec:
        return PartitionSpec() if self.over == "batch" else PartitionSpec(AXIS)

    @functools.cached_property
    def local_count(self) -> int:
        """Number of this process's devices."""
        return sum(device.process_index == jax.process_index() for device in self.devices)

    @functools.cached_property  # used at every step
    def _mesh(self) -> Mesh:
        return Mesh(np.array(self.devices), (AXIS,))

    def place_state(self, tree: Any) -> Any:
        """A copy of host arrays on the devices; all processes must have the same."""
        return self._place(tree, self._state)

    def place_data(self, tree: Any) -> Any:
        """A copy of host arrays on every device; all processes must have the same."""
        return self._place(tree, PartitionSpec())

    def _place(self, tree: Any, spec: PartitionSpec) -> Any:
        # XLA copies: a step reuses the memory of its state, which NumPy must not own
        sharding = NamedSharding(self._mesh, spec)
        copy = jax.jit(lambda t: jax.tree.map(jnp.copy, t), out_shardings=sharding)
        return copy(tree)

    def place_batch(self, tree: Any) -> Any:
        """Starts moving the result of `split` to the devices."""
        if self.over == "seeds":
            return tree
        if jax.process_count() == 1:
            return jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec(AXIS)))
        if self.method == "pmap":
            return tree  # pmap takes each process's own share
        sharding = NamedSharding(self._mesh, PartitionSpec(AXIS))
        return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, a), tree)

    def split(self, array: np.ndarray) -> np.ndarray:
        """(..., batch) -> the shares of this process's devices, (devices, ..., batch / devices).

        With whole runs on each device, the whole array.
        """
        if self.over == "seeds":
            return array
        count = len(self.devices)
        parts = np.moveaxis(array.reshape(*array.shape[:-1], count, -1), -2, 0)
        first = jax.process_index() * self.local_count
        return np.ascontiguousarray(parts[first : first + self.local_count])


def to_host(tree: Any) -> Any:
    """Copies to NumPy arrays: a step reuses the memory of its state, which NumPy would share."""
    return jax.tree.map(np.array, tree)


def enable_float64() -> None:
    """Lets JAX compute in float64 instead of turning it into float32."""
    jax.config.update("jax_enable_x64", True)


def has_float64() -> bool:
    """Whether JAX computes in float64."""
    return bool(jax.config.read("jax_enable_x64"))


def describe_devices() -> str:
    """`8 tpu devices`, `8 cpu devices of 2 processes`."""
    count, platform = jax.device_count(), jax.devices()[0].platform
    processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{count} {platform} device{'s' if count > 1 else ''}{processes}"


def check_batch_size(config: Config, devices: int) -> None:
    """Raises a UserError if a batch, or a part of it, cannot be cut evenly for the devices."""
    size = config.global_batch_size
    multiple = devices * config.accumulate_steps
    if size % multiple:
        parts = f" in {config.accumulate_steps} parts" if config.accumulate_steps > 1 else ""
        raise UserError(
            f"--global-batch-size {size}{parts} does not divide by the {devices} devices: "
            f"{size - size % multiple or multiple} does"
        )
