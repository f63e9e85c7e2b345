"""Reads the outputs of a Flax NNX network's layers by wrapping the calls of their classes."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convert import leaves
from convert.diff.precision import DTYPES, Device, Precision
from convert.diff.probe import OUTPUT, Arrays, Loss, Sections
from flax_resnet import BatchNorm, StochasticDepth
from flax_resnet.variables import named_variables

_NORMS = (BatchNorm, nnx.BatchNorm)


class FlaxProbe:
    """A copy of a Flax model, run operation by operation; see `Probe`."""

    def __init__(self, model: nnx.Module, precision: Precision, device: Device):
        self._device = jax.devices(device)[0]
        self._dtype = jnp.dtype(DTYPES[precision])
        self._model = self._copy(model)
        for _, module in nnx.iter_modules(self._model):
            _run_plainly(module)

    def evaluate(self, images: np.ndarray) -> Sections:
        self._model.eval()
        with jax.default_device(self._device), _recording(self._model) as activations:
            activations[OUTPUT] = self._model(jnp.asarray(images, self._dtype))
        return {"eval": {name: np.asarray(array) for name, array in activations.items()}}

    def train(self, images: np.ndarray, loss: Loss) -> Sections:
        self._model.train()
        graph, params, rest = nnx.split(self._model, nnx.Param, ...)
        layers: list[str] = []

        def value(params: Any) -> Any:
            model = nnx.merge(graph, params, rest, copy=True)
            with _recording(model) as activations:
                outputs = model(jnp.asarray(images, self._dtype))
            activations[OUTPUT] = outputs
            layers[:] = activations  # `jax.grad` returns dicts sorted by name
            statistics = nnx.state(model, nnx.BatchStat)
            return _value(loss, outputs), (list(activations.values()), statistics)

        with jax.default_device(self._device):
            gradients, (outputs, statistics) = jax.grad(value, has_aux=True)(params)
        arrays = [np.asarray(output) for output in outputs]
        return {
            "train": dict(zip(layers, arrays, strict=True)),
            "gradients": self._named(gradients),
            "statistics": self._named(statistics),
        }

    def _copy(self, model: nnx.Module) -> Any:
        norms = {path for path, m in nnx.iter_modules(model) if isinstance(m, _NORMS)}
        graph, state = nnx.split(model)
        flat = nnx.to_flat_state(state)
        wide = jnp.promote_types(self._dtype, jnp.float32)  # statistics are at least float32

        def convert(path: Any, variable: Any) -> Any:
            value = variable.get_value()
            if jnp.issubdtype(value.dtype, jnp.floating):
                value = value.astype(wide if path[:-1] in norms else self._dtype)
            return variable.replace(jax.device_put(value, self._device))

        converted = [(path, convert(path, variable)) for path, variable in flat]
        return nnx.merge(graph, nnx.from_flat_state(converted), copy=True)

    def _named(self, state: Any) -> Arrays:
        """Arrays with torch's names and axes."""
        model = nnx.clone(self._model)
        nnx.update(model, state)
        kinds = {type(variable) for _, variable in nnx.to_flat_state(state)}
        return {
            leaves.torch_name(name): leaves.to_torch(name, np.asarray(variable.get_value()))
            for name, variable in named_variables(model).items()
            if type(variable) in kinds
        }


def _run_plainly(module: Any) -> None:
    """Removes random draws, scans and mapped axes, and computes in the inputs' precision."""
    if isinstance(module, nnx.Dropout | StochasticDepth):
        module.rate = 0.0
    no_devices = {"axis_name": None, "group_images": None}
    plain = {"scan_blocks": False, "remat": False, "dtype": None, **no_devices}
    for name in plain.keys() & vars(module).keys():
        setattr(module, name, plain[name])


@contextlib.contextmanager
def _recording(model: nnx.Module) -> Iterator[dict[str, Any]]:
    """Fills a dict with each layer's output; of a layer called twice, the last.

    Dropout and layers that return their input are left out. The classes of the layers are wrapped,
    not the objects: Python looks up a call in the class.
    """
    modules = [(p, m) for p, m in nnx.iter_modules(model) if not isinstance(m, nnx.Dropout)]
    sequentials = {path for path, module in modules if isinstance(module, nnx.Sequential)}
    names = {id(module): _name(path, sequentials) for path, module in modules if path}
    activations: dict[str, Any] = {}
    calls = {type(m): type(m).__call__ for _, m in modules if callable(m)}
    own = {kind: vars(kind).get("__call__") for kind in calls}
    try:
        for kind, call in calls.items():
            kind.__call__ = _recorded(call, names, activations)
        yield activations
    finally:
        for kind, call in own.items():
            if call is None:
                del kind.__call__
            else:
                kind.__call__ = call


def _recorded(call: Any, names: dict[int, str], activations: dict[str, Any]) -> Any:
    def record(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = call(self, *args, **kwargs)
        is_identity = len(args) > 0 and output is args[0]
        if id(self) in names and isinstance(output, jax.Array) and not is_identity:
            activations[names[id(self)]] = output
        return output

    return record


def _name(path: tuple[Any, ...], sequentials: set[tuple[Any, ...]]) -> str:
    """As in torch: a layer of an `nnx.Sequential` by its number alone."""
    return ".".join(
        str(part)
        for position, part in enumerate(path)
        if not (part == "layers" and path[:position] in sequentials)
    )


def _value(loss: Loss, outputs: jax.Array) -> jax.Array:
    loss.check(outputs.shape)
    outputs = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
    if loss.labels is not None:
        chosen = jnp.arange(len(loss.labels)), jnp.asarray(loss.labels)
        return -jnp.mean(jax.nn.log_softmax(outputs)[chosen])
    return jnp.sum(outputs * jnp.asarray(loss.weights(outputs.shape), outputs.dtype))
