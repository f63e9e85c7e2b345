"""The converter beside torch's own loading and saving of the same weights, in one run.

`python -m benchmarks.convert [--json FILE]`: a file to a Flax model and back, in time and memory.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# name -> (layout of the file, number of classes)
MODELS = {"ResNet152": ("torchvision", 1000), "ResNet1202": ("flax-resnet", 10)}
SECONDS_BAR = 2.0
MEMORY_BAR = 2.2
Task = Callable[[], Any]


def make_files(name: str, folder: Path) -> None:
    """The same weights under the layout's names, for us, and under the twin's, for torch."""
    import torch

    import convert
    import torch_resnet

    layout, num_classes = MODELS[name]
    state = torch_resnet.create(name, num_classes).state_dict()
    torch.save(convert.to_layout(state, name, layout), folder / f"{name}.pth")
    torch.save(state, folder / f"{name}-plain.pth")


def tasks(name: str, folder: Path) -> dict[str, tuple[Task, Task]]:
    """(ours, the peer's) of either direction; what they start from is made here, untimed."""
    import torch

    import torch_resnet

    torch.set_num_threads(1)  # as many as ours: on a busy machine its threads wait in busy loops
    path, num_classes = folder / f"{name}.pth", MODELS[name][1]
    plain = torch_resnet.create(name, num_classes)
    ours = load_ours(name, path)
    return {
        "file to model": (
            lambda: load_ours(name, path),
            lambda: load_theirs(plain, folder / f"{name}-plain.pth"),
        ),
        "model to arrays": (lambda: to_arrays(name, ours), lambda: dict(plain.state_dict())),
        "model to file": (
            lambda: save_ours(name, ours, folder / "ours.pth"),
            lambda: torch.save(plain.state_dict(), folder / "theirs.pth"),
        ),
        "the same, safe": (
            lambda: save_ours(name, ours, folder / "ours.pth"),
            lambda: save_safely(plain, folder / "theirs.pth"),
        ),
    }


def load_theirs(model: Any, path: Path) -> None:
    """A file to a torch model that is there already."""
    import torch

    model.load_state_dict(torch.load(path), strict=True)


def load_ours(name: str, path: Path) -> Any:
    """A file to a Flax model, all checks on."""
    from convert.files import read_weights
    from convert.layouts import read_layout
    from convert.models import build_flax
    from resnet_spec import find_spec

    tensors = read_weights(path, allow_nonfinite=True).arrays  # the layout's reader checks them
    arrays, classifier = read_layout(tensors, find_spec(name), MODELS[name][0])
    del tensors
    return build_flax(classifier, arrays, take=True)


def to_arrays(name: str, model: Any) -> Any:
    """A Flax model to arrays under the layout's names."""
    from convert.layouts import write_layout
    from convert.models import arrays_of, describe

    return write_layout(arrays_of(model), describe(model), MODELS[name][0])


def save_ours(name: str, model: Any, path: Path) -> None:
    """A Flax model to a file that is on disk, read back and compared."""
    from convert.files import Weights, write_weights

    write_weights(path, Weights(to_arrays(name, model), None))


def save_safely(model: Any, path: Path) -> None:
    """What `save_ours` promises, of torch's own calls: on disk, read back and compared."""
    import torch

    state = model.state_dict()
    torch.save(state, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    written = torch.load(path)
    assert all(torch.equal(written[name], tensor) for name, tensor in state.items())


def compare(ours: Task, theirs: Task, repetitions: int) -> dict[str, float]:
    """Medians of seconds, and of the ratios of neighbouring runs."""
    pairs = []
    for task in (ours, theirs):  # what compiles once, and what the disk has not read yet
        task()
    for _ in range(repetitions):
        pairs.append((_clock(ours), _clock(theirs)))
    result = {}
    for index, kind in enumerate(("wall", "cpu")):
        result[f"ours_{kind}"] = statistics.median(one[index] for one, _ in pairs)
        result[f"theirs_{kind}"] = statistics.median(other[index] for _, other in pairs)
        ratios = [one[index] / other[index] for one, other in pairs]
        result[f"ratio_{kind}"] = statistics.median(ratios)
    return result


def _clock(task: Task) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    task()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure_memory(name: str, folder: Path) -> dict[str, float]:
    """Peak resident memory over that of the imports, as multiples of the weights."""
    size = (folder / f"{name}.pth").stat().st_size
    baseline = _peak_of_child("imports", name, folder)
    return {
        task: (_peak_of_child(task, name, folder) - baseline) / size
        for task in ("load ours", "load theirs", "load and save ours")
    }


def _peak_of_child(task: str, name: str, folder: Path) -> int:
    arguments = ["--child", task, "--model", name, "--folder", str(folder)]
    command = [sys.executable, "-m", "benchmarks.convert", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(run.stdout.split()[-1])


def child(task: str, name: str, folder: Path) -> None:
    """One task alone in this process; prints the largest resident memory in bytes."""
    import flax.nnx
    import jax
    import torch

    import torch_resnet

    jax.block_until_ready(jax.device_put(0.0))
    path = folder / f"{name}.pth"
    assert flax.nnx  # all are imported for every task
    assert torch
    if task == "load theirs":
        load_theirs(torch_resnet.create(name, MODELS[name][1]), folder / f"{name}-plain.pth")
    elif task != "imports":
        ours = load_ours(name, path)
        if "save" in task:
            save_ours(name, ours, folder / "child.pth")
    # Not ru_maxrss, which a process inherits from the one that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))


def main() -> None:
    """Prints a table, and writes JSON where it is asked for."""
    parser = argparse.ArgumentParser(description="the converter beside torch's own loading")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--model", choices=MODELS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.model, options.folder)
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        for name in [options.model] if options.model else MODELS:
            make_files(name, folder)
            results[name] = {"memory": measure_memory(name, folder)}
            for task, (ours, theirs) in tasks(name, folder).items():
                results[name][task] = compare(ours, theirs, options.repetitions)
            _print(name, results[name])
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {options.repetitions} pairs")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


def _print(name: str, results: dict[str, Any]) -> None:
    print(f"{name:18}{'ours':>9}{'torch':>9}{'ratio':>8}{'CPU time':>10}")
    for task, numbers in results.items():
        if task != "memory":
            seconds = f"{numbers['ours_wall']:8.3f}s{numbers['theirs_wall']:8.3f}s"
            print(f"  {task:16}{seconds}{numbers['ratio_wall']:8.2f}{numbers['ratio_cpu']:10.2f}")
    memory = ", ".join(f"{task} {ratio:.2f}" for task, ratio in results["memory"].items())
    print(f"  peak memory, times the weights: {memory}")
    print(
        f"  bars: {SECONDS_BAR} times torch.load + load_state_dict, {MEMORY_BAR} times the weights"
    )


if __name__ == "__main__":
    main()
