"""akamaster/pytorch_resnet_cifar10 and the many CIFAR networks with the same names."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from convert.layouts.layout import Layout, walk
from resnet_spec import ResNetSpec


def names(spec: ResNetSpec) -> Iterator[tuple[str, str]]:
    """(our layer, theirs) for every layer; option A has no weights."""
    return walk(
        spec,
        stem="conv1",
        stem_bn="bn1",
        block=lambda stage, index: f"layer{stage + 1}.{index}",
        conv="conv{}",
        bn="bn{}",
        shortcut="shortcut.0",
        shortcut_bn="shortcut.1",
        head="linear",
    )


def whole_names(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
    """Tensors by the layout's names: kin have torchvision's, `downsample` and `fc`."""
    if any(".shortcut." in name or name.startswith("linear.") for name in tensors):
        return tensors
    return {_renamed(name): tensor for name, tensor in tensors.items()}


def _renamed(name: str) -> str:
    if name.startswith("fc."):
        return f"linear.{name.removeprefix('fc.')}"
    return name.replace(".downsample.", ".shortcut.")


def adapt(spec: ResNetSpec) -> ResNetSpec:
    """He's three-stage networks have option A there, with zeros on both sides; others option B."""
    if spec.stage_planes != (16, 32, 64):
        return spec
    return dataclasses.replace(spec, shortcut="centred_identity")


LAYOUT = Layout(
    "cifar",
    "akamaster/pytorch_resnet_cifar10 and kin: ResNet20 to 1202 with option A, ResNet18-small ...",
    names,
    limits={
        "preact": (False,),
        "small_images": (True,),
        "width": (1,),
        "drop_rate": (0.0,),
        "shortcut": ("centred_identity", "projection"),
        "padding": ("even",),
        "stem_padding": ("even",),
        "bottleneck_stride": ("3x3",),
    },
    adapt=adapt,
    whole_names=whole_names,
)
