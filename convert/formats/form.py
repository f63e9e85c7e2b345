"""What a form of file is, and what a file holds beside its arrays."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Visitor = Callable[[str, np.ndarray], None]  # what a reader does with each array in turn


@dataclass(frozen=True)
class Contents:
    """What `read` returns.

    Attributes:
        metadata: the text that `write` was given; in a hostile file, anything.
        problems: faults that leave the rest readable, such as a name that is there twice.
        notes: wrappers that were removed, and entries that were left out.
        architectures: the names that a training script wrote beside the network's state dict.
        modules: what a state dict's `_metadata` says of each module, by its path; likewise.
    """

    metadata: Mapping[Any, Any]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    modules: Mapping[Any, Any] | None = None


class Reader(Protocol):
    """The function that every module of this folder has."""

    def read(self, path: Path, visit: Visitor) -> Contents: ...


class Form(Reader, Protocol):
    """The two functions that a module has whose form is also written."""

    def write(
        self, path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
    ) -> dict[str, int]: ...
