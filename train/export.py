"""The end of a run: the model as a file, and the proof that the torch twin predicts the same.

The only place of the trainer that hands anything to the converter and to torch.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

import convert
from resnet_spec import Preprocessing
from train.data import Dataset, normalise

FILE = "model.safetensors"
_BATCH = 250
_STREAMED_IMAGES = 500


@dataclass(frozen=True)
class Parity:
    """Both twins on the whole test set, in the model's own precision.

    Attributes:
        flax_error, torch_error: fraction of images that are wrong.
        largest_difference: of two logits. largest_logit: the magnitude to set it against.
        different_predictions: number of images whose largest logit is another class.
    """

    images: int
    flax_error: float
    torch_error: float
    largest_difference: float
    largest_logit: float
    different_predictions: int

    def __str__(self) -> str:
        return (
            f"parity on {self.images} test images: Flax error {self.flax_error:.2%}, "
            f"torch error {self.torch_error:.2%}, largest logit difference "
            f"{self.largest_difference:.1e} (largest logit {self.largest_logit:.1f}), "
            f"{self.different_predictions} predictions differ"
        )


def has_torch() -> bool:
    """Whether the torch twin can be checked here."""
    return importlib.util.find_spec("torch") is not None


def export(run_dir: Path, model: Any, preprocessing: Preprocessing) -> Path:
    """Writes `model.safetensors` into the run's folder."""
    path = run_dir / FILE
    convert.save(path, model, preprocessing=preprocessing)
    return path


def check_parity(path: Path, model: Any, dataset: Dataset, dtype: Any) -> Parity:
    """Loads the file into the torch twin and runs the test set through both, as `dtype`.

    Of a streamed test set only the first images.
    """
    test = dataset.test.head(_STREAMED_IMAGES) if dataset.is_streamed else dataset.test
    images, labels = normalise(test.images, dataset, dtype), test.labels
    flax_logits = _run_flax(model, images)
    torch_logits = _run_torch(convert.load(path, backend="torch"), images)
    flax_classes, torch_classes = flax_logits.argmax(1), torch_logits.argmax(1)
    return Parity(
        images=len(images),
        flax_error=float(np.mean(flax_classes != labels)),
        torch_error=float(np.mean(torch_classes != labels)),
        largest_difference=float(np.abs(flax_logits - torch_logits).max()),
        largest_logit=float(np.abs(flax_logits).max()),
        different_predictions=int(np.sum(flax_classes != torch_classes)),
    )


def _run_flax(model: Any, images: np.ndarray) -> np.ndarray:
    graph, state = nnx.split(model)

    @jax.jit
    def logits(state: Any, images: jax.Array) -> jax.Array:
        return nnx.merge(graph, state, copy=True)(images)

    with jax.default_matmul_precision("highest"):  # accelerators default to less than float32
        batches = [logits(state, part) for part in _batches(images)]
    return np.concatenate(jax.device_get(batches))


def _run_torch(model: Any, images: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        parts = (torch.from_numpy(part.transpose(0, 3, 1, 2).copy()) for part in _batches(images))
        return np.concatenate([model(part).numpy() for part in parts])


def _batches(images: np.ndarray) -> list[np.ndarray]:
    return [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
