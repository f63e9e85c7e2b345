"""Data parallelism over the local devices; the only place that names `pmap`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train.errors import UserError
from train.step import EvalStep, TrainStep

AXIS = "devices"


def map_train_step(step: TrainStep) -> Callable[..., Any]:
    """(state, data, indices of shape (devices, b)) -> (state, metrics).

    State, data and metrics are whole, without a leading axis of devices; the state's memory is
    used again for the new one.
    """
    return jax.pmap(step, AXIS, in_axes=(None, None, 0), out_axes=None, donate_argnums=(0,))


def map_eval_step(step: EvalStep) -> Callable[..., Any]:
    """(params, statistics, data, indices of shape (devices, b)) -> sums."""
    return jax.pmap(step, AXIS, in_axes=(None, None, None, 0), out_axes=None)


def replicate(tree: Any) -> Any:
    """A copy of every array on every local device, placed as the mapped steps return it."""
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    # copied first: a donated state must not take the arrays it was made from with it
    copy = jax.tree.map(jnp.copy, tree)
    return jax.device_put(copy, NamedSharding(mesh, PartitionSpec()))


def split_batch(indices: np.ndarray) -> np.ndarray:
    """(batch,) -> (devices, batch / devices)."""
    return indices.reshape(jax.local_device_count(), -1)


def enable_float64() -> None:
    """Lets JAX compute in float64, which it otherwise takes for float32."""
    jax.config.update("jax_enable_x64", True)


def has_float64() -> bool:
    """Whether JAX computes in float64 where that is asked for."""
    return bool(jax.config.read("jax_enable_x64"))


def describe_devices() -> str:
    """`8 tpu devices`."""
    devices = jax.local_devices()
    return f"{len(devices)} {devices[0].platform} device{'s' if len(devices) > 1 else ''}"


def check_batch_size(global_batch_size: int) -> None:
    """Raises a UserError if a batch cannot be spread evenly over the local devices."""
    devices = jax.local_device_count()
    if global_batch_size % devices:
        raise UserError(
            f"--global-batch-size {global_batch_size} does not divide by the {devices} devices: "
            f"{global_batch_size - global_batch_size % devices or devices} does"
        )
