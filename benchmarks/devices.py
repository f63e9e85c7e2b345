"""Many devices: a step at constant work a device, and whether its state stays where it is."""

import re
import statistics
import tempfile
from collections.abc import Iterator
from typing import Any

from benchmarks.apart import StoppedError, call_apart
from benchmarks.measure import Row, Size, clock, take_turns

_MODEL = "ResNet20"
_METHODS = ("pmap", "jit")
_COUNTS: dict[Size, tuple[int, ...]] = {"full": (1, 2, 8), "tiny": (1, 2)}
_IMAGES: dict[Size, int] = {"full": 8, "tiny": 2}  # of each device
_STEPS: dict[Size, int] = {"full": 15, "tiny": 1}


def run(size: Size) -> list[Row]:
    """Forced CPU devices, which share the cores: beside one device that has all the images."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as cache:  # of what draws the weights, again and again
        for count in _COUNTS[size]:
            batch = count * _IMAGES[size]
            case = f"{_MODEL}, {count} device{'s' if count > 1 else ''} of {_IMAGES[size]} images"
            try:
                found = _measure_apart(count, batch, _STEPS[size], cache)
                whole = found if count == 1 else _measure_apart(1, batch, _STEPS[size], cache)
                rows += _rows_of(case, found, statistics.median(whole["seconds"]["pmap"]))
            except StoppedError as error:
                rows.append(Row(case, "ms a step", None, note=str(error)))
    return rows


def _measure_apart(devices: int, batch_size: int, steps: int, cache: str) -> dict[str, Any]:
    environment = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return call_apart(measure, batch_size, steps, environment=environment)


def _rows_of(case: str, found: dict[str, Any], whole: float) -> list[Row]:
    rows: list[Row] = []
    peer = "one device, the same images"
    number, one = found["all_reduces"], 1e3 * found["all_reduce_seconds"]
    for method in _METHODS:
        seconds = statistics.median(found["seconds"][method])
        note = f"{number} all-reduces of {one:.3f} ms each: {number * one:.1f} ms" if number else ""
        times = (1e3 * seconds, peer, 1e3 * whole, seconds / whole)
        rows.append(Row(f"{case}, {method}", "ms a step", *times, note=note))
        kept, bar = found["kept"][method], f">= {found['arrays']}"
        note = "a transfer from the host, but for the batch, would have been refused"
        measure_of_state = "arrays of the state not copied"
        rows.append(Row(f"{case}, {method}", measure_of_state, kept, bar=bar, note=note))
    return rows


def measure(batch_size: int, steps: int) -> dict[str, Any]:
    """Seconds of steps on all of this process's devices, and what these spend on one another."""
    import jax

    from benchmarks.bare_step import noise_trainer, take_steps

    trainers = {m: noise_trainer(_MODEL, batch_size, parallel=m) for m in _METHODS}
    trainer = trainers["jit"]
    states = trainer.first_states([trainer.config.seed])
    runs = {m: take_steps(t, t.place(states)) for m, t in trainers.items()}
    kept = {method: _count_kept(run) for method, run in runs.items()}
    state, batch = trainer.place(states), next(trainer.batches([trainer.config.seed], 0))
    number = _count_all_reduces(trainer, state, batch) if jax.device_count() > 1 else 0
    return {
        "seconds": take_turns({m: lambda m=m: next(runs[m]) for m in _METHODS}, steps, warm_up=2),
        "kept": kept,
        "arrays": len(jax.tree.leaves(state)),
        "all_reduces": number,
        "all_reduce_seconds": _time_all_reduces(number) / max(1, number),
    }


def _count_kept(states: Iterator[Any]) -> int:
    """How many arrays of a state are after a step where in memory they were before.

    Nothing but the batch may come from the host: JAX raises otherwise, and the process fails.
    """
    import jax

    before = _places(next(states))
    with jax.transfer_guard("disallow"):
        after = _places(next(states))
    return sum(old == new for old, new in zip(before, after, strict=True))


def _places(state: Any) -> list[list[int]]:
    """Where the bytes of every array are, on every device."""
    import jax

    return [
        [shard.data.unsafe_buffer_pointer() for shard in leaf.addressable_shards]
        for leaf in jax.tree.leaves(state)
    ]


def _count_all_reduces(trainer: Any, state: Any, batch: Any) -> int:
    """How many a compiled step has; one of XLA's may carry many arrays."""
    import jax

    compiled = jax.jit(trainer.step).lower(state, batch).compile().as_text() or ""
    return len(re.findall(r" all-reduce(?:-start)?\(", compiled))


def _time_all_reduces(number: int) -> float:
    """Seconds of so many all-reduces of a few channels, one after another."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec

    def chain(x: jax.Array) -> jax.Array:
        for _ in range(number):  # each of numbers that differ, or XLA would leave it out
            x = jax.lax.pmean(x + jax.lax.axis_index("devices"), "devices")
        return x

    whole = PartitionSpec()
    mesh = jax.make_mesh((jax.device_count(),), ("devices",))
    run = jax.jit(jax.shard_map(chain, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False))
    x = jnp.zeros(64)
    jax.block_until_ready(run(x))
    return statistics.median(clock(lambda: jax.block_until_ready(run(x))) for _ in range(5))
