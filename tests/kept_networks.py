"""The error of a network in a file, found again in both frameworks."""

from pathlib import Path

import jax
import numpy as np
import torch
from flax import nnx

import convert

_BATCH = 250


def errors_in_both(path: Path, images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Fraction of normalised images (n, h, w, c) that a file gets wrong, in Flax and in torch."""
    flax_model, torch_model = (convert.load(path, backend=name) for name in ("flax", "torch"))
    graph, state = nnx.split(flax_model)
    run_flax = jax.jit(lambda images: nnx.merge(graph, state, copy=True)(images))
    wrong = [0, 0]
    for start in range(0, len(images), _BATCH):
        batch, expected = images[start : start + _BATCH], labels[start : start + _BATCH]
        with torch.no_grad():
            torch_logits = torch_model(torch.from_numpy(batch.transpose(0, 3, 1, 2).copy()))
        for number, logits in enumerate((np.asarray(run_flax(batch)), torch_logits.numpy())):
            wrong[number] += int(np.sum(logits.argmax(1) != expected))
    return wrong[0] / len(images), wrong[1] / len(images)
