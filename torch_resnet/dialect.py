"""What other packages compute differently in networks of the same name and weights.

A network is built as torch builds it; its layers are then replaced by ones that hold the same
tensors under the same names.
"""

from typing import Any

import torch.fx
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from resnet_spec import ResNetSpec, same_padding


@torch.fx.wrap  # sizes are known when it runs, not when it is traced
def pad_same(x: Tensor, kernel_size: int, stride: int, *, value: float) -> Tensor:
    """(n, c, h, w) -> (n, c, h2, w2), padded with `value` as TensorFlow's SAME does."""
    top, bottom = same_padding(x.shape[-2], kernel_size, stride)
    left, right = same_padding(x.shape[-1], kernel_size, stride)
    return functional.pad(x, (left, right, top, bottom), value=value)


class SameConv2d(nn.Conv2d):
    """A strided convolution with TensorFlow's SAME padding: an odd pixel goes to the end."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            stride=conv.stride,  # type: ignore[arg-type]
            bias=False,
            device="meta",  # no initial values: the weight is that of `conv`
        )
        self.weight = conv.weight

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        return super().forward(pad_same(input, self.kernel_size[0], self.stride[0], value=0.0))


class SameMaxPool2d(nn.MaxPool2d):
    """A max pool with TensorFlow's SAME padding."""

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
        kernel_size, stride = self.kernel_size, self.stride
        assert isinstance(kernel_size, int)
        assert isinstance(stride, int)
        padded = pad_same(input, kernel_size, stride, value=float("-inf"))
        return functional.max_pool2d(padded, kernel_size, stride)


@torch.fx.wrap  # statistics change when it runs, not when it is traced
def batch_norm_biased(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    batches: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float | None,
    eps: float,
) -> Tensor:
    """(n, c, h, w) -> same, normalised by the batch's statistics, which move the running ones.

    A momentum of None makes them the average of all batches, as in `nn.BatchNorm2d`.
    """
    if batches is not None:
        batches.add_(1)
    share = momentum
    if share is None:
        share = 0.0 if batches is None else 1.0 / float(batches)
    # torch adds the unbiased variance, in float32 whatever the input's precision. It keeps the
    # tensors that it adds to for the backward pass, so they must not change afterwards.
    new_mean, new_var = mean.clone(), var.clone()
    output = functional.batch_norm(x, new_mean, new_var, weight, bias, True, share, eps)
    count = x.numel() // x.shape[1]
    kept = var * (1 - share)
    mean.copy_(new_mean)
    var.copy_(kept + (new_var - kept) * ((count - 1) / count))
    return output


class BiasedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that adds the batch's biased variance to the running one, as Flax does.

    `nn.SyncBatchNorm.convert_sync_batchnorm` replaces it by one with torch's variance: the network
    is then that of `dataclasses.replace(model.spec, running_variance="unbiased")`.
    """

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        mean, var = self.running_mean, self.running_var
        if mean is None or var is None or not (self.training and self.track_running_stats):
            return super().forward(input)
        self._check_input_dim(input)
        state = (mean, var, self.num_batches_tracked, self.weight, self.bias)
        return batch_norm_biased(input, *state, self.momentum, self.eps)

    def _check_input_dim(self, input: Tensor) -> None:
        if not isinstance(input, torch.fx.Proxy):  # whose axes are unknown
            super()._check_input_dim(input)


def apply_dialect(model: Any, spec: ResNetSpec) -> None:
    """Makes a network as torch builds it compute as `spec` says, in place."""
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
