"""akamaster/pytorch_resnet_cifar10 and the many CIFAR networks with the same names."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from convert.layouts.layout import TORCHS_DIALECT, Layout, Shapes, walk
from resnet_spec import ResNetSpec


def whole_names(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
    """Tensors by the layout's names: related code has torchvision's, `downsample` and `fc`."""
    if not any(".shortcut." in name for name in tensors):
        tensors = {n.replace(".downsample.", ".shortcut."): t for n, t in tensors.items()}
    if not any(name.startswith("linear.") for name in tensors):
        tensors = {re.sub(r"^fc\.", "linear.", name): t for name, t in tensors.items()}
    return tensors


def adapt(spec: ResNetSpec) -> ResNetSpec:
    """He's three-stage networks have option A there, with zeros on both sides; others option B."""
    if spec.stage_planes != (16, 32, 64):
        return spec
    return dataclasses.replace(spec, shortcut="centred_identity")


def raw_shortcuts(shapes: Shapes) -> Iterator[str]:
    """bearpaw/pytorch-classification's preresnet, which computes something else."""
    names = {f"{path}.weight" for path in ("conv1", "bn", "fc", "layer1.0.bn1")}
    has_shortcut = "layer2.0.downsample.0.weight" in shapes and (
        "layer2.0.downsample.1.weight" not in shapes
    )
    if has_shortcut and names <= {*shapes} and shapes["conv1.weight"][2:] == (3, 3):
        yield (
            "these are names of bearpaw/pytorch-classification's preresnet: there a shortcut takes "
            "the input of its block; here it begins behind the first BatchNorm and ReLU"
        )


LAYOUT = Layout(
    "cifar",
    "akamaster/pytorch_resnet_cifar10 and kin: ResNet20 to 1202 with option A, ResNet18-small ...",
    partial(  # option A has no weights
        walk,
        stem="conv1",
        stem_bn="bn1",
        block=lambda stage, index: f"layer{stage + 1}.{index}",
        conv="conv{}",
        bn="bn{}",
        shortcut="shortcut.0",
        shortcut_bn="shortcut.1",
        head="linear",
    ),
    limits={
        "preact": (False,),
        "small_images": (True,),
        "width": (1,),
        "drop_rate": (0.0,),
        "shortcut": ("centred_identity", "projection"),
        **TORCHS_DIALECT,
    },
    adapt=adapt,
    whole_names=whole_names,
)
