"""What other packages compute differently in networks of the same name and weights.

A network is built as torch builds it; its layers are then changed.
"""

from typing import Any

from flax import nnx

from flax_resnet.layers import BatchNorm
from resnet_spec import ResNetSpec


def apply_dialect(model: Any, spec: ResNetSpec) -> None:
    """Makes a network as torch builds it compute as `spec` says, in place."""
    if spec.stem_padding == "same":
        _pad_convolutions(model.stem)
    if spec.padding == "same":
        _pad_convolutions(model.stages)
        model.stem.pool_padding = "SAME"
    if spec.bottleneck_stride == "1x1":
        for block in (block for stage in model.stages for block in stage):
            block.conv1.strides, block.conv2.strides = block.conv2.strides, block.conv1.strides
    if spec.running_variance == "biased":
        model.set_attributes(BatchNorm, running_variance="biased")


def _pad_convolutions(part: nnx.Module) -> None:
    for _, module in nnx.iter_modules(part):
        if isinstance(module, nnx.Conv):
            module.padding = "SAME"
