"""B5: images to logits, one at a time and many at once: both twins, ONNX, and what others run."""

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
import torch

from benchmarks.measure import Row, Size, Task, speed_rows, take_turns
from benchmarks.peers.networks import OURS, PACKAGE, TIMM, TORCHVISION, create
from benchmarks.peers.torch_step import device, synchronise

_FLAX, _LINEN = "our Flax twin, jitted", "linen, jitted"
_ONNX = "our ONNX export, onnxruntime"
_EAGER, _COMPILED = "eager", "compiled"


@dataclass(frozen=True)
class Case:
    """One network and batch.

    Attributes:
        calls: in one measurement, so that it takes long enough to be measured.
        networks: in torch, channels last: no slower on CPU than torch's own order (measured).
        compiled: those that are compiled, too: all or none, or the fastest settings of some would
            stand beside another setting of the rest; on CPU none where it takes long.
    """

    model: str
    batch_size: int
    image_size: int
    num_classes: int
    calls: int
    repetitions: int
    networks: tuple[str, ...]
    compiled: tuple[str, ...] = ()
    precision: str = "float32"

    def __str__(self) -> str:
        return f"{self.model}, {self.image_size} px, batch {self.batch_size}, {self.precision}"


def run(size: Size) -> list[Row]:
    """Images a second of each case."""
    return [row for case in _cases(size) for row in _measure(case)]


def _cases(size: Size) -> list[Case]:
    cifar = (OURS, PACKAGE)
    imagenet = (*cifar, TORCHVISION, TIMM)
    if size == "tiny":
        return [Case("ResNet20", 2, 8, 10, 1, 1, cifar)]
    if jax.default_backend() == "gpu":
        return [
            Case("ResNet50", 1, 224, 1000, 50, 10, imagenet, imagenet, "bfloat16"),
            Case("ResNet50", 256, 224, 1000, 10, 10, imagenet, imagenet, "bfloat16"),
            Case("ResNet20", 1, 32, 10, 100, 10, cifar, cifar, "bfloat16"),
            Case("ResNet20", 256, 32, 10, 100, 10, cifar, cifar, "bfloat16"),
            Case("ResNet110", 256, 32, 10, 20, 10, cifar, cifar, "bfloat16"),
        ]
    return [
        Case("ResNet50", 1, 224, 1000, 2, 7, imagenet),
        Case("ResNet50", 16, 224, 1000, 1, 3, imagenet, imagenet),
        Case("ResNet20", 1, 32, 10, 20, 7, cifar),
        Case("ResNet20", 16, 32, 10, 5, 7, cifar, cifar),
        Case("ResNet110", 16, 32, 10, 1, 7, cifar),
    ]


def _measure(case: Case) -> list[Row]:
    shape = (case.batch_size, case.image_size, case.image_size, 3)
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    tasks: dict[str, Task] = {}
    failed: dict[str, str] = {}
    for name, make in _makers(case).items():
        try:
            tasks[name] = _repeat(make(case, images), case.calls)
            tasks[name]()  # what compiles does so here, and may fail
        except Exception as error:  # not installed, or its compiler is not
            tasks.pop(name, None)
            failed[name] = f"not run: {error}".splitlines()[0]
    seconds = take_turns(tasks, case.repetitions)
    count = case.batch_size * case.calls
    missing = [Row(str(case), "images/s", None, name, note=why) for name, why in failed.items()]
    return [*_flax_rows(case, seconds, count), *_torch_rows(case, seconds, count),
            *_onnx_rows(case, seconds, count), *missing]  # fmt: skip


def _flax_rows(case: Case, seconds: Mapping[str, list[float]], count: int) -> list[Row]:
    return _rows(case, seconds, _FLAX, {_LINEN} & seconds.keys(), count)


def _torch_rows(case: Case, seconds: Mapping[str, list[float]], count: int) -> list[Row]:
    """Our twin and each peer in the setting that is its fastest here."""
    fastest: dict[str, str] = {}
    for network in case.networks:
        runs = [name for name in seconds if name.startswith(f"{network}, ")]
        if runs:
            fastest[network] = min(runs, key=lambda name: median(seconds[name]))
    ours = fastest.pop(OURS, None)
    if ours is None:  # a row of its own says why
        return []
    return _rows(case, seconds, ours, set(fastest.values()), count)


def _onnx_rows(case: Case, seconds: Mapping[str, list[float]], count: int) -> list[Row]:
    if _ONNX not in seconds:
        return []
    return _rows(case, seconds, _ONNX, seconds.keys() - {_ONNX}, count)


def _rows(
    case: Case, seconds: Mapping[str, list[float]], ours: str, peers: set[str], count: int
) -> list[Row]:
    """Ours beside its peers, the fastest first: the bar is to be no slower than that one."""
    ordered = sorted(peers, key=lambda name: median(seconds[name]))
    bars = {name: "" if index else ">= 1.0" for index, name in enumerate(ordered)}
    rows = speed_rows(f"{case}: {ours}", seconds, ours, bars, count)
    if case.batch_size > 1:
        return rows
    milliseconds = 1000 * median(seconds[ours]) / count
    return [dataclasses.replace(row, note=f"{milliseconds:.3g} ms an image") for row in rows]


def _repeat(forward: Task, calls: int) -> Task:
    def task() -> None:
        for _ in range(calls):
            forward()
        synchronise()

    return task


Maker = Callable[[Case, np.ndarray], Task]


def _makers(case: Case) -> dict[str, Maker]:
    makers: dict[str, Maker] = {_FLAX: _flax, _LINEN: _linen}
    for setting, networks in ((_EAGER, case.networks), (_COMPILED, case.compiled)):
        for network in networks:
            makers[f"{network}, {setting}"] = _torch(network, setting)
    if not torch.cuda.is_available():
        makers[_ONNX] = _onnx
    return makers


def _flax(case: Case, images: np.ndarray) -> Task:
    from flax import nnx

    import flax_resnet

    model = flax_resnet.create(
        case.model, case.num_classes, rngs=nnx.Rngs(0), dtype=np.dtype(case.precision)
    )
    model.eval()
    graph, state = nnx.split(model)
    leaves, tree = jax.tree.flatten(state)  # as the README does

    def apply(leaves: Any, images: Any) -> Any:
        return nnx.merge(graph, jax.tree.unflatten(tree, leaves))(images)

    return _jax(apply, leaves, images)


def _linen(case: Case, images: np.ndarray) -> Task:
    from benchmarks.peers import linen_resnet
    from resnet_spec import find_spec

    row = find_spec(case.model)
    block = {
        "basic": linen_resnet.ResNetBlock,
        "bottleneck": linen_resnet.BottleneckResNetBlock,
    }[row.block]
    model = linen_resnet.LinenResNet(
        row.stage_depths, block, case.num_classes, np.dtype(case.precision), row.small_images
    )
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    return _jax(model.apply, variables, images)


def _jax(apply: Callable[..., Any], variables: Any, images: np.ndarray) -> Task:
    compiled = jax.jit(apply)
    variables, placed = jax.device_put((variables, images))
    return lambda: jax.block_until_ready(compiled(variables, placed))


def _torch(network: str, setting: str) -> Maker:
    def make(case: Case, images: np.ndarray) -> Task:
        where: Any = {"device": device(), "dtype": getattr(torch, case.precision)}
        where["memory_format"] = torch.channels_last
        model = create(network, case.model, case.num_classes).eval().to(**where)
        if setting == _COMPILED:
            model = torch.compile(model)
        placed = torch.from_numpy(images).permute(0, 3, 1, 2).to(**where)

        def forward() -> None:
            with torch.inference_mode():
                model(placed)
            if case.batch_size == 1:  # latency, and not the rate of a queue
                synchronise()

        return forward

    return make


def _onnx(case: Case, images: np.ndarray) -> Task:
    """As `resnet-convert export` writes it, with onnxruntime's own settings."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # else its threads wait for the next call in busy loops, and take the others' cores
    options.add_session_config_entry("session.force_spinning_stop", "1")
    model = _exported(case.model, case.num_classes, case.image_size)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    nchw = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return lambda: session.run(["logits"], {"images": nchw})


@functools.cache
def _exported(name: str, num_classes: int, image_size: int) -> bytes:
    import torch_resnet
    from convert.inference import export_onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(torch_resnet.create(name, num_classes), path, image_size=image_size)
        return path.read_bytes()
