"""The variables of Flax's own linen ImageNet example: ResNet18 to 200."""

import dataclasses
import itertools
from collections.abc import Iterator

from convert.layouts.layout import LINEN, Layout, walk
from convert.layouts.torchvision import IMAGENET_LIMITS
from resnet_spec import ResNetSpec


def names(spec: ResNetSpec) -> Iterator[tuple[str, str]]:
    """(our layer, the example's) for every layer; linen counts the blocks through all stages."""
    kind = {"basic": "ResNetBlock", "bottleneck": "BottleneckResNetBlock"}[spec.block]
    first = list(itertools.accumulate(spec.stage_depths, initial=0))
    return walk(
        spec,
        stem="conv_init",
        stem_bn="bn_init",
        block=lambda stage, index: f"{kind}_{first[stage] + index}",
        conv="Conv_{}",
        bn="BatchNorm_{}",
        count_from=0,
        separator="/",
        shortcut="conv_proj",
        shortcut_bn="norm_proj",
        head="Dense_0",
    )


def adapt(spec: ResNetSpec) -> ResNetSpec:
    """Its strided convolutions and max pool pad unevenly (the stem's convolution does not)."""
    return dataclasses.replace(spec, padding="same", running_variance="biased")


LAYOUT = Layout(
    "flax-imagenet",
    "Flax's linen ImageNet example: ResNet18 to 200, SAME padding, biased statistics",
    names,
    limits={
        **IMAGENET_LIMITS,
        "preact": (False,),
        "width": (1,),
        "padding": ("same",),
        "stem_padding": ("even", "same"),  # even since 2021, same before
    },
    adapt=adapt,
    spelling=LINEN,
)
