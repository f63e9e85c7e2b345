"""What a file holds beside its arrays."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Visitor = Callable[[str, np.ndarray], None]  # what a reader does with each array in turn


@dataclass(frozen=True)
class Contents:
    """What `read` returns.

    Attributes:
        metadata: the text that `write` was given; in a hostile file, anything.
        problems: faults that leave the rest readable, as a name that is there twice.
        notes: wrappers that were taken off, and entries that were left out.
        architectures: what a training script called the network, where it wrote that beside it.
    """

    metadata: Mapping[Any, Any]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
