"""Stochastic depth: training drops whole residual branches at random."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flax_resnet.layers import check_rngs
from resnet_spec import branch_drop_rates, check_probability


class BranchDropRate(nnx.Variable[Array]):
    """A rate as an array, for blocks that one scan runs with different rates; not a weight."""


class StochasticDepth(nnx.Module):
    """Zeroes each image's residual branch with probability `rate`, in training only.

    Huang et al. 2016 (arXiv:1603.09382), section 3. A branch that is kept is divided by 1 - rate,
    so that its mean is the branch itself and evaluation changes nothing (as torchvision's mode
    "row" and timm's drop path); the paper multiplies by 1 - rate in evaluation instead, and draws
    once for the whole batch. It has no weights; it draws from the stream `dropout`.

    Attributes:
        deterministic: set by `model.train()` and `model.eval()`.

    Raises:
        ValueError: the rate is outside [0, 1], or is not 0 and there are no random streams.
    """

    def __init__(self, rate: float = 0.0, *, rngs: nnx.Rngs | None = None):
        check_probability("rate", rate)
        self.deterministic = False
        self.rate: float | BranchDropRate = float(rate)
        if rate > 0:
            if rngs is None:
                raise ValueError(f"StochasticDepth({rate}) draws at random: give it rngs")
            self.rngs = rngs["dropout"].fork()

    def __call__(self, y: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        rate = self.rate
        if self.deterministic or (not isinstance(rate, BranchDropRate) and rate == 0):
            return y
        keep = 1 - (rate.get_value() if isinstance(rate, BranchDropRate) else _as_array(rate))
        # float32 in every mode of JAX, so that one key drops the same branches
        kept = jax.random.bernoulli(self.rngs(), keep.astype(jnp.float32), (y.shape[0], 1, 1, 1))
        return y * jnp.where(kept, 1 / keep, 0).astype(y.dtype)

    def set_view(self, deterministic: bool | None = None) -> None:
        """What `nnx.view` sets.

        Args:
          deterministic: keep every branch as it is.
        """
        if deterministic is not None:
            self.deterministic = deterministic


def _as_array(rate: float) -> Array:
    return jnp.asarray(rate, jnp.result_type(float))


def with_rate_as_array(block: Any) -> Any:
    """A block as it is, or a copy with the same variables and its rate as a further one.

    Blocks that differ only in their rate are then equal, and one scan runs them.
    """
    layer = getattr(block, "stochastic_depth", None)
    rate = layer.rate if isinstance(layer, StochasticDepth) else 0.0
    if isinstance(rate, BranchDropRate) or rate == 0:
        return block
    block = nnx.merge(*nnx.split(block))
    block.stochastic_depth.rate = nnx.data(BranchDropRate(_as_array(rate)))
    return block


def set_stochastic_depth(model: Any, stochastic_depth: float, rngs: nnx.Rngs) -> None:
    """Gives the blocks of a network their rates by the linear decay rule, in place.

    Raises:
        ValueError: it is outside [0, 1], or a block of a user's own has no `stochastic_depth`.
    """
    blocks = [block for stage in model.stages for block in stage]
    rates = branch_drop_rates(stochastic_depth, len(blocks))
    if not stochastic_depth:
        return
    for block, rate in zip(blocks, rates, strict=True):
        if not isinstance(getattr(block, "stochastic_depth", None), StochasticDepth):
            raise ValueError(
                f"stochastic_depth: {type(block).__name__} has none; call a layer "
                "self.stochastic_depth = StochasticDepth() on its residual branch"
            )
        check_rngs(rngs, "dropout", f"stochastic_depth {stochastic_depth}")
        block.stochastic_depth = StochasticDepth(rate, rngs=rngs)
