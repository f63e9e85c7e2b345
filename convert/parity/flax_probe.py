"""Reads the outputs of a Flax network's layers, NNX or linen, run operation by operation."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from convert import leaves
from convert.parity.precision import DTYPES, Device, Precision
from convert.parity.probe import (
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
    Arrays,
    Layer,
    Loss,
    Sections,
    beside_logits,
    end_with,
    flatten_output,
    layers_of,
)

Values = dict[str, jax.Array]


class Network(Protocol):
    """A copy of a Flax network as a function of its weights, which are by path.

    Attributes:
        params: what is trained.
        statistics: running averages.
        given: both, in their own precision.
        kinds: of the layers that ran so far, by name.
        input_axes: how many axes of a linear layer's kernel are inputs, where it is not one.
    """

    params: Values
    statistics: Values
    given: Values
    kinds: dict[str, str]
    input_axes: dict[str, int]

    def run(
        self, params: Values, statistics: Values, images: jax.Array, *, train: bool
    ) -> tuple[Any, Values, Values]:
        """What the network returns, each layer's output, and the statistics after it."""
        ...


class FlaxProbe:
    """A copy of a Flax model, run operation by operation; see `Probe`."""

    def __init__(self, model: Any, precision: Precision, device: Device):
        self._device = jax.devices(device)[0]
        self._dtype = jnp.dtype(DTYPES[precision])
        if is_linen(model):
            from convert.parity.linen_network import LinenNetwork as Kind
        else:
            from convert.parity.nnx_network import NNXNetwork as Kind
        self._network: Network = Kind(model, self._dtype, self._device)
        self.outputs, self.beside_logits = (), ()
        self.partners: frozenset[str] = frozenset()  # names of weights in the other network

    def layers(self) -> list[Layer]:
        kinds = self._network.kinds
        return layers_of({n: k for n, k in kinds.items() if n not in self.outputs}, self.weights())

    def weights(self) -> Arrays:
        network = self._network
        return self._named(network.params) | self._named(network.statistics)

    def given(self) -> Arrays:
        return self._named(self._network.given)

    def tied(self) -> dict[str, frozenset[str]]:
        return {}  # both kinds hold an array that is used twice once

    def load(self, weights: Arrays) -> None:
        network = self._network
        network.params = self._loaded(network.params, weights)
        network.statistics = self._loaded(network.statistics, weights)

    def evaluate(self, images: np.ndarray) -> Sections:
        network = self._network
        with jax.default_device(self._device):
            output, activations, _ = network.run(
                network.params, network.statistics, self._input(images), train=False
            )
        outputs = flatten_output(output)
        self.outputs, self.beside_logits = tuple(outputs), beside_logits(output)
        ended = end_with(activations, outputs)
        return {"eval": {name: np.asarray(array) for name, array in ended.items()}}

    def train(self, images: np.ndarray, loss: Loss) -> Sections:
        network = self._network
        layers: list[str] = []

        def value(params: Values) -> Any:
            output, activations, statistics = network.run(
                params, network.statistics, self._input(images), train=True
            )
            outputs = flatten_output(output)
            activations = end_with(activations, outputs)
            layers[:] = activations  # `jax.grad` returns dicts sorted by name
            return _value(loss, outputs), (list(activations.values()), statistics)

        with jax.default_device(self._device):
            gradients, (outputs, statistics) = jax.grad(value, has_aux=True)(network.params)
        arrays = [np.asarray(output) for output in outputs]
        return {
            "train": dict(zip(layers, arrays, strict=True)),
            "gradients": self._named(gradients),
            "statistics": self._named(statistics),
        }

    def steps(self, images: np.ndarray, loss: Loss, count: int) -> Sections:
        import optax

        network = self._network
        sgd = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
        optimizer = optax.chain(optax.add_decayed_weights(WEIGHT_DECAY), sgd)
        params, statistics = network.params, network.statistics
        state = optimizer.init(params)

        def value(params: Values, statistics: Values) -> Any:
            output, _, statistics = network.run(params, statistics, self._input(images), train=True)
            return _value(loss, flatten_output(output)), statistics

        with jax.default_device(self._device):
            for _ in range(count):
                gradients, statistics = jax.grad(value, has_aux=True)(params, statistics)
                updates, state = optimizer.update(gradients, state, params)
                params: Values = optax.apply_updates(params, updates)  # pyright: ignore
        return {"steps": self._named(params)}

    def _input(self, images: np.ndarray) -> jax.Array:
        is_real = np.issubdtype(images.dtype, np.floating)
        return jnp.asarray(images, self._dtype if is_real else images.dtype)

    def _named(self, values: Values) -> Arrays:
        """Arrays with torch's names and axes."""
        return {
            self._torch_name(name): self._to_torch(name, np.asarray(value))
            for name, value in values.items()
        }

    def _torch_name(self, name: str) -> str:
        return name if self._is_own(name) else _torch_name(name)

    def _is_own(self, name: str) -> bool:
        """Whether it is a parameter of a module's own, which torch has under the same name."""
        return name in self.partners and _torch_name(name) not in self.partners

    def _to_torch(self, name: str, array: np.ndarray) -> np.ndarray:
        if self._is_own(name):
            return array
        layer, _, leaf = name.rpartition(".")
        kind = self._network.kinds.get(layer)
        if kind == "linear" and leaf == "kernel":
            axes = self._network.input_axes.get(layer, 1)
            array = array.reshape(-1, int(np.prod(array.shape[axes:])))
        elif kind == "linear" and leaf == "bias":
            array = array.reshape(-1)
        elif kind == "transposed convolution" and leaf == "kernel":
            # torch's is the gradient of a convolution
            array = np.flip(array, tuple(range(array.ndim - 2)))
            return array.transpose(-2, -1, *range(array.ndim - 2))
        return leaves.to_torch(leaf, array)

    def _loaded(self, values: Values, weights: Arrays) -> Values:
        """Values with these weights in their place, the inverse of `_named`."""
        loaded = dict(values)
        for name, value in values.items():
            layer, _, leaf = name.rpartition(".")
            array = weights.get(self._torch_name(name))
            if array is None:
                continue
            if self._is_own(name):
                pass
            elif self._network.kinds.get(layer) == "transposed convolution" and leaf == "kernel":
                array = array.transpose(*range(2, array.ndim), 0, 1)
                array = np.flip(array, tuple(range(array.ndim - 2)))
            else:
                array = leaves.to_flax(leaf, array)
            # a copy: JAX may share NumPy's memory, and torch's optimiser writes there
            array = jnp.array(array.reshape(value.shape), value.dtype)
            loaded[name] = jax.device_put(array, self._device)
        return loaded


def _torch_name(name: str) -> str:
    layer, _, leaf = name.rpartition(".")
    return f"{layer}.weight".lstrip(".") if leaf == "embedding" else leaves.torch_name(name)


def is_linen(model: Any) -> bool:
    """Whether this is linen: a bound module, or a module and its variables."""
    return hasattr(model, "unbind") or (
        isinstance(model, tuple) and len(model) == 2 and isinstance(model[1], Mapping)
    )


def is_unbound(model: Any) -> bool:
    """Whether this is a linen module that has no variables."""
    return hasattr(model, "unbind") and model.scope is None


def is_nnx(model: Any) -> bool:
    from flax import nnx

    return isinstance(model, nnx.Module)


def paths(model: Any) -> set[str]:
    """The names of all layers of an NNX module."""
    from convert.parity.nnx_network import paths

    return paths(model)


def _value(loss: Loss, outputs: dict[str, jax.Array]) -> jax.Array:
    values = [
        array.astype(jnp.promote_types(array.dtype, jnp.float32))
        for array in outputs.values()
        if jnp.issubdtype(array.dtype, jnp.floating)
    ]
    shapes = [array.shape for array in values]
    loss.check(shapes)
    if loss.labels is not None:
        chosen = jnp.arange(len(loss.labels)), jnp.asarray(loss.labels)
        return -jnp.mean(jax.nn.log_softmax(values[0])[chosen])
    weighted = zip(values, loss.weights(shapes), strict=True)
    return sum((jnp.sum(v * jnp.asarray(w, v.dtype)) for v, w in weighted), jnp.zeros(()))
