"""The four residual blocks.

A class of your own is used like these: it is built as
`block(in_planes, planes, *, shortcut, stride, width, drop_rate)` and has `out_planes`.
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu

from resnet_spec import BlockKind, basic_block, bottleneck
from torch_resnet.layers import batch_norm, conv
from torch_resnet.shortcut import ProjectionShortcut
from torch_resnet.stochastic_depth import StochasticDepth


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (He et al. 2015, figure 5 left), dropout between them [3].

    Raises:
        ValueError: `drop_rate` is outside [0, 1].
    """

    last_layer = "bn2"  # what `zero_init_residual` zeroes

    def __init__(
        self,
        in_planes: int,
        planes: int,
        *,
        shortcut: Callable[..., Any] = ProjectionShortcut,
        stride: int = 1,
        width: int = 1,
        drop_rate: float = 0.0,
    ):
        super().__init__()
        conv1, conv2 = basic_block(
            in_planes, planes, stride=stride, width=width, drop_rate=drop_rate
        )
        self.out_planes = conv2.out_planes
        self.conv1 = conv(conv1)
        self.bn1 = batch_norm(conv1.out_planes)
        self.dropout = nn.Dropout(drop_rate)
        self.conv2 = conv(conv2)
        self.bn2 = batch_norm(conv2.out_planes)
        self.stochastic_depth = StochasticDepth()
        self.shortcut = shortcut(in_planes, self.out_planes, stride)
        if self.shortcut.requires_activation:
            self.shortcut_bn = batch_norm(self.out_planes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        y = relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(self.dropout(y)))
        y = self.stochastic_depth(y) + _normalised_shortcut(self, x)
        return relu(y, inplace=True)  # of the sum, which nobody else has seen


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with the stride on the 3x3 (He et al. 2015, figure 5 right; "v1.5").

    Raises:
        ValueError: `drop_rate` is not 0.
    """

    expansion = 4
    last_layer = "bn3"

    def __init__(
        self,
        in_planes: int,
        planes: int,
        *,
        shortcut: Callable[..., Any] = ProjectionShortcut,
        stride: int = 1,
        width: int = 1,
        drop_rate: float = 0.0,
    ):
        super().__init__()
        conv1, conv2, conv3 = bottleneck(
            in_planes, planes, stride=stride, width=width, drop_rate=drop_rate
        )
        self.out_planes = conv3.out_planes
        self.conv1 = conv(conv1)
        self.bn1 = batch_norm(conv1.out_planes)
        self.conv2 = conv(conv2)
        self.bn2 = batch_norm(conv2.out_planes)
        self.conv3 = conv(conv3)
        self.bn3 = batch_norm(conv3.out_planes)
        self.stochastic_depth = StochasticDepth()
        self.shortcut = shortcut(in_planes, self.out_planes, stride)
        if self.shortcut.requires_activation:
            self.shortcut_bn = batch_norm(self.out_planes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        y = relu(self.bn1(self.conv1(x)))
        y = relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y = self.stochastic_depth(y) + _normalised_shortcut(self, x)
        return relu(y, inplace=True)  # of the sum, which nobody else has seen


class PreActBlock(nn.Module):
    """BN-ReLU-conv twice (He et al. 2016, figure 4e), dropout between the convolutions [3].

    Raises:
        ValueError: `drop_rate` is outside [0, 1].
    """

    last_layer = "conv2"

    def __init__(
        self,
        in_planes: int,
        planes: int,
        *,
        shortcut: Callable[..., Any] = ProjectionShortcut,
        stride: int = 1,
        width: int = 1,
        drop_rate: float = 0.0,
    ):
        super().__init__()
        conv1, conv2 = basic_block(
            in_planes, planes, stride=stride, width=width, drop_rate=drop_rate
        )
        self.out_planes = conv2.out_planes
        self.bn1 = batch_norm(conv1.in_planes)
        self.conv1 = conv(conv1)
        self.bn2 = batch_norm(conv2.in_planes)
        self.dropout = nn.Dropout(drop_rate)
        self.conv2 = conv(conv2)
        self.stochastic_depth = StochasticDepth()
        self.shortcut = shortcut(in_planes, self.out_planes, stride)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        activated = relu(self.bn1(x))
        y = self.conv1(activated)
        y = self.conv2(self.dropout(relu(self.bn2(y))))
        return self.stochastic_depth(y) + _preact_shortcut(self, x, activated)


class PreActBottleneck(nn.Module):
    """BN-ReLU before each of 1x1, 3x3, 1x1 (He et al. 2016, figure 4e and section 4).

    Raises:
        ValueError: `drop_rate` is not 0.
    """

    expansion = 4
    last_layer = "conv3"

    def __init__(
        self,
        in_planes: int,
        planes: int,
        *,
        shortcut: Callable[..., Any] = ProjectionShortcut,
        stride: int = 1,
        width: int = 1,
        drop_rate: float = 0.0,
    ):
        super().__init__()
        conv1, conv2, conv3 = bottleneck(
            in_planes, planes, stride=stride, width=width, drop_rate=drop_rate
        )
        self.out_planes = conv3.out_planes
        self.bn1 = batch_norm(conv1.in_planes)
        self.conv1 = conv(conv1)
        self.bn2 = batch_norm(conv2.in_planes)
        self.conv2 = conv(conv2)
        self.bn3 = batch_norm(conv3.in_planes)
        self.conv3 = conv(conv3)
        self.stochastic_depth = StochasticDepth()
        self.shortcut = shortcut(in_planes, self.out_planes, stride)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        activated = relu(self.bn1(x))
        y = self.conv1(activated)
        y = self.conv2(relu(self.bn2(y)))
        y = self.conv3(relu(self.bn3(y)))
        return self.stochastic_depth(y) + _preact_shortcut(self, x, activated)


def _normalised_shortcut(block: BasicBlock | Bottleneck, x: Tensor) -> Tensor:
    """Batch normalisation follows a shortcut that has weights (post-activation only)."""
    shortcut = block.shortcut(x)
    return block.shortcut_bn(shortcut) if block.shortcut.requires_activation else shortcut


def _preact_shortcut(block: PreActBlock | PreActBottleneck, x: Tensor, activated: Tensor) -> Tensor:
    """A shortcut that has weights reads the activated input, one that has none the raw one."""
    return block.shortcut(activated if block.shortcut.requires_activation else x)


BLOCKS: dict[bool, dict[BlockKind, Callable[..., Any]]] = {
    False: {"basic": BasicBlock, "bottleneck": Bottleneck},
    True: {"basic": PreActBlock, "bottleneck": PreActBottleneck},
}
"""The classes by `ResNetSpec.preact` and `ResNetSpec.block`."""
