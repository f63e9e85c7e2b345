"""Hugging Face transformers' `ResNetForImageClassification`, v1.5 and v1."""

from collections.abc import Iterator

from convert.layouts.layout import Layout, walk
from convert.layouts.torchvision import IMAGENET_LIMITS
from resnet_spec import ResNetSpec


def names(spec: ResNetSpec) -> Iterator[tuple[str, str]]:
    """(our layer, transformers') for every layer."""
    return walk(
        spec,
        stem="resnet.embedder.embedder.convolution",
        stem_bn="resnet.embedder.embedder.normalization",
        block=lambda stage, index: f"resnet.encoder.stages.{stage}.layers.{index}",
        conv="layer.{}.convolution",
        bn="layer.{}.normalization",
        count_from=0,
        shortcut="shortcut.convolution",
        shortcut_bn="shortcut.normalization",
        head="classifier.1",
    )


LAYOUT = Layout(
    "transformers",
    "Hugging Face transformers: ResNet18/34/50/101/152, v1.5 (and v1 by its configuration)",
    names,
    limits={
        **IMAGENET_LIMITS,
        "preact": (False,),
        "width": (1,),
        "bottleneck_stride": ("3x3", "1x1"),  # its `downsample_in_bottleneck`
    },
)
