"""A training step of a torch network, eager or compiled, as fast as torch's own options make it."""

from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy


def device() -> torch.device:
    """The accelerator where torch has one, which then tries its convolutions out.

    Raises:
        RuntimeError: JAX has one and torch has none, or the other way round: no fair comparison.
    """
    import jax

    has_gpu = torch.cuda.is_available()
    if has_gpu != (jax.default_backend() == "gpu"):
        raise RuntimeError(
            "JAX and torch are on different devices: install flax-resnet[cuda] and torch for CUDA, "
            "or neither"
        )
    torch.backends.cudnn.benchmark = has_gpu
    return torch.device("cuda" if has_gpu else "cpu")


def synchronise() -> None:
    """Waits until the accelerator has done all it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class TorchStep:
    """Trains on one batch again and again; to call it is to wait for `steps` steps.

    Args:
        model: any network of images (n, c, h, w).
        images: (n, h, w, c), normalised. labels: (n,).
        precision: bf16, by autocast, or f32.
        is_compiled: by torch.compile, which takes its time at the first call.
        steps: in one call.
    """

    def __init__(
        self,
        model: Any,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        precision: str,
        is_compiled: bool = False,
        steps: int = 1,
    ):
        # channels last: on a CPU, too, it is the faster (ResNet-20: by 1.3)
        model = model.to(device(), memory_format=torch.channels_last).train()
        self._forward = torch.compile(model) if is_compiled else model
        nchw = torch.from_numpy(images).permute(0, 3, 1, 2)
        self._images = nchw.to(device(), memory_format=torch.channels_last)
        self._labels = torch.from_numpy(labels.astype(np.int64)).to(device())
        self._optimizer = make_sgd(model)
        self._autocast = torch.autocast(device().type, torch.bfloat16, precision == "bf16")
        self._steps = steps

    def __call__(self) -> None:
        for _ in range(self._steps):
            with self._autocast:
                loss = cross_entropy(self._forward(self._images), self._labels)
            loss.backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
        synchronise()


def make_sgd(model: Any, learning_rate: float = 0.1) -> torch.optim.SGD:
    """Momentum 0.9, decay 1e-4 but of BatchNorm and biases, in one kernel where torch has it."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = torch.cuda.is_available()
    return torch.optim.SGD(groups, learning_rate, momentum=0.9, weight_decay=1e-4, fused=fused)
