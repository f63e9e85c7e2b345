"""The four residual blocks.

A class of your own is used like these: it is built as
`block(in_planes, planes, *, shortcut, stride, width, drop_rate)` and has `out_planes`.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu

from resnet_spec import BlockKind, Conv, basic_block, bottleneck
from torch_resnet.layers import batch_norm, conv
from torch_resnet.shortcut import ProjectionShortcut
from torch_resnet.stochastic_depth import StochasticDepth

Convs = tuple[Conv, ...]


class _Block(nn.Module):
    """The constructor of the four blocks."""

    make_convs: ClassVar[Callable[..., Convs]]
    preact: ClassVar[bool]

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
        convs = self.make_convs(in_planes, planes, stride=stride, width=width, drop_rate=drop_rate)
        self.out_planes = convs[-1].out_planes
        self.add_layers(convs, drop_rate)
        self.stochastic_depth = StochasticDepth()
        self.shortcut = shortcut(in_planes, self.out_planes, stride)
        if self.shortcut.requires_activation and not self.preact:
            self.shortcut_bn = batch_norm(self.out_planes)

    def add_layers(self, convs: Convs, drop_rate: float) -> None:
        """Adds the layers of the residual branch."""
        raise NotImplementedError


class BasicBlock(_Block):
    """Two 3x3 convolutions (He et al. 2015, figure 5 left), dropout between them [3].

    Raises:
        ValueError: `drop_rate` is outside [0, 1].
    """

    last_layer = "bn2"  # what `zero_init_residual` zeroes
    make_convs = staticmethod(basic_block)
    preact = False

    def add_layers(self, convs: Convs, drop_rate: float) -> None:
        conv1, conv2 = convs
        self.conv1 = conv(conv1)
        self.bn1 = batch_norm(conv1.out_planes)
        self.dropout = nn.Dropout(drop_rate)
        self.conv2 = conv(conv2)
        self.bn2 = batch_norm(conv2.out_planes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        y = relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(self.dropout(y)))
        y = self.stochastic_depth(y) + _normalised_shortcut(self, x)
        return relu(y, inplace=True)  # in place: nothing else holds the sum


class Bottleneck(_Block):
    """1x1, 3x3, 1x1 with the stride on the 3x3 (He et al. 2015, figure 5 right; "v1.5").

    Raises:
        ValueError: `drop_rate` is not 0.
    """

    expansion = 4
    last_layer = "bn3"
    make_convs = staticmethod(bottleneck)
    preact = False

    def add_layers(self, convs: Convs, drop_rate: float) -> None:
        conv1, conv2, conv3 = convs
        self.conv1 = conv(conv1)
        self.bn1 = batch_norm(conv1.out_planes)
        self.conv2 = conv(conv2)
        self.bn2 = batch_norm(conv2.out_planes)
        self.conv3 = conv(conv3)
        self.bn3 = batch_norm(conv3.out_planes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        y = relu(self.bn1(self.conv1(x)))
        y = relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y = self.stochastic_depth(y) + _normalised_shortcut(self, x)
        return relu(y, inplace=True)  # in place: nothing else holds the sum


class PreActBlock(_Block):
    """BN-ReLU-conv twice (He et al. 2016, figure 4e), dropout between the convolutions [3].

    Raises:
        ValueError: `drop_rate` is outside [0, 1].
    """

    last_layer = "conv2"
    make_convs = staticmethod(basic_block)
    preact = True

    def add_layers(self, convs: Convs, drop_rate: float) -> None:
        conv1, conv2 = convs
        self.bn1 = batch_norm(conv1.in_planes)
        self.conv1 = conv(conv1)
        self.bn2 = batch_norm(conv2.in_planes)
        self.dropout = nn.Dropout(drop_rate)
        self.conv2 = conv(conv2)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        activated = relu(self.bn1(x))
        y = self.conv1(activated)
        y = self.conv2(self.dropout(relu(self.bn2(y))))
        return self.stochastic_depth(y) + _preact_shortcut(self, x, activated)


class PreActBottleneck(_Block):
    """BN-ReLU before each of 1x1, 3x3, 1x1 (He et al. 2016, figure 4e and section 4).

    Raises:
        ValueError: `drop_rate` is not 0.
    """

    expansion = 4
    last_layer = "conv3"
    make_convs = staticmethod(bottleneck)
    preact = True

    def add_layers(self, convs: Convs, drop_rate: float) -> None:
        conv1, conv2, conv3 = convs
        self.bn1 = batch_norm(conv1.in_planes)
        self.conv1 = conv(conv1)
        self.bn2 = batch_norm(conv2.in_planes)
        self.conv2 = conv(conv2)
        self.bn3 = batch_norm(conv3.in_planes)
        self.conv3 = conv(conv3)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        activated = relu(self.bn1(x))
        y = self.conv1(activated)
        y = self.conv2(relu(self.bn2(y)))
        y = self.conv3(relu(self.bn3(y)))
        return self.stochastic_depth(y) + _preact_shortcut(self, x, activated)


def _normalised_shortcut(block: _Block, x: Tensor) -> Tensor:
    """A shortcut that has weights is followed by a batch normalisation (post-activation only)."""
    shortcut = block.shortcut(x)
    return block.shortcut_bn(shortcut) if block.shortcut.requires_activation else shortcut


def _preact_shortcut(block: _Block, x: Tensor, activated: Tensor) -> Tensor:
    """A shortcut that has weights reads the activated input, any other the input itself."""
    return block.shortcut(activated if block.shortcut.requires_activation else x)


BLOCKS: dict[bool, dict[BlockKind, Callable[..., Any]]] = {
    False: {"basic": BasicBlock, "bottleneck": Bottleneck},
    True: {"basic": PreActBlock, "bottleneck": PreActBottleneck},
}
"""The classes by `ResNetSpec.preact` and `ResNetSpec.block`."""
