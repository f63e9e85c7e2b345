"""TPUs to compile for that need not be there: pip's libtpu holds their compiler."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from train.errors import UserError

_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # do not ask Google's cloud what machine this is
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no lock file: nothing runs on a TPU
    # Without these two libtpu complains that it does not find them out; any will do.
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Chip:
    """A TPU's peaks, of one chip, as cloud.google.com/tpu/docs has them (November 2026).

    Attributes:
        flops_per_second: of bfloat16.
        bytes_per_second: of its high-bandwidth memory.
        devices: cores, where JAX counts each as a device.
    """

    flops_per_second: float
    bytes_per_second: float
    devices: int = 1


CHIPS = {  # by JAX's `device_kind`
    "TPU v4": Chip(275e12, 1228e9, devices=2),
    "TPU v5 lite": Chip(197e12, 819e9),
    "TPU v5": Chip(459e12, 2765e9),
    "TPU v6 lite": Chip(918e12, 1640e9),
}


def find_devices(topology: str) -> tuple[Any, ...]:
    """The devices of `v5e:2x2`, say, for which JAX can compile but on which nothing can run.

    Raises:
        UserError: libtpu is not installed, or knows no such topology.
    """
    os.environ.update(_ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")  # a TPU that is there stays free for others
    is_single = re.fullmatch(r"\w+:1(x1)+", topology)
    options = {"chips_per_host_bounds": [1, 1, 1]} if is_single else {}
    try:
        found = topologies.get_topology_desc(topology, "tpu", **options)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition(": ")[2]
        raise UserError(
            f"--compile-for {topology}: {reason}. Topologies are v5e:2x2, v5e:16x16, v6e:2x2, "
            "v4:2x2x1, v5p:2x2x1 and other sizes of these"
        ) from error
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"--compile-for needs libtpu, the compiler of TPUs, on Linux with an x86 processor: "
            f"install flax-resnet[tpu] ({error})"
        ) from error
    return tuple(found.devices)


def describe_chips(devices: Sequence[Any]) -> tuple[Chip | None, int]:
    """The kind of chip, None if it is not in the table, and the number of chips."""
    chip = CHIPS.get(devices[0].device_kind)
    return chip, len(devices) // (chip.devices if chip else 1)


def available_bytes(device: Any) -> int | None:
    """The memory that a program may use; None if the compiler does not say.

    JAX tells it only of a device that is there. The compiler says it where it refuses a program.
    """
    sharding = SingleDeviceSharding(device)
    too_large = jax.ShapeDtypeStruct((2**36, 8), jnp.float32, sharding=sharding)
    try:
        jax.jit(jnp.negative).lower(too_large).compile()
    except jax.errors.JaxRuntimeError as error:
        if found := re.search(r"available HBM \(([\d.]+)([KMGT])\)", str(error)):
            return to_bytes(*found.groups())
    return None


def to_bytes(number: str, unit: str) -> int:
    """`15.75`, `G` as the compiler writes them: in multiples of 1024."""
    return round(float(number) * _UNITS[unit])
