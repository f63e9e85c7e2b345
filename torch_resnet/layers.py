"""How one layer of the table is spelled in torch."""

from jaxtyping import Float
from torch import Tensor, nn

from resnet_spec import Conv


def conv(spec: Conv) -> nn.Conv2d:
    """(n, in_planes, h, w) -> (n, out_planes, h2, w2); `init_new` draws its weights."""
    return nn.Conv2d(
        spec.in_planes,
        spec.out_planes,
        spec.kernel_size,
        stride=spec.stride,
        padding=spec.padding,
        bias=False,
    )


def batch_norm(planes: int) -> nn.BatchNorm2d:
    """(n, planes, h, w) -> same; eps 1e-5, momentum 0.1."""
    return nn.BatchNorm2d(planes)


def linear(in_features: int, out_features: int) -> nn.Linear:
    """(n, in_features) -> (n, out_features): the head that `create` sets."""
    return nn.Linear(in_features, out_features)


class AveragePool(nn.Module):
    """The mean over height and width."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c"]:
        return x.mean(dim=(2, 3))
