"""Stochastic depth: training drops whole residual branches at random."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from resnet_spec import branch_drop_rates, check_probability


class StochasticDepth(nn.Module):
    """Zeroes each image's residual branch with probability `rate`, in training only.

    Huang et al. 2016 (arXiv:1603.09382), section 3. A branch that is kept is divided by 1 - rate,
    so that its mean is the branch itself and evaluation changes nothing (as torchvision's mode
    "row" and timm's drop path); the paper multiplies by 1 - rate in evaluation instead, and draws
    once for the whole batch. It has no weights.

    Raises:
        ValueError: the rate is outside [0, 1].
    """

    def __init__(self, rate: float = 0.0):
        super().__init__()
        check_probability("rate", rate)
        self.rate = rate

    def forward(self, y: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        if not self.training or self.rate == 0:
            return y
        keep = 1 - self.rate
        kept = torch.rand((y.shape[0], 1, 1, 1), device=y.device) < keep
        return y * (kept.to(y.dtype) / (keep or 1))  # at rate 1 no branch is kept

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


def set_stochastic_depth(model: Any, stochastic_depth: float) -> None:
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
        block.stochastic_depth = StochasticDepth(rate)
