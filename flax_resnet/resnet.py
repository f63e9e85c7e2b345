"""Residual networks with post-activation: He et al. 2015, and the Wide ones of [3]."""

from collections.abc import Callable
from typing import Any, Unpack

from flax_resnet.blocks import BasicBlock, Bottleneck
from flax_resnet.network import Options, ResidualNetwork, named
from resnet_spec import Dimensions


class ResNet(ResidualNetwork):
    __doc__ = f"Conv-BN-ReLU networks (He et al. 2015). {ResidualNetwork.__doc__}"
    preact = False
    block_kinds = {BasicBlock: "basic", Bottleneck: "bottleneck"}

    def __init__(
        self,
        dimensions: Dimensions,
        block: Callable[..., Any] = BasicBlock,
        **options: Unpack[Options],
    ):
        super().__init__(dimensions, block, **options)


ResNet18 = named("ResNet18", ResNet)
ResNet34 = named("ResNet34", ResNet)
ResNet50 = named("ResNet50", ResNet)
ResNet101 = named("ResNet101", ResNet)
ResNet152 = named("ResNet152", ResNet)
ResNet200 = named("ResNet200", ResNet)
ResNet20 = named("ResNet20", ResNet)
ResNet32 = named("ResNet32", ResNet)
ResNet44 = named("ResNet44", ResNet)
ResNet56 = named("ResNet56", ResNet)
ResNet110 = named("ResNet110", ResNet)
ResNet164 = named("ResNet164", ResNet)
ResNet1001 = named("ResNet1001", ResNet)
ResNet1202 = named("ResNet1202", ResNet)
WideResNet16 = named("WideResNet16", ResNet)
WideResNet28 = named("WideResNet28", ResNet)
WideResNet40 = named("WideResNet40", ResNet)
