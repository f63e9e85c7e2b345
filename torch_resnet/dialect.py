"""What other packages compute otherwise in a network of the same name, weight for weight.

A network is built as torch does it; its layers are then replaced by ones that hold the same
tensors under the same names.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from resnet_spec import ResNetSpec, same_padding


class SameConv2d(nn.Conv2d):
    """A strided convolution with TensorFlow's SAME padding: an odd pixel goes behind."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            stride=conv.stride,  # type: ignore[arg-type]
            bias=False,
            device="meta",  # no initial values: the weight is the other's
        )
        self.weight = conv.weight

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        return super().forward(_pad_same(input, self.kernel_size[0], self.stride[0], value=0.0))


class SameMaxPool2d(nn.MaxPool2d):
    """A max pool with TensorFlow's SAME padding."""

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
        kernel_size, stride = self.kernel_size, self.stride
        assert isinstance(kernel_size, int)
        assert isinstance(stride, int)
        padded = _pad_same(input, kernel_size, stride, value=float("-inf"))
        return functional.max_pool2d(padded, kernel_size, stride)


class BiasedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that adds the batch's biased variance to the running one, as Flax.

    `nn.SyncBatchNorm.convert_sync_batchnorm` would make torch's usual one of it.
    """

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        if not self.training:
            return super().forward(input)
        assert self.running_var is not None
        assert self.momentum is not None
        before = self.running_var.clone()
        output = super().forward(input)
        biased = input.detach().var((0, 2, 3), correction=0).to(before.dtype)
        self.running_var.copy_(before.lerp(biased, self.momentum))
        return output


def speak(model: Any, spec: ResNetSpec) -> None:
    """Gives a network as torch builds it the dialect of `spec`, in place."""
    if spec.stem_padding == "same":
        _pad_convolutions(model.stem)
    if spec.padding == "same":
        _pad_convolutions(model.stages)
        if isinstance(model.stem.pool, nn.MaxPool2d):
            model.stem.pool = SameMaxPool2d(3, stride=2)
    if spec.bottleneck_stride == "1x1":
        for block in (block for stage in model.stages for block in stage):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    if spec.running_variance == "biased":
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.BatchNorm2d):
                biased = BiasedBatchNorm2d(module.num_features)
                model.set_submodule(name, biased)


def _pad_convolutions(part: nn.Module) -> None:
    for name, module in list(part.named_modules()):
        if (
            isinstance(module, nn.Conv2d)
            and module.kernel_size != (1, 1)
            and module.stride != (1, 1)
        ):
            part.set_submodule(name, SameConv2d(module))


def _pad_same(x: Tensor, kernel_size: int, stride: int, *, value: float) -> Tensor:
    top, bottom = same_padding(x.shape[-2], kernel_size, stride)
    left, right = same_padding(x.shape[-1], kernel_size, stride)
    return functional.pad(x, (left, right, top, bottom), value=value)
