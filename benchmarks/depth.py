"""Depth: from nothing to the first step, a step after it and its memory, 20 to 1202 layers."""

import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmarks.apart import StoppedError, call_apart, find_platform, peak_memory
from benchmarks.measure import Row, Size

_MODELS: dict[Size, tuple[str, ...]] = {
    "full": ("ResNet20", "ResNet110", "ResNet1001", "ResNet1202"),
    "tiny": ("ResNet20",),
}
# how a network's equal blocks are compiled: fields of `train.config.config.Config`
_WAYS: dict[str, dict[str, Any]] = {"unrolled": {}, "scan": {"scan_blocks": True}}
_STEPS, _STEPS_SECONDS = 3, 5.0


class Numbers(NamedTuple):
    """Of one case, in a process without a compile cache.

    Attributes:
        building: seconds until the weights are drawn and on the device.
        first: of the first step: tracing, compiling, running.
        step: of one after it.
        peak_gib: memory in use at most; of the process beyond its imports, or of the GPU.
    """

    building: float
    first: float
    step: float
    peak_gib: float


@dataclass(frozen=True)
class Plan:
    """What a platform can bear.

    Attributes:
        seconds, memory_gib: limits of one case.
        remat_case: model, batch and way in which rematerialisation is tried.
        bars: of the comparisons.
    """

    batch_size: int
    seconds: float
    memory_gib: float
    remat_case: tuple[str, int, str]
    bars: Mapping[str, str]


_PLANS = {
    "cpu": Plan(4, 75, 8, ("ResNet56", 128, "unrolled"), {"first": "< 60", "layer": "<= 1.2"}),
    "gpu": Plan(128, 600, 32, ("ResNet1202", 128, "scan"), {"compile": "<= 3", "way": "<= 1.1"}),
}
_TINY_REMAT = ("ResNet20", 4, "unrolled")  # a case that has been measured already
Found = dict[tuple[str, str], Numbers]


def run(size: Size) -> list[Row]:
    """Every depth by every way; a way that was stopped is not tried at greater depth."""
    plan = _PLANS[find_platform()]
    found: Found = {}
    rows, stopped = [], dict[str, str]()
    for model in _MODELS[size]:
        for way in _WAYS:
            case, unit = f"{model}, {way}, batch {plan.batch_size}", "s to the first step"
            if way in stopped:
                rows.append(Row(case, unit, None, note=f"not tried: {stopped[way]}"))
                continue
            try:
                found[model, way] = _measure_apart(model, plan.batch_size, way, plan)
            except StoppedError as error:
                stopped[way] = f"{model} {error}"
                rows.append(Row(case, unit, None, note=str(error)))
            else:
                rows += _rows_of(case, found[model, way])
    rows += [*_compare_ways(found, plan), *_compare_depths(found, plan)]
    remat_case = _TINY_REMAT if size == "tiny" else plan.remat_case
    return rows + list(_compare_remat(remat_case, plan, found if size == "tiny" else {}))


def _measure_apart(model: str, batch: int, way: str, plan: Plan, **fields: Any) -> Numbers:
    arguments = (model, batch, {**_WAYS[way], **fields})
    limits: dict[str, Any] = {"seconds": plan.seconds, "memory_gib": plan.memory_gib}
    return Numbers(*call_apart(measure, *arguments, **limits))


def measure(model: str, batch_size: int, fields: dict[str, Any]) -> Numbers:
    """Trains a new network for a few steps, in this process."""
    import jax
    import numpy as np

    from benchmarks.bare_step import noise_trainer, take_steps

    jax.block_until_ready(jax.device_put(np.zeros(1)))  # the device is awake
    before, started = peak_memory(), time.perf_counter()
    trainer = noise_trainer(model, batch_size, **fields)
    state = trainer.place(trainer.first_states([trainer.config.seed]))
    steps = take_steps(trainer, jax.block_until_ready(state))
    built = time.perf_counter()
    next(steps)
    first = time.perf_counter()
    seconds: list[float] = []
    while len(seconds) < _STEPS and sum(seconds) < _STEPS_SECONDS:
        start = time.perf_counter()
        next(steps)
        seconds.append(time.perf_counter() - start)
    on_device = jax.local_devices()[0].memory_stats()  # None on CPU
    peak = on_device["peak_bytes_in_use"] if on_device else peak_memory() - before
    return Numbers(built - started, first - built, statistics.median(seconds), peak / 2**30)


def _rows_of(case: str, numbers: Numbers) -> list[Row]:
    note = f"{numbers.building:.1f} s until it is built"
    return [
        Row(case, "s to the first step", numbers.building + numbers.first, note=note),
        Row(case, "ms a step", 1e3 * numbers.step),
        Row(case, "GiB at most", numbers.peak_gib),
    ]


def _compare_ways(found: Found, plan: Plan) -> Iterator[Row]:
    """A step of each way beside the unrolled one, where both could be compiled."""
    for (model, way), numbers in found.items():
        plain = found.get((model, "unrolled"))
        if way != "unrolled" and plain is not None:
            times = (1e3 * numbers.step, "unrolled", 1e3 * plain.step, numbers.step / plain.step)
            yield Row(f"{model}, {way}", "ms a step", *times, plan.bars.get("way", ""))


def _compare_depths(found: Found, plan: Plan) -> Iterator[Row]:
    """Deep networks beside shallow ones: what compiles, and what a layer costs."""
    for way in _WAYS:
        deep, shallow = found.get(("ResNet1202", way)), found.get(("ResNet20", way))
        if deep and shallow:
            ours, theirs = deep.first - deep.step, shallow.first - shallow.step
            bar = plan.bars.get("compile", "") if way == "scan" else ""
            peer = f"ResNet20, {way}"
            yield Row(f"ResNet1202, {way}", "s to compile", ours, peer, theirs, ours / theirs, bar)
    ways = {model: _fastest(found, model) for model in ("ResNet110", "ResNet1001")}
    if None in ways.values():
        return
    (deep, deep_way), (shallow, way) = ((found[m, w or ""], w) for m, w in reversed(ways.items()))
    case, ours, theirs = f"ResNet1001, {deep_way}", deep.step / 1001, shallow.step / 110
    first = deep.building + deep.first
    yield Row(case, "s to the first step", first, bar=plan.bars.get("first", ""))
    bar = plan.bars.get("layer", "")
    times = (1e3 * ours, f"ResNet110, {way}", 1e3 * theirs, ours / theirs)
    yield Row(case, "ms a layer and step", *times, bar)


def _fastest(found: Found, model: str) -> str | None:
    """The way whose steps are fastest; None where none could be compiled."""
    steps = {way: found[model, way].step for way in _WAYS if (model, way) in found}
    return min(steps, key=lambda way: steps[way]) if steps else None


def _compare_remat(case: tuple[str, int, str], plan: Plan, found: Found) -> Iterator[Row]:
    """Memory and time with rematerialisation beside those without, which may have been found."""
    model, batch, way = case
    name, peer = f"{model}, {way}, batch {batch}, remat", "without remat"
    try:
        ours = _measure_apart(model, batch, way, plan, remat=True)
        theirs = found.get((model, way)) or _measure_apart(model, batch, way, plan)
    except StoppedError as error:
        yield Row(name, "GiB at most", None, note=str(error))
        return
    memory = (ours.peak_gib, peer, theirs.peak_gib, ours.peak_gib / theirs.peak_gib)
    yield Row(name, "GiB at most", *memory)
    yield Row(name, "ms a step", 1e3 * ours.step, peer, 1e3 * theirs.step, ours.step / theirs.step)
