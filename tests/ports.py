"""Three small networks, each written in torch, in Flax NNX and in linen, with faults of a port.

All layers have one name in the three. A fault is planted in the Flax network.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen, nnx
from torch import nn
from torch.nn import functional

from convert.arrays import as_arrays, is_counter
from convert.leaves import as_flax

Arrays = dict[str, np.ndarray]


class TorchCNN(nn.Module):
    def __init__(self, align_corners: bool = False):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.bn2 = nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 8, 1)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=align_corners)
        self.conv4 = nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(functional.relu(self.bn1(self.conv1(x))))
        x = self.conv3(functional.gelu(self.bn2(self.conv2(x))))
        x = self.conv4(self.up(x))
        return self.head(x.flatten(1))


def run_cnn(net: Any, x: jax.Array, train: bool, fault: str) -> jax.Array:
    x = jax.nn.relu(net.bn1(net.conv1(x), use_running_average=not train))
    padding: Any = "SAME" if fault == "max pool padding" else [(1, 1), (1, 1)]
    x = nnx.max_pool(x, (3, 3), (2, 2), padding)
    x = net.bn2(net.conv2(x), use_running_average=not train)
    x = net.conv3(jax.nn.gelu(x, approximate=fault == "GELU"))
    x = jax.image.resize(x, (x.shape[0], 4, 4, 8), "bilinear")
    x = net.conv4(x)
    if fault != "flatten order":
        x = x.transpose(0, 3, 1, 2)
    return net.head(x.reshape(len(x), -1))


def _cnn_options(fault: str) -> tuple[Any, dict[str, Any], Any]:
    padding = "SAME" if fault == "SAME padding" else 1
    norm = {"epsilon": 1e-3 if fault == "epsilon" else 1e-5, "momentum": 0.9}
    other = {**norm, "momentum": 0.1} if fault == "momentum" else norm
    return padding, {**norm, "epsilon": 1e-5}, other


class NNXCNN(nnx.Module):
    def __init__(self, fault: str, rngs: nnx.Rngs):
        padding, norm, other = _cnn_options(fault)
        self.fault = fault
        self.conv1 = nnx.Conv(3, 8, (3, 3), padding=1, rngs=rngs)
        self.bn1 = nnx.BatchNorm(8, **other, rngs=rngs)
        self.conv2 = nnx.Conv(8, 8, (3, 3), strides=2, padding=padding, rngs=rngs)
        self.bn2 = nnx.BatchNorm(8, **norm, rngs=rngs)
        self.conv3 = nnx.Conv(8, 8, (1, 1), rngs=rngs)
        self.conv4 = nnx.Conv(8, 4, (1, 1), rngs=rngs)
        self.head = nnx.Linear(64, 5, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return run_cnn(self, x, train, self.fault)


class LinenCNN(linen.Module):
    fault: str = ""

    def setup(self) -> None:
        padding, norm, other = _cnn_options(self.fault)
        self.conv1 = linen.Conv(8, (3, 3), padding=1)
        self.bn1 = linen.BatchNorm(**other)
        self.conv2 = linen.Conv(8, (3, 3), strides=2, padding=padding)
        self.bn2 = linen.BatchNorm(**norm)
        self.conv3 = linen.Conv(8, (1, 1))
        self.conv4 = linen.Conv(4, (1, 1))
        self.head = linen.Dense(5)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return run_cnn(self, x, train, self.fault)


class TorchMixer(nn.Module):
    """Patches that overlap, a layer that mixes tokens and one that mixes channels, a finer map."""

    def __init__(self, align_corners: bool = False):
        super().__init__()
        self.align_corners = align_corners
        self.patches = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.norm1 = nn.LayerNorm(8)
        self.tokens1, self.tokens2 = nn.Linear(4, 8), nn.Linear(8, 4)
        self.norm2 = nn.LayerNorm(8)
        self.channels1, self.channels2 = nn.Linear(8, 8), nn.Linear(8, 8)
        self.project = nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch_tokens(self, x)
        y = self.norm1(x).transpose(1, 2)
        x = x + self.tokens2(functional.gelu(self.tokens1(y))).transpose(1, 2)
        x = x + self.channels2(functional.gelu(self.channels1(self.norm2(x))))
        x = x.transpose(1, 2).unflatten(2, (2, 2))
        x = torch_resize(x, self.align_corners)
        return self.head(self.project(x).flatten(1))


def torch_tokens(net: Any, x: torch.Tensor) -> torch.Tensor:
    """The stem of both networks of tokens: images to (n, tokens, channels)."""
    x = functional.max_pool2d(functional.relu(net.bn1(net.patches(x))), 3, 2, padding=1)
    return x.flatten(2).transpose(1, 2)


def torch_resize(x: torch.Tensor, align_corners: bool) -> torch.Tensor:
    return functional.interpolate(x, (4, 4), mode="bilinear", align_corners=align_corners)


def run_tokens(net: Any, x: jax.Array, train: bool, fault: str) -> jax.Array:
    x = jax.nn.relu(net.bn1(net.patches(x), use_running_average=not train))
    padding: Any = "SAME" if fault == "max pool padding" else [(1, 1), (1, 1)]
    x = nnx.max_pool(x, (3, 3), (2, 2), padding)
    return x.reshape(len(x), -1, 8)


def run_resize(x: jax.Array) -> jax.Array:
    return jax.image.resize(x, (len(x), 4, 4, 8), "bilinear")


def _stem_options(fault: str) -> tuple[dict[str, Any], dict[str, Any], float]:
    """Of the convolution and of the batch norm, and the first layer norm's epsilon."""
    conv = {"strides": 2, "padding": "SAME" if fault == "SAME padding" else 1}
    norm = {"epsilon": 1e-5, "momentum": 0.1 if fault == "momentum" else 0.9}
    return conv, norm, 1e-6 if fault == "epsilon" else 1e-5


def run_mixer(net: Any, x: jax.Array, train: bool, fault: str) -> jax.Array:
    x = run_tokens(net, x, train, fault)
    y = jax.nn.gelu(net.tokens1(net.norm1(x).swapaxes(1, 2)), approximate=fault == "GELU")
    x = x + net.tokens2(y).swapaxes(1, 2)
    x = x + net.channels2(jax.nn.gelu(net.channels1(net.norm2(x)), approximate=False))
    x = net.project(run_resize(x.reshape(len(x), 2, 2, 8)))
    if fault != "flatten order":
        x = x.transpose(0, 3, 1, 2)
    return net.head(x.reshape(len(x), -1))


class NNXMixer(nnx.Module):
    def __init__(self, fault: str, rngs: nnx.Rngs):
        conv, norm, epsilon = _stem_options(fault)
        self.fault = fault
        self.patches = nnx.Conv(3, 8, (3, 3), **conv, rngs=rngs)
        self.bn1 = nnx.BatchNorm(8, **norm, rngs=rngs)
        self.norm1 = nnx.LayerNorm(8, epsilon=epsilon, rngs=rngs)
        self.tokens1, self.tokens2 = (nnx.Linear(*s, rngs=rngs) for s in ((4, 8), (8, 4)))
        self.norm2 = nnx.LayerNorm(8, epsilon=1e-5, rngs=rngs)
        self.channels1, self.channels2 = (nnx.Linear(8, 8, rngs=rngs) for _ in range(2))
        self.project = nnx.Conv(8, 4, (1, 1), rngs=rngs)
        self.head = nnx.Linear(64, 5, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return run_mixer(self, x, train, self.fault)


class LinenMixer(linen.Module):
    fault: str = ""

    def setup(self) -> None:
        conv, norm, epsilon = _stem_options(self.fault)
        self.patches = linen.Conv(8, (3, 3), **conv)
        self.bn1 = linen.BatchNorm(**norm)
        self.norm1 = linen.LayerNorm(epsilon=epsilon)
        self.tokens1, self.tokens2 = linen.Dense(8), linen.Dense(4)
        self.norm2 = linen.LayerNorm(epsilon=1e-5)
        self.channels1, self.channels2 = linen.Dense(8), linen.Dense(8)
        self.project = linen.Conv(4, (1, 1))
        self.head = linen.Dense(5)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return run_mixer(self, x, train, self.fault)


class TorchAttention(nn.Module):
    """Patches and their places, a layer of attention with two heads, and one of two linear ones."""

    def __init__(self, align_corners: bool = False):
        super().__init__()
        self.align_corners = align_corners
        self.patches = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.places = nn.Embedding(4, 8)  # of 2 x 2 patches, resized to 4 x 4
        self.norm1 = nn.LayerNorm(8)
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.out = nn.Linear(8, 8)
        self.norm2 = nn.LayerNorm(8)
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(128, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch_tokens(self, x)
        places = self.places(torch.arange(4)).T.unflatten(1, (2, 2))[None]
        x = x + torch_resize(places, self.align_corners).flatten(2).transpose(1, 2)
        y = self.norm1(x)
        heads = (
            layer(y).unflatten(2, (2, 4)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        y = functional.scaled_dot_product_attention(*heads)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        x = x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))
        return self.head(x.transpose(1, 2).flatten(1))


def run_attention(net: Any, x: jax.Array, train: bool, fault: str) -> jax.Array:
    x = run_tokens(net, x, train, fault)
    places = net.places(jnp.arange(4)).reshape(1, 2, 2, 8)
    x = x + run_resize(places).reshape(1, 16, 8)
    y = net.norm1(x)
    heads = (layer(y).reshape(*y.shape[:2], 2, 4) for layer in (net.query, net.key, net.value))
    query, key, value = heads  # (n, tokens, heads, channels)
    scores = jnp.einsum("nqhc,nkhc->nhqk", query, key) / 2  # the root of 4 channels
    # not `jax.nn.dot_product_attention`, whose softmax is in float32 at most
    y = jnp.einsum("nhqk,nkhc->nqhc", jax.nn.softmax(scores), value)
    x = x + net.out(y.reshape(x.shape))
    y = jax.nn.gelu(net.fc1(net.norm2(x)), approximate=fault == "GELU")
    x = x + net.fc2(y)
    if fault != "flatten order":
        x = x.swapaxes(1, 2)
    return net.head(x.reshape(len(x), -1))


class NNXAttention(nnx.Module):
    def __init__(self, fault: str, rngs: nnx.Rngs):
        conv, norm, epsilon = _stem_options(fault)
        self.fault = fault
        self.patches = nnx.Conv(3, 8, (3, 3), **conv, rngs=rngs)
        self.bn1 = nnx.BatchNorm(8, **norm, rngs=rngs)
        self.places = nnx.Embed(4, 8, rngs=rngs)
        self.norm1 = nnx.LayerNorm(8, epsilon=epsilon, rngs=rngs)
        self.query, self.key, self.value = (nnx.Linear(8, 8, rngs=rngs) for _ in range(3))
        self.out = nnx.Linear(8, 8, rngs=rngs)
        self.norm2 = nnx.LayerNorm(8, epsilon=1e-5, rngs=rngs)
        self.fc1, self.fc2 = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 8, rngs=rngs)
        self.head = nnx.Linear(128, 5, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return run_attention(self, x, train, self.fault)


class LinenAttention(linen.Module):
    fault: str = ""

    def setup(self) -> None:
        conv, norm, epsilon = _stem_options(self.fault)
        self.patches = linen.Conv(8, (3, 3), **conv)
        self.bn1 = linen.BatchNorm(**norm)
        self.places = linen.Embed(4, 8)
        self.norm1 = linen.LayerNorm(epsilon=epsilon)
        self.query, self.key, self.value = (linen.Dense(8) for _ in range(3))
        self.out = linen.Dense(8)
        self.norm2 = linen.LayerNorm(epsilon=1e-5)
        self.fc1, self.fc2 = linen.Dense(16), linen.Dense(8)
        self.head = linen.Dense(5)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return run_attention(self, x, train, self.fault)


SIZES = {"CNN": 8, "mixer": 8, "attention": 16}  # pixels of an image
NETWORKS: dict[str, tuple[Callable[..., nn.Module], Any, Any]] = {
    "CNN": (TorchCNN, NNXCNN, LinenCNN),
    "mixer": (TorchMixer, NNXMixer, LinenMixer),
    "attention": (TorchAttention, NNXAttention, LinenAttention),
}


def make_torch_port(network: str, **options: Any) -> nn.Module:
    """The torch network, random in every leaf: variances and means between 0.5 and 1.5."""
    model = NETWORKS[network][0](**options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not is_counter(name):
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(noise + 0.5 if tensor.ndim == 1 else 2 * noise - 1)
    return model.eval()


def make_flax_port(kind: str, network: str, torch_model: nn.Module, fault: str = "") -> Any:
    """The NNX or linen network with the same weights, but for the fault."""
    arrays = as_arrays(torch_model.state_dict())
    weights = as_flax({name: a for name, a in arrays.items() if not is_counter(name)})
    if "places.kernel" in weights:  # a table, which is no kernel
        weights["places.embedding"] = weights.pop("places.kernel").T
    if fault == "swapped statistics":
        mean, variance = weights["bn1.mean"], weights["bn1.var"]
        weights |= {"bn1.mean": variance, "bn1.var": mean}
    if fault == "transposed kernel":
        name = TRANSPOSED[network] + ".kernel"
        weights[name] = weights[name].swapaxes(-1, -2)
    _, nnx_kind, linen_kind = NETWORKS[network]
    if kind == "NNX":
        model = nnx.eval_shape(lambda: nnx_kind(fault, nnx.Rngs(0)))
        for name, array in weights.items():
            layer, leaf = name.split(".")
            getattr(getattr(model, layer), leaf).set_value(jnp.asarray(array))
        return model
    variables: dict[str, Any] = {"params": {}}
    for name, array in weights.items():
        layer, leaf = name.split(".")
        collection = "batch_stats" if leaf in ("mean", "var") else "params"
        variables.setdefault(collection, {}).setdefault(layer, {})[leaf] = jnp.asarray(array)
    return linen_kind(fault).bind(variables)


TRANSPOSED = {"CNN": "conv2", "mixer": "channels1", "attention": "value"}
"""The layer whose square kernel is transposed."""
