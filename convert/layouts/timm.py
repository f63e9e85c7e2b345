"""timm's `resnet*`, `wide_resnet*` and pre-activation `resnetv2_*`: layers and architectures."""

from collections.abc import Iterable, Iterator

from convert.layouts import torchvision
from convert.layouts.layout import Layout, Shapes, walk
from resnet_spec import ResNetSpec

ARCHITECTURES = {
    **{f"resnet{depth}": f"ResNet{depth}" for depth in (18, 34, 50, 101, 152, 200)},
    **{f"wide_resnet{depth}_2": f"WideResNet{depth}-2" for depth in (50, 101)},
    **{f"resnetv2_{depth}": f"PreActResNet{depth}" for depth in (18, 34, 50, 101, 152)},
}
"""timm's name -> ours, for every network that is the same."""

# How other networks differ, by a part of their names: the first that fits is reported.
_OTHERS = (
    ("resnext", "its 3x3 convolutions are grouped"),
    ("resnest", "its 3x3 convolutions are split, with attention over the parts"),
    ("seresnet", "squeeze-and-excitation in its blocks"),
    ("ecaresnet", "channel attention in its blocks"),
    ("resnetblur", "it blurs before it subsamples"),
    ("resnetaa", "average pooling before it subsamples"),
    ("resnetrs", "another stem, squeeze-and-excitation, average-pooled shortcuts"),
    ("_bit", "GroupNorm and standardised weights"),
    ("_gn", "GroupNorm"),
)
_VARIANTS = {
    "c": "a stem of three 3x3 convolutions",
    "d": "a stem of three 3x3 convolutions, and average-pooled shortcuts",
    "s": "a stem of three wide 3x3 convolutions",
    "t": "a stem of three 3x3 convolutions of growing width, and average-pooled shortcuts",
}


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
    """Networks that neither of timm's two families has."""
    if spec.preact and spec.width != 1:
        return [f"width={spec.width}: resnetv2's width_factor multiplies every layer's channels"]
    return torchvision.no_wide_basic_block(spec)


def signs(shapes: Shapes) -> Iterator[str]:
    """Signs of timm's many variants that are in none of the papers."""
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


def other_network(architecture: str) -> str | None:
    """How a network of timm's differs from those of the table, where its name says so."""
    architecture = plain_name(architecture).lower()
    if architecture in ARCHITECTURES or "resnet" not in architecture:
        return None
    why = next((text for part, text in _OTHERS if part in architecture), None)
    return why or (_VARIANTS.get(architecture[-1]) if architecture[:-1] in ARCHITECTURES else None)


def architecture_problems(architectures: Iterable[str]) -> list[str]:
    """A sentence for each architecture, as a training script names it, that is not one of ours."""
    return [
        f"another network: it says that it is of {architecture[:100]!r}: {why} (where that is not "
        "so, re-save its state dict alone)"
        for architecture in dict.fromkeys(architectures)
        if (why := other_network(architecture)) is not None
    ]


def plain_name(architecture: str) -> str:
    """An architecture without the tag of its weights, and without the prefixes of older names."""
    name = architecture.partition(".")[0]
    if name.startswith("gluon_"):
        return name.removeprefix("gluon_").removesuffix("_v1b")
    return name.removeprefix("tv_").removeprefix("ssl_").removeprefix("swsl_")
