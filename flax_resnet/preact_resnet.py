"""Residual networks with pre-activation: He et al. 2016, and the Wide ones of [3]."""

from collections.abc import Callable
from typing import Any, Unpack

from flax_resnet.blocks import PreActBlock
from flax_resnet.network import KEYWORDS, Named, Options, ResidualNetwork, named
from resnet_spec import BlockKind, Dimensions, ResNetSpec
from resnet_spec.arguments import check_keywords

_ROW = ResNetSpec("basic", (1,), (1,), 1, preact=True)  # all but its dimensions


class PreActResNet(ResidualNetwork):
    __doc__ = f"BN-ReLU-conv networks (He et al. 2016). {ResidualNetwork.__doc__}"

    def __init__(
        self,
        dimensions: Dimensions,
        block: Callable[..., Any] | BlockKind = PreActBlock,
        **options: Unpack[Options],
    ):
        check_keywords(type(self).__name__, options, KEYWORDS)
        super().__init__(_ROW, dimensions=dimensions, block=block, **options)


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
