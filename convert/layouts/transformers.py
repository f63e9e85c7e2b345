"""Hugging Face transformers' `ResNetForImageClassification`, v1.5 and v1."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from convert.layouts.layout import Layout, walk
from convert.layouts.torchvision import IMAGENET_LIMITS


def whole_names(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
    """Tensors by the layout's names: those of a `ResNetModel` lack the first, `resnet.`."""
    is_inner = any(name.startswith("embedder.") for name in tensors)
    return {f"resnet.{name}": tensor for name, tensor in tensors.items()} if is_inner else tensors


LAYOUT = Layout(
    "transformers",
    "Hugging Face transformers: ResNet18/34/50/101/152, v1.5 (and v1 by its configuration)",
    partial(
        walk,
        stem="resnet.embedder.embedder.convolution",
        stem_bn="resnet.embedder.embedder.normalization",
        block=lambda stage, index: f"resnet.encoder.stages.{stage}.layers.{index}",
        conv="layer.{}.convolution",
        bn="layer.{}.normalization",
        count_from=0,
        shortcut="shortcut.convolution",
        shortcut_bn="shortcut.normalization",
        head="classifier.1",
    ),
    limits={
        **IMAGENET_LIMITS,
        "preact": (False,),
        "width": (1,),
        "bottleneck_stride": ("3x3", "1x1"),  # its `downsample_in_bottleneck`
    },
    whole_names=whole_names,
)
