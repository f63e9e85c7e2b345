"""Networks of other codebases that no registry has, written from their published structure.

`CifarResNet`: akamaster/pytorch_resnet_cifar10, option A or B. `BonsaiResNet`:
jax-ml/bonsai. `WideResNet`: szagoruyko/wide-residual-networks. Names, padding and strides are
theirs. Flax's ImageNet example is a benchmark, too: `benchmarks.peers.linen_resnet`.
"""

from typing import Any

import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn
from torch.nn import functional


class _CifarBlock(nn.Module):
    last_layer = "bn2"

    def __init__(self, in_planes: int, planes: int, stride: int, option: str):
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.is_padded = stride != 1 and option == "A"
        self.shortcut = nn.Sequential()
        if (stride != 1 or in_planes != planes) and option == "B":
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_planes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.is_padded:
            quarter = y.shape[1] // 4
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter))
        return (y + self.shortcut(x)).relu()


class CifarResNet(nn.Module):
    """`depths` blocks in stages of 16, 32 and 64 planes, or of 64 to 512 for four stages."""

    def __init__(self, depths: tuple[int, ...], option: str = "A", num_classes: int = 10):
        super().__init__()
        planes = 16 if len(depths) == 3 else 64
        self.conv1 = nn.Conv2d(3, planes, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        in_planes = planes
        for stage, depth in enumerate(depths):
            blocks = nn.Sequential()
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(_CifarBlock(in_planes, planes * 2**stage, stride, option))
                in_planes = planes * 2**stage
            self.add_module(f"layer{stage + 1}", blocks)
        self.linear = nn.Linear(in_planes, num_classes)
        self.num_stages = len(depths)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        for stage in range(self.num_stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.linear(functional.avg_pool2d(x, x.shape[-1]).flatten(1))


class _BonsaiBlock(nnx.Module):
    def __init__(self, in_planes: int, planes: int, stride: int, rngs: nnx.Rngs):
        out_planes = 4 * planes
        self.conv0, self.bn0 = _bonsai_conv(in_planes, planes, 1, 1, rngs)
        self.conv1, self.bn1 = _bonsai_conv(planes, planes, 3, stride, rngs)
        self.conv2, self.bn2 = _bonsai_conv(planes, out_planes, 1, 1, rngs)
        has_downsample = stride != 1 or in_planes != out_planes
        self.downsample = (
            _BonsaiLayer(in_planes, out_planes, stride, rngs) if has_downsample else None
        )

    def __call__(self, x: Any) -> Any:
        y = nnx.relu(self.bn0(self.conv0(x)))
        y = self.bn2(self.conv2(nnx.relu(self.bn1(self.conv1(y)))))
        return nnx.relu(y + (x if self.downsample is None else self.downsample(x)))


class _BonsaiLayer(nnx.Module):
    def __init__(self, in_planes: int, out_planes: int, stride: int, rngs: nnx.Rngs, size: int = 1):
        self.conv, self.bn = _bonsai_conv(in_planes, out_planes, size, stride, rngs)

    def __call__(self, x: Any) -> Any:
        return self.bn(self.conv(x))


class _BonsaiStage(nnx.Module):
    def __init__(self, in_planes: int, planes: int, depth: int, stride: int, rngs: nnx.Rngs):
        first = _BonsaiBlock(in_planes, planes, stride, rngs)
        others = [_BonsaiBlock(4 * planes, planes, 1, rngs) for _ in range(depth - 1)]
        self.blocks = nnx.List([first, *others])


class BonsaiResNet(nnx.Module):
    """Bottlenecks with torch's padding; normalises by its running statistics only."""

    def __init__(self, depths: tuple[int, ...], num_classes: int = 1000):
        rngs = nnx.Rngs(0)
        self.stem = _BonsaiLayer(3, 64, 2, rngs, size=7)
        in_planes = 64
        for stage, depth in enumerate(depths):
            planes = 64 * 2**stage
            built = _BonsaiStage(in_planes, planes, depth, 1 if stage == 0 else 2, rngs)
            setattr(self, f"layer{stage}", built)
            in_planes = 4 * planes
        self.fc = nnx.Linear(in_planes, num_classes, rngs=rngs)
        self.num_stages = len(depths)

    def __call__(self, x: Any) -> Any:
        x = nnx.relu(self.stem(x))
        edges: Any = ((1, 1), (1, 1))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=edges)
        for stage in range(self.num_stages):
            for block in getattr(self, f"layer{stage}").blocks:
                x = block(x)
        return self.fc(jnp.mean(x, (1, 2)))


def _bonsai_conv(
    in_planes: int, out_planes: int, size: int, stride: int, rngs: nnx.Rngs
) -> tuple[nnx.Conv, nnx.BatchNorm]:
    conv = nnx.Conv(
        in_planes, out_planes, (size, size), stride, padding=size // 2, use_bias=False, rngs=rngs
    )
    return conv, nnx.BatchNorm(out_planes, use_running_average=True, rngs=rngs)


class WideResNet:
    """`depth` blocks in each of three groups of `width` times 16, 32, 64 planes: only tensors."""

    def __init__(self, depth: int, width: int, num_classes: int = 10):
        generator = torch.Generator().manual_seed(0)

        def draw(low: float, high: float, *shape: int) -> torch.Tensor:
            return low + (high - low) * torch.rand(shape, generator=generator)

        def kernel(out: int, *others: int) -> torch.Tensor:
            bound = (3 / torch.Size(others).numel()) ** 0.5
            return draw(-bound, bound, out, *others)

        def norm(name: str, planes: int) -> dict[str, torch.Tensor]:
            ranges = {"weight": (0.5, 1.5), "bias": (-0.5, 0.5)}
            ranges |= {"running_mean": (-0.5, 0.5), "running_var": (0.5, 1.5)}
            return {f"{name}.{leaf}": draw(*ends, planes) for leaf, ends in ranges.items()}

        self.depth, self.tensors, before = depth, {"conv0": kernel(16, 3, 3, 3)}, 16
        for group in range(3):
            planes = 16 * width * 2**group
            for index in range(depth):
                block = f"group{group}.block{index}"
                self.tensors[f"{block}.conv0"] = kernel(planes, before, 3, 3)
                self.tensors[f"{block}.conv1"] = kernel(planes, planes, 3, 3)
                self.tensors |= norm(f"{block}.bn0", before) | norm(f"{block}.bn1", planes)
                if before != planes:
                    self.tensors[f"{block}.convdim"] = kernel(planes, before, 1, 1)
                before = planes
        self.tensors |= norm("bn", before)
        self.tensors |= {"fc.weight": kernel(num_classes, before), "fc.bias": draw(-1, 1, 10)}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        tensors = self.tensors

        def activate(x: torch.Tensor, name: str) -> torch.Tensor:
            leaves = ("running_mean", "running_var", "weight", "bias")
            mean, variance, weight, bias = (tensors[f"{name}.{leaf}"] for leaf in leaves)
            return functional.batch_norm(x, mean, variance, weight, bias).relu()

        x = functional.conv2d(x, tensors["conv0"], padding=1)
        for group in range(3):
            for index in range(self.depth):
                block, stride = f"group{group}.block{index}", 2 if group > 0 and index == 0 else 1
                first = activate(x, f"{block}.bn0")
                y = functional.conv2d(first, tensors[f"{block}.conv0"], None, stride, 1)
                y = functional.conv2d(
                    activate(y, f"{block}.bn1"), tensors[f"{block}.conv1"], padding=1
                )
                if f"{block}.convdim" in tensors:
                    x = functional.conv2d(first, tensors[f"{block}.convdim"], None, stride)
                x = y + x
        features = activate(x, "bn").mean((2, 3))
        return functional.linear(features, tensors["fc.weight"], tensors["fc.bias"])
