"""The convolutions of every block, shortcut and stem: channels, kernel sizes and strides."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

BlockKind = Literal["basic", "bottleneck"]
ShortcutKind = Literal[
    "identity", "centred_identity", "projection", "full_projection", "convolution"
]
PaddingKind = Literal["even", "same"]
BottleneckStride = Literal["3x3", "1x1"]
RunningVariance = Literal["unbiased", "biased"]

BOTTLENECK_EXPANSION = 4  # [1] table 1: 64 -> 256, 128 -> 512, ...


@dataclass(frozen=True)
class Conv:
    """One bias-free convolution; torch's even padding is `kernel_size // 2` on every side."""

    in_planes: int
    out_planes: int
    kernel_size: int
    stride: int = 1

    @property
    def padding(self) -> int:
        return self.kernel_size // 2

    @property
    def weight_count(self) -> int:
        return self.in_planes * self.out_planes * self.kernel_size**2


def basic_block(
    in_planes: int, planes: int, *, stride: int = 1, width: int = 1, drop_rate: float = 0.0
) -> tuple[Conv, Conv]:
    """Two 3x3 convolutions, both widened (He et al. 2015, figure 5 left; Zagoruyko 2016, table 1).

    Raises:
        ValueError: `drop_rate` is outside [0, 1].
    """
    check_probability("drop_rate", drop_rate)
    out_planes = planes * width
    return Conv(in_planes, out_planes, 3, stride), Conv(out_planes, out_planes, 3)


def bottleneck(
    in_planes: int, planes: int, *, stride: int = 1, width: int = 1, drop_rate: float = 0.0
) -> tuple[Conv, Conv, Conv]:
    """1x1, 3x3, 1x1 with the stride on the 3x3, "v1.5" (He et al. 2015, figure 5 right).

    The width multiplies the middle only (Zagoruyko 2016, section 3, WRN-50-2-bottleneck).

    Raises:
        ValueError: `drop_rate` is not 0; the papers define no dropout in a bottleneck.
    """
    if drop_rate != 0:
        raise ValueError(f"a bottleneck has no dropout: drop_rate must be 0, not {drop_rate}")
    mid_planes = planes * width
    return (
        Conv(in_planes, mid_planes, 1),
        Conv(mid_planes, mid_planes, 3, stride),
        Conv(mid_planes, planes * BOTTLENECK_EXPANSION, 1),
    )


def move_stride(conv1: Conv, conv2: Conv, conv3: Conv) -> tuple[Conv, Conv, Conv]:
    """A bottleneck with the stride on the first 1x1, "v1" (He et al. 2015, as published)."""
    return replace(conv1, stride=conv2.stride), replace(conv2, stride=conv1.stride), conv3


def stem_conv(in_planes: int, planes: int, *, small_images: bool) -> Conv:
    """The first convolution: 3x3 for small images, else 7x7 with stride 2 (a max pool follows)."""
    return Conv(in_planes, planes, 3) if small_images else Conv(in_planes, planes, 7, 2)


def same_padding(size: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """(before, after) of TensorFlow's SAME padding along one axis: an odd pixel goes to the end.

    It equals even padding where the stride is 1, or where the size is odd and the kernel 3; at even
    sizes it samples other pixels.
    """
    out_size = (size + stride - 1) // stride  # ONNX rounds a negative quotient towards zero
    total = max((out_size - 1) * stride + kernel_size - size, 0)
    return total // 2, total - total // 2


def check_identity_shortcut(in_planes: int, out_planes: int) -> None:
    """Option A appends zero channels, so it cannot drop any.

    Raises:
        ValueError: there are fewer output than input channels.
    """
    if out_planes < in_planes:
        raise ValueError(
            f"an identity shortcut cannot shrink {in_planes} channels to {out_planes}: "
            "use ProjectionShortcut, or stages whose channels do not decrease"
        )


def check_probability(name: str, value: float) -> None:
    """Raises a ValueError with the name of a value outside [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is a probability in [0, 1], not {value}")


def branch_drop_rates(stochastic_depth: float, num_blocks: int) -> tuple[float, ...]:
    """How often training drops the residual branch of each block of a network.

    Huang et al. 2016 (arXiv:1603.09382), section 3, the linear decay rule: the l-th of L blocks is
    dropped with probability l / L times that of the last, counted through all stages.

    Raises:
        ValueError: `stochastic_depth` is outside [0, 1].
    """
    check_probability("stochastic_depth", stochastic_depth)
    return tuple(stochastic_depth * number / num_blocks for number in range(1, num_blocks + 1))


PADDINGS: tuple[PaddingKind, ...] = get_args(PaddingKind)
BOTTLENECK_STRIDES: tuple[BottleneckStride, ...] = get_args(BottleneckStride)
RUNNING_VARIANCES: tuple[RunningVariance, ...] = get_args(RunningVariance)
BLOCKS: dict[BlockKind, Callable[..., tuple[Conv, ...]]] = {
    "basic": basic_block,
    "bottleneck": bottleneck,
}


def shortcut_conv(kind: ShortcutKind, in_planes: int, out_planes: int, stride: int) -> Conv | None:
    """The convolution of a shortcut, None where it has no weights (He et al. 2015, section 4.1).

    Raises:
        ValueError: an identity shortcut that would have to drop channels.
    """
    if kind in ("identity", "centred_identity"):
        check_identity_shortcut(in_planes, out_planes)
        return None
    if kind != "full_projection" and stride == 1 and in_planes == out_planes:
        return None
    return Conv(in_planes, out_planes, 3 if kind == "convolution" else 1, stride)


SHORTCUTS: dict[ShortcutKind, Callable[[int, int, int], Conv | None]] = {
    kind: functools.partial(shortcut_conv, kind) for kind in get_args(ShortcutKind)
}
