"""How packages call and lay out the arrays of one layer: torch's way, NNX's and linen's."""

from dataclasses import dataclass

import numpy as np

from convert import leaves

_STATISTICS = ("mean", "var")


@dataclass(frozen=True)
class Spelling:
    """Names and axes of a layer's arrays.

    Attributes:
        is_flax: kernels are (h, w, in, out) and called `kernel`, not (out, in, h, w) and `weight`.
        has_collections: parameters and statistics are trees of their own, `params/...`.
        has_counters: normalisations count their batches.
        separator: between the parts of a name.
    """

    is_flax: bool = False
    has_collections: bool = False
    has_counters: bool = True
    separator: str = "."

    def name(self, layer: str, leaf: str, num_axes: int) -> str:
        """The full name of an array whose leaf torch calls `weight`, `bias`, `running_mean` ..."""
        leaf = leaves.flax_leaf(leaf, num_axes) if self.is_flax else leaf
        name = f"{layer}{self.separator}{leaf}"
        if self.has_collections:
            return f"{'batch_stats' if leaf in _STATISTICS else 'params'}/{name}"
        return name

    def to_ours(self, name: str, array: np.ndarray) -> np.ndarray:
        """An array of theirs with torch's axes; `name` is theirs."""
        return leaves.to_torch(self._dotted(name), array) if self.is_flax else array

    def to_theirs(self, name: str, array: np.ndarray) -> np.ndarray:
        """The inverse of `to_ours`."""
        return leaves.to_flax(self._dotted(name), array) if self.is_flax else array

    def _dotted(self, name: str) -> str:
        return name.replace(self.separator, ".")


TORCH = Spelling()
NNX = Spelling(is_flax=True, has_counters=False)
LINEN = Spelling(is_flax=True, has_collections=True, has_counters=False, separator="/")
