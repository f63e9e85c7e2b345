"""Residual networks with pre-activation: He et al. 2016, and the Wide ones of [3]."""

from collections.abc import Callable
from typing import Any, Unpack

from flax_resnet.blocks import PreActBlock, PreActBottleneck
from flax_resnet.network import Options, ResidualNetwork, named
from resnet_spec import Dimensions


class PreActResNet(ResidualNetwork):
    __doc__ = f"BN-ReLU-conv networks (He et al. 2016). {ResidualNetwork.__doc__}"
    preact = True
    block_kinds = {PreActBlock: "basic", PreActBottleneck: "bottleneck"}

    def __init__(
        self,
        dimensions: Dimensions,
        block: Callable[..., Any] = PreActBlock,
        **options: Unpack[Options],
    ):
        super().__init__(dimensions, block, **options)


PreActResNet18 = named("PreActResNet18", PreActResNet)
PreActResNet34 = named("PreActResNet34", PreActResNet)
PreActResNet50 = named("PreActResNet50", PreActResNet)
PreActResNet101 = named("PreActResNet101", PreActResNet)
PreActResNet152 = named("PreActResNet152", PreActResNet)
PreActResNet200 = named("PreActResNet200", PreActResNet)
PreActResNet20 = named("PreActResNet20", PreActResNet)
PreActResNet32 = named("PreActResNet32", PreActResNet)
PreActResNet44 = named("PreActResNet44", PreActResNet)
PreActResNet56 = named("PreActResNet56", PreActResNet)
PreActResNet110 = named("PreActResNet110", PreActResNet)
PreActResNet164 = named("PreActResNet164", PreActResNet)
PreActResNet1001 = named("PreActResNet1001", PreActResNet)
PreActResNet1202 = named("PreActResNet1202", PreActResNet)
PreActWideResNet16 = named("PreActWideResNet16", PreActResNet)
PreActWideResNet28 = named("PreActWideResNet28", PreActResNet)
PreActWideResNet40 = named("PreActWideResNet40", PreActResNet)
