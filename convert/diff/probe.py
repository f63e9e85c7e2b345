"""The interface by which `compare` runs a network and reads its layers, in either framework."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from convert.errors import ConversionError

Arrays = dict[str, np.ndarray]
Sections = dict[str, Arrays]  # by a key of `comparison.SECTIONS`
OUTPUT = "output"  # the name of what the network returns, the last of its activations


class Probe(Protocol):
    """A copy of a network in one precision on one device, that draws nothing at random.

    Activations are by layer, in the order of the forward pass, with channels last, and end with
    what the network returned, as `OUTPUT`. Gradients and statistics have torch's names and axes.
    """

    def evaluate(self, images: np.ndarray) -> Sections:
        """Activations in eval mode, as the section `eval`."""
        ...

    def train(self, images: np.ndarray, loss: "Loss") -> Sections:
        """A forward and a backward pass in train mode: `train`, `gradients` and `statistics`."""
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
        """Raises a ConversionError if the labels are not classes of outputs of this shape."""
        if self.labels is None:
            return
        if len(shape) != 2:
            raise ConversionError(f"labels are for outputs (n, classes), and these are {shape}")
        if self.labels.max() >= shape[1]:
            raise ConversionError(
                f"labels reach {self.labels.max()}, but a network has classes 0 to {shape[1] - 1}"
            )
