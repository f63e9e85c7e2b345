"""Residual networks with post-activation: He et al. 2015, and the Wide ones of [3]."""

from collections.abc import Callable
from typing import Any, Unpack

from resnet_spec import BlockKind, Dimensions, ResNetSpec
from resnet_spec.arguments import SpecOptions, check_keywords
from torch_resnet.blocks import BasicBlock
from torch_resnet.network import KEYWORDS, Named, ResidualNetwork, named

_ROW = ResNetSpec("basic", (1,), (1,), 1)  # all but its dimensions


class ResNet(ResidualNetwork):
    __doc__ = f"Conv-BN-ReLU networks (He et al. 2015). {ResidualNetwork.__doc__}"

    def __init__(
        self,
        dimensions: Dimensions,
        block: Callable[..., Any] | BlockKind = BasicBlock,
        **options: Unpack[SpecOptions],
    ):
        check_keywords(type(self).__name__, options, KEYWORDS)
        super().__init__(_ROW, dimensions=dimensions, block=block, **options)


class NamedResNet(Named, ResNet):
    """A `ResNet` whose dimensions and block are a row of the table."""


ResNet18 = named("ResNet18", NamedResNet)
ResNet34 = named("ResNet34", NamedResNet)
ResNet50 = named("ResNet50", NamedResNet)
ResNet101 = named("ResNet101", NamedResNet)
ResNet152 = named("ResNet152", NamedResNet)
ResNet200 = named("ResNet200", NamedResNet)
ResNet20 = named("ResNet20", NamedResNet)
ResNet32 = named("ResNet32", NamedResNet)
ResNet44 = named("ResNet44", NamedResNet)
ResNet56 = named("ResNet56", NamedResNet)
ResNet110 = named("ResNet110", NamedResNet)
ResNet164 = named("ResNet164", NamedResNet)
ResNet1001 = named("ResNet1001", NamedResNet)
ResNet1202 = named("ResNet1202", NamedResNet)
WideResNet16 = named("WideResNet16", NamedResNet)
WideResNet28 = named("WideResNet28", NamedResNet)
WideResNet40 = named("WideResNet40", NamedResNet)
