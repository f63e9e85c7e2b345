"""Residual networks with pre-activation: He et al. 2016, and the Wide ones of [3]."""

from collections.abc import Callable
from typing import Any, Unpack

from flax_resnet.blocks import PreActBlock, PreActBottleneck
from flax_resnet.named import Named, named
from flax_resnet.network import Options, ResidualNetwork
from resnet_spec import BlockKind, Dimensions


class PreActResNet(ResidualNetwork):
    __doc__ = f"BN-ReLU-conv networks (He et al. 2016). {ResidualNetwork.__doc__}"
    preact = True
    block_kinds = {PreActBlock: "basic", PreActBottleneck: "bottleneck"}

    def __init__(
        self,
        dimensions: Dimensions,
        block: Callable[..., Any] | BlockKind = PreActBlock,
        **options: Unpack[Options],
    ):
        super().__init__(dimensions, block, **options)


class NamedPreActResNet(Named, PreActResNet):
    """A `PreActResNet` whose dimensions and block are a row of the table."""


PreActResNet18 = named("PreActResNet18", NamedPreActResNet)
PreActResNet34 = named("PreActResNet34", NamedPreActResNet)
PreActResNet50 = named("PreActResNet50", NamedPreActResNet)
PreActResNet101 = named("PreActResNet101", NamedPreActResNet)
PreActResNet152 = named("PreActResNet152", NamedPreActResNet)
PreActResNet200 = named("PreActResNet200", NamedPreActResNet)
PreActResNet20 = named("PreActResNet20", NamedPreActResNet)
PreActResNet32 = named("PreActResNet32", NamedPreActResNet)
PreActResNet44 = named("PreActResNet44", NamedPreActResNet)
PreActResNet56 = named("PreActResNet56", NamedPreActResNet)
PreActResNet110 = named("PreActResNet110", NamedPreActResNet)
PreActResNet164 = named("PreActResNet164", NamedPreActResNet)
PreActResNet1001 = named("PreActResNet1001", NamedPreActResNet)
PreActResNet1202 = named("PreActResNet1202", NamedPreActResNet)
PreActWideResNet16 = named("PreActWideResNet16", NamedPreActResNet)
PreActWideResNet28 = named("PreActWideResNet28", NamedPreActResNet)
PreActWideResNet40 = named("PreActWideResNet40", NamedPreActResNet)
