"""What a run of one network gives, whichever framework it runs in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from convert.diff.precision import Device, Framework, Precision
from convert.errors import ConversionError

Arrays = dict[str, np.ndarray]
OUTPUT = "output"  # the name of what the network returns, the last of its activations


class TrainStep(NamedTuple):
    """One forward and backward pass in training.

    Activations are by layer, in the order of the forward pass, with channels last, and what the
    network returned comes last, as `OUTPUT`; gradients and statistics have torch's names and axes.
    """

    activations: Arrays
    gradients: Arrays
    statistics: Arrays


class Run(Protocol):
    """A copy of a network, in one precision on one device."""

    def evaluate(self, images: np.ndarray) -> Arrays:
        """Activations in eval mode, as those of `TrainStep`."""
        ...

    def train(self, images: np.ndarray, loss: "Loss") -> TrainStep:
        """One step in train mode, without an update of the weights; nothing is drawn at random."""
        ...


@dataclass(frozen=True)
class Loss:
    """Mean cross-entropy of `labels` (n,), or a sum of the outputs with seeded random weights."""

    seed: int
    labels: np.ndarray | None

    def weights(self, shape: tuple[int, ...]) -> np.ndarray:
        """The weights of outputs of this shape: standard normal, the same in any framework."""
        return np.random.default_rng(self.seed).standard_normal(shape)

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises a ConversionError where the labels are no classes of outputs of this shape."""
        if self.labels is None:
            return
        if len(shape) != 2:
            raise ConversionError(f"labels are for outputs (n, classes), and these are {shape}")
        if self.labels.max() >= shape[1]:
            raise ConversionError(
                f"labels reach {self.labels.max()}, and a network's classes 0 to {shape[1] - 1}"
            )


def framework_of(model: Any) -> Framework:
    """Which framework a model is of; torch's models have a state dict."""
    return "torch" if hasattr(model, "state_dict") else "flax"


def make_run(
    model: Any, precision: Precision, device: Device, names: Mapping[str, str] | None
) -> Run:
    """A copy of a model to run; `names` are our layers' names -> a torch peer's."""
    if framework_of(model) == "torch":
        from convert.diff.torch_run import TorchRun

        return TorchRun(model, precision, device, names)
    from convert.diff.flax_run import FlaxRun

    return FlaxRun(model, precision, device)
