"""torchvision's ResNets: ResNet18/34/50/101/152 and the wide 50-2 and 101-2 (v1.5 as ours)."""

from functools import partial
from typing import Any

from convert.layouts.layout import TORCHS_DIALECT, Layout, walk
from resnet_spec import ResNetSpec

# What nearly all packages' networks for ImageNet have in common.
IMAGENET_LIMITS: dict[str, Any] = {
    "small_images": (False,),
    "stage_planes": ((64, 128, 256, 512),),
    "stem_planes": (64,),
    "shortcut": ("projection",),
    "drop_rate": (0.0,),
    **TORCHS_DIALECT,
}
names = partial(
    walk,
    stem="conv1",
    stem_bn="bn1",
    block=lambda stage, index: f"layer{stage + 1}.{index}",
    conv="conv{}",
    bn="bn{}",
    shortcut="downsample.0",
    shortcut_bn="downsample.1",
    head="fc",
)


def _differences(spec: ResNetSpec) -> list[str]:
    is_kin = spec.small_images and not spec.preact and spec.width == 1
    advice = ["a file with a small stem under these names is imported by --layout cifar"]
    return [*no_wide_basic_block(spec), *(advice if is_kin else [])]


def no_wide_basic_block(spec: ResNetSpec) -> list[str]:
    """Only bottlenecks are wide in these packages."""
    is_wide = spec.block == "basic" and spec.width != 1
    return [f"width={spec.width}: basic blocks are not wide there"] if is_wide else []


LAYOUT = Layout(
    "torchvision",
    "torchvision: ResNet18/34/50/101/152, WideResNet50-2, 101-2",
    names,
    limits={"preact": (False,), **IMAGENET_LIMITS},
    differences=_differences,
)
