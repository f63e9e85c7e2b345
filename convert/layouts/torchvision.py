"""torchvision's ResNets: ResNet18/34/50/101/152 and the wide 50-2 and 101-2 (v1.5 as ours)."""

from collections.abc import Iterator

from convert.errors import ConversionError
from resnet_spec import ResNetSpec


def names(spec: ResNetSpec) -> Iterator[tuple[str, str]]:
    """(our layer, torchvision's) for every layer.

    Raises:
        ConversionError: torchvision has no such network; the differences are listed.
    """
    differences = [
        difference
        for has_it, difference in (
            (spec.preact, "pre-activation (its blocks are conv-BN-ReLU)"),
            (spec.small_images, "a stem for small images (its stem is 7x7, stride 2, max pool)"),
            (spec.shortcut != "projection", f"{spec.shortcut} shortcuts (it projects)"),
            (spec.drop_rate != 0, "dropout"),
            (spec.block == "basic" and spec.width != 1, "wide basic blocks"),
            (spec.stage_planes != (64, 128, 256, 512), f"stages of {spec.stage_planes} planes"),
        )
        if has_it
    ]
    if differences:
        raise ConversionError("the layout torchvision cannot express this model:", differences)
    yield "stem.conv", "conv1"
    yield "stem.bn", "bn1"
    for block in spec.blocks():
        theirs = f"layer{block.stage + 1}.{block.index}"
        for number in range(1, len(block.convs) + 1):
            yield f"{block.path}.conv{number}", f"{theirs}.conv{number}"
            yield f"{block.path}.bn{number}", f"{theirs}.bn{number}"
        if block.shortcut is not None:
            yield f"{block.path}.shortcut.conv", f"{theirs}.downsample.0"
            yield f"{block.path}.shortcut_bn", f"{theirs}.downsample.1"
    yield "head", "fc"
