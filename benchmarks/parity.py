"""`compare` of two networks, layer by layer, beside the passes that it has to run: time, memory."""

import functools
import os
import statistics
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.apart import call_apart, peak_memory
from benchmarks.measure import Row, Size, Task, clock, median_ratio, take_turns

_OURS, _EAGER, _JITTED = "compare", "both passes, JAX eager", "both passes, JAX jitted"
_BAR = "<= 3"


@dataclass(frozen=True)
class Case:
    """Two twins with the same weights and a batch of noise, in float64."""

    model: str
    batch_size: int
    image_size: int

    def __str__(self) -> str:
        return f"{self.model}, {self.image_size} px, batch {self.batch_size}, float64"


def run(size: Size) -> list[Row]:
    """Its time again and again, then in fresh processes its first time and its memory."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # where torch's passes are, too
    if size == "tiny":
        case = larger = Case("ResNet20", 2, 32)
    else:
        case, larger = Case("ResNet50", 2, 128), Case("ResNet50", 4, 224)
    return [*_compare_times(case, 1 if size == "tiny" else 3), *_compare_first(case),
            _compare_memory(larger)]  # fmt: skip


def _compare_times(case: Case, repetitions: int) -> list[Row]:
    """In time, and in CPU time with one thread of torch's: others of it wait in busy loops."""
    import torch

    rows, tasks, num_threads = [], _tasks(case), torch.get_num_threads()
    for measure, timer, threads in (
        ("s", time.perf_counter, num_threads),
        ("s of CPU", time.process_time, 1),
    ):
        torch.set_num_threads(threads)
        seconds = take_turns(tasks, repetitions, timer=timer)
        for peer, bar in ((_EAGER, _BAR), (_JITTED, "")):
            ours, theirs = seconds[_OURS], seconds[peer]
            medians = statistics.median(ours), statistics.median(theirs)
            ratio = median_ratio(ours, theirs)
            rows.append(Row(str(case), measure, medians[0], peer, medians[1], ratio, bar))
    torch.set_num_threads(num_threads)
    return rows


def _compare_first(case: Case) -> list[Row]:
    """All in a process without compiled programs, by the CPU time of that process."""
    seconds = {task: _apart(task, case)["seconds"] for task in (_OURS, _EAGER, _JITTED)}
    return [
        Row(
            f"{case}, the first time",
            "s of CPU",
            seconds[_OURS],
            peer,
            seconds[peer],
            seconds[_OURS] / seconds[peer],
            bar,
        )
        for peer, bar in ((_EAGER, _BAR), (_JITTED, ""))
    ]


def _compare_memory(case: Case) -> Row:
    """The peak beyond what the process had before, in multiples of all layers' outputs."""
    found = {task: _apart(task, case) for task in (_OURS, _EAGER)}
    size = call_apart(activations, case.model, case.batch_size, case.image_size)
    ours, theirs = (found[task]["bytes"] / size for task in (_OURS, _EAGER))
    unit = "times the activations in memory"
    return Row(str(case), unit, ours, bar=_BAR, note=f"the passes alone {theirs:.2f}")


@functools.cache
def _apart(task: str, case: Case) -> dict[str, float]:
    return call_apart(first, task, case.model, case.batch_size, case.image_size)


def first(task: str, *case: Any) -> dict[str, float]:
    """Seconds of CPU, and bytes beyond the networks', of one task alone in this process."""
    import torch

    torch.set_num_threads(1)
    run_it = _tasks(Case(*case))[task]
    before = peak_memory()
    seconds = clock(run_it, time.process_time)
    return {"seconds": seconds, "bytes": peak_memory() - before}


def activations(*case: Any) -> int:
    """Bytes of the outputs of all layers of both networks, once."""
    from convert.parity.compare import make_probe
    from convert.parity.precision import float64

    *models, images = _make(Case(*case))
    with float64(("flax",)):
        outputs = [make_probe(model, "f64", "cpu").evaluate(images)["eval"] for model in models]
    return sum(array.nbytes for arrays in outputs for array in arrays.values())


def _make(case: Case) -> tuple[Any, Any, Any]:
    """The torch twin, the Flax twin with its weights, and images."""
    import numpy as np
    import torch
    from flax import nnx

    import flax_resnet
    import torch_resnet
    from convert import torch_to_flax

    torch.manual_seed(0)
    torch_model = torch_resnet.create(case.model, num_classes=1000)
    flax_model = flax_resnet.create(case.model, num_classes=1000, rngs=nnx.Rngs(0))
    torch_to_flax(torch_model.state_dict(), flax_model)
    shape = (case.batch_size, case.image_size, case.image_size, 3)
    return torch_model, flax_model, np.random.default_rng(0).standard_normal(shape)


def _tasks(case: Case) -> dict[str, Task]:
    """Ours, and the same training passes of both networks, forward and backward, alone."""
    from convert.parity import compare

    torch_model, flax_model, images = _make(case)
    torch_passes = _torch_passes(torch_model, images)
    eager, jitted = (_flax_passes(flax_model, images, jit=jit) for jit in (False, True))

    def ours() -> None:
        assert compare(torch_model, flax_model, images, precision="f64").verdict.same

    return {
        _OURS: ours,
        _EAGER: lambda: (torch_passes(), eager()),
        _JITTED: lambda: (torch_passes(), jitted()),
    }


def _torch_passes(model: Any, images: Any) -> Task:
    import copy

    import torch

    wide = copy.deepcopy(model).double().train()
    placed = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    def passes() -> None:
        wide.zero_grad()
        wide(placed).sum().backward()

    return passes


def _flax_passes(model: Any, images: Any, *, jit: bool) -> Task:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    wide = nnx.clone(model)
    for _, module in nnx.iter_modules(wide):
        if getattr(module, "dtype", None) is not None:
            vars(module)["dtype"] = jnp.dtype("float64")
    wide.train()
    graph, params, rest = nnx.split(wide, nnx.Param, ...)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda array: array.astype(jnp.float64), params)
        placed = jnp.asarray(images)

    def loss(params: Any, rest: Any, images: Any) -> Any:
        return nnx.merge(graph, params, rest, copy=True)(images).sum()

    gradients = jax.jit(jax.grad(loss)) if jit else jax.grad(loss)

    def passes() -> None:
        with jax.enable_x64(True):
            jax.block_until_ready(gradients(params, rest, placed))

    return passes
