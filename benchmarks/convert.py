"""The converter beside torch's own loading and saving of the same weights: time and memory."""

import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.apart import StoppedError, call_apart, peak_memory
from benchmarks.measure import Row, Size, Task, median_ratio, take_turns

# name -> (layout of the file, number of classes)
MODELS = {
    "ResNet20": ("flax-resnet", 10),
    "ResNet152": ("torchvision", 1000),
    "ResNet1202": ("flax-resnet", 10),
}
_NAMES: dict[Size, tuple[str, ...]] = {"full": ("ResNet152", "ResNet1202"), "tiny": ("ResNet20",)}
_REPETITIONS: dict[Size, int] = {"full": 5, "tiny": 1}
_MEMORY_TASKS = ("imports", "load ours", "load theirs", "load and save ours")
_TIME_BAR, _MEMORY_BAR, _NAMES_BAR = "<= 2", "<= 2.2", "<= 1.3"
# Words of a layout's names, and others, which no layout has.
_OTHER_WORDS = {"layer": "stage_", "stages": "group", "conv": "convolution_", "bn": "norm_"}


def run(size: Size) -> list[Row]:
    """Both directions of every model, in turns with torch; then its memory, apart."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # where torch's weights are, too
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        for name in _NAMES[size]:
            make_files(name, folder)
            rows += compare_memory(name, folder)
            rows += compare_times(name, folder, _REPETITIONS[size])
        name = _NAMES[size][0]
        rows += compare_names(name, folder, _REPETITIONS[size])
    return rows


def make_files(name: str, folder: Path) -> None:
    """The same weights under the layout's names, for us, and under the twin's, for torch."""
    import torch

    import convert
    import torch_resnet

    layout, num_classes = MODELS[name]
    state = torch_resnet.create(name, num_classes).state_dict()
    torch.save(convert.to_layout(state, name, layout), folder / f"{name}.pth")
    torch.save(state, folder / f"{name}-plain.pth")


def compare_times(name: str, folder: Path, repetitions: int) -> Iterator[Row]:
    """In time, as people feel it, and in CPU time, which other work on the machine disturbs less.

    For the latter torch has one thread, as ours has: others of its own wait in busy loops.
    """
    import torch

    tasks, num_threads = _tasks(name, folder), torch.get_num_threads()
    for measure, timer, threads in (
        ("s", time.perf_counter, num_threads),
        ("s of CPU", time.process_time, 1),
    ):
        torch.set_num_threads(threads)
        for case, (peer, bar, ours, theirs) in tasks.items():
            if timer is time.process_time and not bar:
                continue
            seconds = take_turns({"ours": ours, peer: theirs}, repetitions, timer=timer)
            yield Row(
                f"{name}, {case}",
                measure,
                statistics.median(seconds["ours"]),
                peer,
                statistics.median(seconds[peer]),
                median_ratio(seconds["ours"], seconds[peer]),
                bar,
            )
    torch.set_num_threads(num_threads)


def _tasks(name: str, folder: Path) -> dict[str, tuple[str, str, Task, Task]]:
    """(the peer, the bar, ours, the peer's) by what is done; all start from what is made here."""
    import torch

    import torch_resnet

    path, theirs = folder / f"{name}.pth", folder / "theirs.pth"
    plain = torch_resnet.create(name, MODELS[name][1])
    ours = load_ours(name, path)

    def save() -> None:
        save_ours(name, ours, folder / "ours.pth")

    return {
        "file to model": (
            "torch.load, load_state_dict",
            _TIME_BAR,
            lambda: load_ours(name, path),
            lambda: load_theirs(plain, folder / f"{name}-plain.pth"),
        ),
        "file to model and back": (
            "torch.load, load_state_dict",
            _TIME_BAR,
            lambda: to_arrays(name, load_ours(name, path)),
            lambda: load_theirs(plain, folder / f"{name}-plain.pth"),
        ),
        "model to arrays": (
            "state_dict",
            "",
            lambda: to_arrays(name, ours),
            lambda: dict(plain.state_dict()),
        ),
        "model to file": (
            "torch.save",
            _TIME_BAR,
            save,
            lambda: torch.save(plain.state_dict(), theirs),
        ),
        "model to file, safe": (
            "torch.save, fsync, read, compare",
            "",
            save,
            lambda: save_safely(plain, theirs),
        ),
    }


def load_theirs(model: Any, path: Path) -> None:
    """A file to a torch model that is there already."""
    import torch

    model.load_state_dict(torch.load(path), strict=True)


def load_ours(name: str, path: Path) -> Any:
    """A file to a Flax model, all checks on."""
    from convert.files import read_weights
    from convert.layouts import find_layout, read_layout
    from convert.models import build_flax
    from resnet_spec import find_spec

    tensors = read_weights(path, allow_nonfinite=True).arrays  # the layout's reader checks them
    arrays, classifier = read_layout(tensors, find_spec(name), find_layout(MODELS[name][0]))
    del tensors
    return build_flax(classifier, arrays, take=True)


def to_arrays(name: str, model: Any) -> Any:
    """A Flax model to arrays under the layout's names."""
    from convert.layouts import find_layout, write_layout
    from convert.models import arrays_of, describe

    return write_layout(arrays_of(model), describe(model), find_layout(MODELS[name][0]))


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


def compare_names(name: str, folder: Path, repetitions: int) -> Iterator[Row]:
    """A whole import of a file whose names nobody knows, beside that of the names of a layout."""
    import torch

    known, unknown = folder / f"{name}.pth", folder / f"{name}-unknown.pth"
    state = torch.load(known)
    torch.save({_in_other_words(n): tensor for n, tensor in state.items()}, unknown)
    del state
    layout = MODELS[name][0]
    told = ("--layout", layout, "--model", name)
    tasks = {
        "unknown": lambda: import_by_command(unknown, folder),
        "known": lambda: import_by_command(known, folder, *told),
    }
    for measure, timer in (("s", time.perf_counter), ("s of CPU", time.process_time)):
        seconds = take_turns(tasks, repetitions, timer=timer)
        yield Row(
            f"{name}, import of unknown names",
            measure,
            statistics.median(seconds["unknown"]),
            f"import --layout {layout} --model {name}",
            statistics.median(seconds["known"]),
            median_ratio(seconds["unknown"], seconds["known"]),
            _NAMES_BAR,
        )


def _in_other_words(name: str) -> str:
    for word, other in _OTHER_WORDS.items():
        name = name.replace(word, other)
    return name


def import_by_command(path: Path, folder: Path, *options: str) -> None:
    """`resnet-convert import` in this process, without what it says."""
    from convert.__main__ import main

    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["import", str(path), *options, "-o", str(folder / "imported.pt")]) == 0


def compare_memory(name: str, folder: Path) -> Iterator[Row]:
    """Peak memory over that of the imports, in multiples of the weights."""
    size = (folder / f"{name}.pth").stat().st_size
    unit = "times the weights in memory"
    try:
        peaks = {task: call_apart(peak_of, task, name, str(folder)) for task in _MEMORY_TASKS}
    except StoppedError as error:
        yield Row(name, unit, None, note=str(error))
        return
    load, torch_load, save = ((peaks[t] - peaks["imports"]) / size for t in _MEMORY_TASKS[1:])
    yield Row(f"{name}, file to model", unit, load, bar=_MEMORY_BAR, note=f"torch {torch_load:.2f}")
    yield Row(f"{name}, file to model to file", unit, save, bar=_MEMORY_BAR)


def peak_of(task: str, name: str, folder: str) -> int:
    """The most bytes in memory, of one task alone in this process."""
    import flax.nnx
    import jax
    import torch

    import torch_resnet

    jax.block_until_ready(jax.device_put(0.0))
    path = Path(folder) / f"{name}.pth"
    assert flax.nnx  # all are imported for every task
    assert torch
    if task == "load theirs":
        plain = Path(folder) / f"{name}-plain.pth"
        load_theirs(torch_resnet.create(name, MODELS[name][1]), plain)
    elif task != "imports":
        ours = load_ours(name, path)
        if "save" in task:
            save_ours(name, ours, Path(folder) / "child.pth")
    return peak_memory()
