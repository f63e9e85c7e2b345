"""What a network costs, counted from its row."""

from collections.abc import Iterator

from resnet_spec.blocks import Conv
from resnet_spec.spec import ResNetSpec


def count_multiplications(spec: ResNetSpec, image_size: int, num_classes: int = 0) -> int:
    """Multiply-adds of the forward pass of one square image, convolutions and linear head.

    The papers call them FLOPs (He et al. 2015, table 1): ResNet18 has 1.8e9 at 224 pixels.
    """
    convolutions = sum(conv.weight_count * size**2 for conv, size in _sizes(spec, image_size))
    return convolutions + spec.out_planes * num_classes


def _sizes(spec: ResNetSpec, image_size: int) -> Iterator[tuple[Conv, int]]:
    """Every convolution with the height of its output; a stride rounds up."""
    size = -(-image_size // spec.stem_conv.stride)
    yield spec.stem_conv, size
    if not spec.small_images:  # the max pool
        size = -(-size // 2)
    for block in spec.blocks():
        for conv in block.convs:
            size = -(-size // conv.stride)
            yield conv, size
        if block.shortcut is not None:
            yield block.shortcut, size
