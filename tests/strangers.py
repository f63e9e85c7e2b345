"""Residual networks as strangers write them: every style of code, small, and some that are none."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from flax import linen, nnx
from torch import Tensor, nn
from torch.nn import functional


def _zeros_behind(x: Tensor, stride: int, planes: int) -> Tensor:
    x = x[:, :, ::stride, ::stride]
    return functional.pad(x, (0, 0, 0, 0, 0, planes - x.shape[1]))


def _zeros_about(x: Tensor, stride: int, planes: int) -> Tensor:
    more = (planes - x.shape[1]) // 2
    return functional.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, more, more))


def _zeros_of_the_input(x: Tensor, stride: int, planes: int) -> Tensor:
    x = functional.avg_pool2d(x, 1, stride)  # fb.resnet.torch
    return torch.cat((x, x.mul(0)), 1) if planes > x.shape[1] else x


IDENTITIES = {
    "identity": _zeros_behind,
    "centred_identity": _zeros_about,
    "cat": _zeros_of_the_input,
}


class LambdaLayer(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Block(nn.Module):
    """Basic block as most write it, with whatever may be other than in the papers."""

    def __init__(self, inner: int, planes: int, stride: int, how: SimpleNamespace):
        super().__init__()
        conv: Any = {"bias": how.bias, "groups": how.groups}
        self.conv1 = nn.Conv2d(inner, planes, 3, stride, how.dilation, how.dilation, **conv)
        self.bn1 = how.norm(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, **conv)
        self.bn2 = how.norm(planes)
        self.act = how.activation()
        self.residual = how.residual
        self.gate = nn.Sequential(nn.Linear(planes, planes), nn.Sigmoid()) if how.gated else None
        self.drop, self.drop_path, self.drop_always = how.drop, how.drop_path, how.drop_always
        self.shortcut: nn.Module = nn.Identity()
        if how.shortcut in IDENTITIES and (stride > 1 or inner != planes):
            pad = IDENTITIES[how.shortcut]
            self.shortcut = LambdaLayer(lambda x: pad(x, stride, planes))
        elif stride > 1 or inner != planes or how.shortcut == "full":
            size = 3 if how.shortcut == "convolution" else 1
            self.shortcut = nn.Sequential(
                nn.Conv2d(inner, planes, size, stride, size // 2, bias=how.bias), how.norm(planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        if self.gate is not None:
            y = y * self.gate(y.mean((2, 3)))[:, :, None, None]
        if self.drop_path and self.training:
            y = y * torch.bernoulli(torch.full((len(y), 1, 1, 1), 1 - self.drop_path))
        is_on = self.training or self.drop_always
        y = functional.dropout(y, self.drop, training=is_on)
        return self.act(y + self.shortcut(x) if self.residual else y)


class Usual(nn.Module):
    def __init__(self, **options: Any):
        super().__init__()
        how = SimpleNamespace(
            shortcut="projection", bias=False, groups=1, dilation=1, norm=nn.BatchNorm2d,
            activation=nn.ReLU, residual=True, gated=False, drop=0.0,
            drop_path=0.0, drop_always=False,
            pool=lambda: nn.AdaptiveAvgPool2d(1), stem_pool=nn.Identity, depths=(1, 2),
        )  # fmt: skip
        vars(how).update(options)
        self.conv = nn.Conv2d(3, 8, 3, 1, 1, bias=how.bias)
        self.bn = how.norm(8)
        self.act, self.stem_pool = how.activation(), how.stem_pool()
        widths = [(8, 8, 1)] * how.depths[0] + [(8, 16, 2)] + [(16, 16, 1)] * (how.depths[1] - 1)
        self.layers = nn.Sequential(*(Block(i, o, stride, how) for i, o, stride in widths))
        self.pool = how.pool()
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_pool(self.act(self.bn(self.conv(x))))
        return self.fc(self.pool(self.layers(x)).flatten(1))


class OutOfOrder(nn.Module):
    """Layers of equal shapes that are defined backwards, and called anything."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(16, 5)
        self.b = nn.BatchNorm2d(16)  # of the shortcut
        self.c = nn.BatchNorm2d(16)  # the block's last
        self.d = nn.Conv2d(8, 16, 1, 2, bias=False)
        self.e = nn.BatchNorm2d(16)
        self.f, self.g = nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.h = nn.Conv2d(8, 16, 3, 2, 1, bias=False)
        self.i, self.j = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, 1, 1, bias=False)
        self.k, self.l = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, 1, 1, bias=False)
        self.m = nn.Conv2d(3, 8, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.k(self.m(x)), inplace=True)
        y = self.i(self.j(self.g(self.l(x)).relu_()))
        x = torch.relu_(x.add(y))
        skip = self.b(self.d(x))
        y = self.h(x)
        y = self.f(functional.relu(self.e(y)))
        skip += self.c(y)
        return self.a(skip.clamp_(min=0).mean(dim=(-1, -2)))


class Lists(nn.Module):
    """All convolutions in one list and all normalisations in another; the shortcut comes first."""

    def __init__(self):
        super().__init__()
        sizes = [(3, 8, 3, 1), (8, 8, 3, 1), (8, 8, 3, 1), (8, 16, 1, 2), (8, 16, 3, 2),
                 (16, 16, 3, 1)]  # fmt: skip
        self.cs = nn.ModuleList(
            nn.Conv2d(i, o, k, s, k // 2, bias=False) for i, o, k, s in reversed(sizes)
        )
        self.ns = nn.ModuleList(nn.BatchNorm2d(o) for _, o, _, _ in reversed(sizes))
        self.out = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        layers = iter(zip(reversed(self.cs), reversed(self.ns), strict=True))

        def run(x: Tensor) -> Tensor:
            conv, norm = next(layers)
            return norm(conv(x))

        x = run(x).relu()
        x = (run(run(x).relu()) + x).relu()
        skip = run(x)
        x = (run(run(x).relu()) + skip).relu()
        return self.out(functional.avg_pool2d(x, x.shape[-1])).squeeze(-1).squeeze(-1)


class Functional(nn.Module):
    """Wide pre-activated network of bare parameters, in the style of the authors' own code."""

    def __init__(self, epsilon: float = 1e-5):
        super().__init__()
        self.epsilon = epsilon
        self.p, self.count = nn.ParameterDict(), 0
        self.w0 = nn.Parameter(torch.empty(4, 3, 3, 3))
        for place, (inner, planes) in enumerate([(4, 8), (8, 16)]):
            self.p[f"u{place}"] = torch.empty(planes, inner, 3, 3)
            self.p[f"v{place}"] = torch.empty(planes, planes, 3, 3)
            self.p[f"s{place}"] = torch.empty(planes, inner, 1, 1)
            self._norm(f"n{place}", inner)
            self._norm(f"m{place}", planes)
        self._norm("z", 16)
        self.w1 = nn.Parameter(torch.empty(16, 5))  # as it multiplies from the right

    def _norm(self, name: str, planes: int) -> None:
        self.p[f"{name}g"] = torch.empty(planes)
        self.p[f"{name}b"] = torch.empty(planes)
        self.register_buffer(f"mean_{name}", torch.empty(planes))
        self.register_buffer(f"var_{name}", torch.empty(planes))

    def fill(self) -> None:
        for name, tensor in {**dict(self.named_parameters()), **dict(self.named_buffers())}.items():
            with torch.no_grad():
                tensor.uniform_(0.5, 1.5) if name.startswith("var") else tensor.normal_(0, 0.3)

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, var = getattr(self, f"mean_{name}"), getattr(self, f"var_{name}")
        scale, bias = self.p[f"{name}g"], self.p[f"{name}b"]
        x = functional.batch_norm(x, mean, var, scale, bias, self.training, 0.1, self.epsilon)
        return functional.relu(x, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.conv2d(x, self.w0, padding=1)
        for place, stride in enumerate([1, 2]):
            o = self.norm(x, f"n{place}")
            y = functional.conv2d(o, self.p[f"u{place}"], stride=stride, padding=1)
            y = functional.conv2d(self.norm(y, f"m{place}"), self.p[f"v{place}"], padding="same")
            x = y + functional.conv2d(o, self.p[f"s{place}"], stride=stride)
        return self.norm(x, "z").mean((2, 3)) @ self.w1


class Deep(nn.Module):
    """Bottlenecks, the stride where it is told, all of one block in one Sequential."""

    def __init__(self, stride_first: bool, epsilon: float = 1e-5, bias: bool = False):
        super().__init__()

        def unit(inner: int, out: int, size: int, stride: int = 1) -> list[nn.Module]:
            conv = nn.Conv2d(inner, out, size, stride, size // 2, bias=bias)
            return [conv, nn.BatchNorm2d(out, eps=epsilon)]

        one, three = (2, 1) if stride_first else (1, 2)
        self.body = nn.Sequential(*unit(3, 8, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.branches = nn.ModuleList()
        self.sides = nn.ModuleList()
        for inner, mid, first, second in [(8, 4, 1, 1), (16, 8, one, three)]:
            layers = [*unit(inner, mid, 1, first), nn.ReLU(), *unit(mid, mid, 3, second), nn.ReLU()]
            self.branches.append(nn.Sequential(*layers, *unit(mid, 4 * mid, 1)))
            self.sides.append(nn.Sequential(*unit(inner, 4 * mid, 1, first * second)))
        self.top = nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(32, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        for branch, side in zip(self.branches, self.sides, strict=True):
            x = torch.relu(torch.add(side(x), branch(x)))
        return self.top(x)


class SlicedSum(nn.Module):
    """Option A by adding to a slice; pre-activated, so that the sum is not touched after."""

    def __init__(self):
        super().__init__()
        self.start = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.units = nn.ModuleList()
        for inner, planes, stride in [(8, 8, 1), (8, 16, 2)]:
            first = nn.Conv2d(inner, planes, 3, stride, 1, bias=False)
            second = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
            before = [nn.BatchNorm2d(inner), nn.ReLU(), first]
            self.units.append(
                nn.Sequential(*before, nn.BatchNorm2d(planes), nn.ReLU(inplace=True), second)
            )
        self.end = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Linear(16, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        for unit in self.units:
            y = unit(x)
            step = x.shape[-1] // y.shape[-1]
            y[:, : x.shape[1]] += x[:, :, ::step, ::step]
            x = y
        return self.fc(self.end(x).flatten(1))


class Same(nn.Module):
    """TensorFlow's padding, ported: zeros by the size of the image, before a conv without any."""

    def __init__(self):
        super().__init__()
        sizes = [(3, 8, 3, 1), (8, 8, 3, 1), (8, 8, 3, 1), (8, 16, 3, 2), (16, 16, 3, 1),
                 (8, 16, 1, 2)]  # fmt: skip
        self.layers = nn.ModuleList(nn.Conv2d(i, o, k, s, bias=False) for i, o, k, s in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o, _, _ in sizes)
        self.fc = nn.Linear(16, 5)

    def run(self, place: int, x: Tensor) -> Tensor:
        conv: Any = self.layers[place]
        size, kernel, stride = x.shape[-1], conv.kernel_size[0], conv.stride[0]
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        sides = (total // 2, total - total // 2)
        return self.norms[place](conv(functional.pad(x, sides * 2)))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.run(0, x))
        x = functional.relu(self.run(2, functional.relu(self.run(1, x))) + x)
        x = functional.relu(self.run(4, functional.relu(self.run(3, x))) + self.run(5, x))
        return self.fc(x.mean((2, 3)))


class Around(nn.Module):
    """Any network, with what `change` makes of its logits, and layers that nothing calls."""

    def __init__(self, network: nn.Module, change: Callable[[Tensor], Any]):
        super().__init__()
        self.model, self.change = network, change
        self.projector = nn.Sequential(nn.Linear(16, 3), nn.BatchNorm1d(3))

    def forward(self, x: Tensor) -> Any:
        return self.change(self.model(x))


class Normalising(nn.Module):
    """Takes pixels from 0 to 255, and normalises them itself."""

    mean: Tensor

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x / 255 - self.mean)


class Groups(nnx.GroupNorm):
    """Called as a BatchNorm is."""

    def __init__(self, planes: int, *, epsilon: float, rngs: nnx.Rngs):
        super().__init__(planes, num_groups=4, epsilon=epsilon, rngs=rngs)

    def __call__(self, x: Any, *, mask: Any = None, use_running_average: bool = True) -> Any:
        return super().__call__(x, mask=mask)


class FlaxStranger(nnx.Module):
    """NNX, its layers in lists and in no order, SAME padding and another epsilon."""

    def __init__(
        self,
        rngs: nnx.Rngs,
        *,
        activation: Callable[[Any], Any] = nnx.relu,
        normalise: Callable[..., Any] = nnx.BatchNorm,
    ):
        def conv(inner: int, out: int, size: int = 3, stride: int = 1) -> nnx.Conv:
            return nnx.Conv(inner, out, (size, size), stride, use_bias=False, rngs=rngs)

        self.out = nnx.Linear(16, 5, rngs=rngs)
        self.c5, self.c4, self.c3, self.c2 = conv(16, 16), conv(8, 16, 3, 2), conv(8, 8), conv(8, 8)
        self.side, self.c1 = conv(8, 16, 1, 2), conv(3, 8)
        self.norms = nnx.List(normalise(p, epsilon=1e-3, rngs=rngs) for p in (16, 16, 16, 8, 8, 8))
        self.activation = activation

    def __call__(self, x: Any, train: bool = False) -> Any:
        def norm(place: int, x: Any) -> Any:
            return self.norms[place](x, use_running_average=not train)

        x = self.activation(norm(5, self.c1(x)))
        x = nnx.relu(norm(3, self.c3(self.activation(norm(4, self.c2(x))))) + x)
        y = norm(2, self.c5(self.activation(norm(1, self.c4(x)))))
        x = nnx.relu(norm(0, self.side(x)) + y)
        return {"logits": self.out(x.mean((1, 2)))}


class LinenStranger(linen.Module):
    """linen, with the momentum that it has by default, and dropout before the head."""

    @linen.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        def norm(x: Any) -> Any:
            return linen.BatchNorm(not train, epsilon=1e-5)(x)

        def conv(planes: int, x: Any) -> Any:
            return linen.Conv(planes, (3, 3), padding=1, use_bias=False)(x)

        x = linen.relu(norm(conv(8, x)))
        y = linen.relu(norm(conv(8, x)))
        x = linen.relu(norm(conv(8, y)) + x)
        return linen.Dense(5)(linen.Dropout(0.3, deterministic=not train)(x.mean((1, 2))))


def keras_model(keras: Any, activation: str = "relu") -> Any:
    """A ResNet of three blocks as users of Keras write it, random in every leaf."""
    layers, generator = keras.layers, np.random.default_rng(0)

    def conv_bn(x: Any, planes: int, name: str, **options: Any) -> Any:
        x = layers.Conv2D(planes, padding="same", name=name, **options)(x)
        return layers.BatchNormalization(name=f"{name}_bn")(x)

    inputs = keras.Input((16, 16, 3))
    x = layers.Activation(activation)(conv_bn(inputs, 16, "first", kernel_size=3))
    for planes, stride in ((16, 1), (32, 2), (64, 2)):
        y = conv_bn(x, planes, f"one{planes}", kernel_size=3, strides=stride)
        y = conv_bn(layers.Activation(activation)(y), planes, f"two{planes}", kernel_size=3)
        if stride > 1:
            x = conv_bn(x, planes, f"skip{planes}", kernel_size=1, strides=stride)
        x = layers.Activation(activation)(layers.Add()([x, y]))
    x = layers.Dense(5, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, x)
    for variable in model.weights:
        bound = (3 / max(np.prod(variable.shape[:-1]), 1)) ** 0.5
        is_scale = variable.name in ("gamma", "moving_variance")
        low, high = (0.5, 1.5) if is_scale else (-bound, bound)
        variable.assign(generator.uniform(low, high, variable.shape))
    return model
