"""jax-ml/bonsai's ResNet in Flax NNX: ResNet50 and 152, for inference."""

import dataclasses
from functools import partial

from convert.layouts.layout import NNX, Layout, walk
from convert.layouts.torchvision import IMAGENET_LIMITS

LAYOUT = Layout(
    "bonsai",
    "jax-ml/bonsai (NNX): ResNet50, 152 and other bottleneck networks",
    partial(
        walk,
        stem="stem.conv",
        stem_bn="stem.bn",
        block=lambda stage, index: f"layer{stage}.blocks.{index}",
        conv="conv{}",
        bn="bn{}",
        count_from=0,
        shortcut="downsample.conv",
        shortcut_bn="downsample.bn",
        head="fc",
    ),
    limits={**IMAGENET_LIMITS, "block": ("bottleneck",), "preact": (False,), "width": (1,)},
    adapt=lambda spec: dataclasses.replace(spec, running_variance="biased"),
    spelling=NNX,
)
