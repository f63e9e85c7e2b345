"""timm's `resnet*`, `wide_resnet*` and its pre-activation `resnetv2_*` with BatchNorm."""

from collections.abc import Iterator

from convert.layouts import torchvision
from convert.layouts.layout import Layout, Shapes, walk
from resnet_spec import ResNetSpec


def names(spec: ResNetSpec) -> Iterator[tuple[str, str]]:
    """(our layer, timm's) for every layer: torchvision's, or `resnetv2`'s with pre-activation."""
    if not spec.preact:
        return torchvision.names(spec)
    return walk(
        spec,
        stem="stem.conv",
        block=lambda stage, index: f"stages.{stage}.blocks.{index}",
        conv="conv{}",
        bn="norm{}",
        shortcut="downsample.conv",
        norm="norm",
        head="head.fc",
    )


def differences(spec: ResNetSpec) -> list[str]:
    """What timm's two families cannot be told."""
    if spec.preact and spec.width != 1:
        return [f"width={spec.width}: resnetv2's width_factor multiplies every layer's channels"]
    return torchvision.no_wide_basic_block(spec)


def signs(shapes: Shapes) -> Iterator[str]:
    """Which of timm's many variants, none of the papers', a file holds."""
    is_v2 = any(name.startswith("stem.") for name in shapes)
    norms = ("norm.", ".norm1.") if is_v2 else ("bn1.", ".bn1.")
    if "conv1.0.weight" in shapes or "stem.conv1.weight" in shapes:
        yield "stem: three 3x3 convolutions (timm's c, d, s and t variants), here one 7x7"
    if any(name.endswith("downsample.2.weight") or ".downsample.norm" in name for name in shapes):
        yield "shortcut: average pooling or a normalisation of its own (d and t variants)"
    has_norms = any(name.endswith(f"{norms[1]}weight") for name in shapes)
    if has_norms and not any("running_mean" in name for name in shapes):
        yield "normalisation: GroupNorm or another without statistics, here BatchNorm"
    if any(".se." in name or ".attn" in name for name in shapes):
        yield "attention in the blocks, as squeeze-and-excitation"
    name = "stages.0.blocks.0.conv2.weight" if is_v2 else "layer1.0.conv2.weight"
    if len(shape := shapes.get(name, ())) == 4 and shape[0] != shape[1] and shape[2] == 3:
        yield f"grouped convolutions (ResNeXt): {name} is {shape}"


LAYOUT = Layout(
    "timm",
    "timm: resnet18 to 200, wide_resnet50_2, 101_2; resnetv2_18 to 152 (BatchNorm)",
    names,
    limits=torchvision.IMAGENET_LIMITS,
    differences=differences,
    has_conv_head=lambda spec: spec.preact,
    signs=signs,
)
