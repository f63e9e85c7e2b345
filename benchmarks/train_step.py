"""B1: the trainer's own step beside torch's and linen's, one batch again and again."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from benchmarks.bare_step import BareStep, make_trainer, random_dataset
from benchmarks.measure import Row, Size, Task, speed_rows, take_turns
from benchmarks.peers.networks import OURS, PACKAGE, TIMM, TORCHVISION, create
from train.config import Config
from train.config.fields import Precision
from train.data.dataset import Dataset, normalise

_OURS = "ours"
_LINEN = "linen, pmap"
_COMPILED = f"{OURS}, compiled"


@dataclass(frozen=True)
class Case:
    """One network and batch; `steps` and `repetitions` so that a measurement takes seconds."""

    model: str
    batch_size: int
    image_size: int
    num_classes: int
    precision: Precision
    steps: int
    repetitions: int
    peers: tuple[str, ...]

    def __str__(self) -> str:
        precision = {"f32": "float32", "bf16": "bfloat16"}[self.precision]
        return f"{self.model}, {self.image_size} px, batch {self.batch_size}, {precision}"


def run(size: Size) -> list[Row]:
    """Images a second of each case, beside each of its peers."""
    return [row for case in _cases(size) for row in _measure(case)]


def _cases(size: Size) -> list[Case]:
    everyone = (_COMPILED, OURS, PACKAGE, _LINEN)
    imagenet = (*everyone, TORCHVISION, TIMM)
    if size == "tiny":
        return [Case("WideResNet16-1-0.0", 4, 8, 10, "f32", 1, 1, (OURS, PACKAGE, _LINEN))]
    if jax.default_backend() == "gpu":
        return [
            Case("ResNet50", 256, 224, 1000, "bf16", 10, 10, imagenet),
            Case("ResNet50", 128, 224, 1000, "bf16", 10, 10, (_COMPILED, _LINEN)),
            Case("ResNet20", 128, 32, 10, "bf16", 100, 10, everyone),
            Case("ResNet20", 1024, 32, 10, "bf16", 50, 10, (_COMPILED, _LINEN)),
            Case("ResNet110", 128, 32, 10, "bf16", 20, 10, everyone),
            Case("ResNet164", 128, 32, 10, "bf16", 20, 10, everyone),
            Case("WideResNet28-10-0.0", 128, 32, 10, "bf16", 10, 10, (_COMPILED, OURS, PACKAGE)),
        ]
    return [
        Case("ResNet50", 16, 224, 1000, "f32", 1, 2, imagenet),
        Case("ResNet20", 128, 32, 10, "f32", 1, 7, everyone),
        Case("ResNet110", 32, 32, 10, "f32", 1, 3, (OURS,)),
        Case("ResNet164", 32, 32, 10, "f32", 1, 3, (OURS,)),
        Case("WideResNet28-10-0.0", 8, 32, 10, "f32", 1, 3, (OURS, PACKAGE)),
    ]


def _measure(case: Case) -> list[Row]:
    dataset = random_dataset(case.batch_size, case.image_size, case.num_classes)
    images, labels = normalise(dataset.train.images, dataset), dataset.train.labels
    tasks: dict[str, Task] = {_OURS: _ours(case, dataset)}
    tasks[_OURS]()  # compiles
    failed: dict[str, str] = {}
    for peer in case.peers:
        try:
            tasks[peer] = _PEERS[peer](case, images, labels)
            tasks[peer]()
        except Exception as error:  # not installed, or its compiler is not
            tasks.pop(peer, None)
            failed[peer] = f"not run: {error}".splitlines()[0]
    bars = {peer: _bar(case, peer) for peer in tasks if peer != _OURS}
    seconds = take_turns(tasks, case.repetitions, warm_up=0)
    rows = speed_rows(str(case), seconds, _OURS, bars, case.batch_size * case.steps)
    ours = case.batch_size * case.steps / float(np.median(seconds[_OURS]))
    return rows + [
        Row(str(case), "images/s", ours, peer, bar=_bar(case, peer), note=note)
        for peer, note in failed.items()
    ]


def _bar(case: Case, peer: str) -> str:
    """>= 1.0 of linen everywhere; of compiled torch on GPU, 1.15 for one setting of ResNet-50."""
    if peer == _LINEN:
        return ">= 1.0"
    if peer == _COMPILED and jax.default_backend() == "gpu":
        return ">= 1.15" if (case.model, case.batch_size) == ("ResNet50", 256) else ">= 1.0"
    return ""


def _ours(case: Case, dataset: Dataset) -> Task:
    """The images are on the device as uint8; augmentation, which no peer has here, is off."""
    config = Config(
        model=case.model,
        precision=case.precision,
        global_batch_size=case.batch_size,
        crop_padding=0,
        flip=False,
    )
    return BareStep(make_trainer(config, dataset), [config.seed], case.steps)


def _torch(network: str, is_compiled: bool = False) -> Callable[..., Task]:
    def make(case: Case, images: np.ndarray, labels: np.ndarray) -> Task:
        from benchmarks.peers.torch_step import TorchStep

        precision, steps = case.precision, case.steps
        return TorchStep(
            create(network, case.model, case.num_classes),
            images,
            labels,
            precision=precision,
            is_compiled=is_compiled,
            steps=steps,
        )

    return make


def _linen(case: Case, images: np.ndarray, labels: np.ndarray) -> Task:
    from benchmarks.peers.linen_resnet import LinenStep

    numbers: Any = {"num_classes": case.num_classes, "precision": case.precision}
    return LinenStep(case.model, images, labels, **numbers, steps=case.steps)


_PEERS: dict[str, Callable[..., Task]] = {
    _LINEN: _linen,
    _COMPILED: _torch(OURS, is_compiled=True),
    **{whose: _torch(whose) for whose in (OURS, PACKAGE, TORCHVISION, TIMM)},
}
