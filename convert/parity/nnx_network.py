"""An NNX network as a function of its weights, whose layers' outputs are recorded."""

import contextlib
import inspect
from collections.abc import Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from convert.parity.probe import DROPS_BRANCHES, TESTS, TRAINS, first_array, kind_of
from flax_resnet import BatchNorm, StochasticDepth

_NORMS = (BatchNorm, nnx.BatchNorm)
Path = tuple[Any, ...]


class NNXNetwork:
    """A copy of an NNX module; see `flax_probe.Network`."""

    def __init__(self, model: nnx.Module, dtype: Any, device: Any):
        copied = _copy(model, dtype, device)
        modules = dict(nnx.iter_modules(copied))
        self._sequentials = {p for p, m in modules.items() if isinstance(m, nnx.Sequential)}
        for module in modules.values():
            _run_plainly(module, dtype)
        self.given = self._values(nnx.state(model, (nnx.Param, nnx.BatchStat)))
        self._mode = mode_arguments(type(model).__call__)
        self.kinds: dict[str, str] = {}
        self.input_axes = {
            self._name(path): len(axis)
            for path, module in modules.items()
            if isinstance(axis := getattr(module, "axis", None), tuple)
        }
        self._graph, params, statistics, self._rest = nnx.split(
            copied, nnx.Param, nnx.BatchStat, ...
        )
        self._variables = dict(nnx.to_flat_state(params)) | dict(nnx.to_flat_state(statistics))
        self.params = self._values(params)
        self.statistics = self._values(statistics)

    def run(
        self,
        params: dict[str, jax.Array],
        statistics: dict[str, jax.Array],
        images: jax.Array,
        *,
        train: bool,
    ) -> tuple[Any, dict[str, jax.Array], dict[str, jax.Array]]:
        values = params | statistics
        state = nnx.from_flat_state(
            [(path, v.replace(values[self._name(path)])) for path, v in self._variables.items()]
        )
        model: Any = nnx.merge(self._graph, state, self._rest, copy=True)
        if train:
            model.train()
        else:
            model.eval()
        with self._recording(model, train) as activations:
            output = model(images, **{n: train == trains for n, trains in self._mode.items()})
        return output, activations, self._values(nnx.state(model, nnx.BatchStat))

    def _values(self, state: Any) -> dict[str, jax.Array]:
        return {self._name(path): v.get_value() for path, v in nnx.to_flat_state(state)}

    def _name(self, path: Path) -> str:
        return _name(path, self._sequentials)

    @contextlib.contextmanager
    def _recording(self, model: nnx.Module, train: bool) -> Iterator[dict[str, jax.Array]]:
        """Fills a dict with each layer's output; of a layer called twice, the last.

        Dropout and layers that return their input are left out. So are layers inside a
        transformation of JAX, such as a checkpoint: their outputs exist while it is traced. The
        classes of the layers are wrapped, not the objects: Python looks up a call in the class.
        """
        modules = [(p, m) for p, m in nnx.iter_modules(model) if not isinstance(m, nnx.Dropout)]
        names = {id(module): self._name(path) for path, module in modules if path}
        activations: dict[str, jax.Array] = {}
        calls = {type(m): type(m).__call__ for _, m in modules if callable(m)}
        own = {kind: vars(kind).get("__call__") for kind in calls}

        def recorded(call: Any) -> Any:
            def record(module: Any, *args: Any, **kwargs: Any) -> Any:
                output = call(module, *args, **kwargs)
                is_identity = len(args) > 0 and output is args[0]
                array, name = first_array(output), names.get(id(module))
                if name is None or is_identity or not isinstance(array, jax.Array):
                    return output
                if name in self.kinds if train else not isinstance(array, Tracer):
                    activations.pop(name, None)  # its place is that of the last call
                    activations[name] = array
                    self.kinds.setdefault(name, kind_of(type(module)))
                return output

            return record

        try:
            for kind, call in calls.items():
                kind.__call__ = recorded(call)
            yield activations
        finally:
            for kind, call in own.items():
                if call is None:
                    del kind.__call__
                else:
                    kind.__call__ = call


def paths(model: nnx.Module) -> set[str]:
    """The names of all layers."""
    modules = dict(nnx.iter_modules(model))
    sequentials = {path for path, m in modules.items() if isinstance(m, nnx.Sequential)}
    return {_name(path, sequentials) for path in modules}


def _name(path: Path, sequentials: Collection[Path]) -> str:
    """As in torch: a layer of an `nnx.Sequential` by its number alone."""
    return ".".join(
        str(part)
        for position, part in enumerate(path)
        if not (part == "layers" and path[:position] in sequentials)
    )


def mode_arguments(call: Any) -> dict[str, bool]:
    """Arguments of a call that say its mode, and whether true means training."""
    names = inspect.signature(call).parameters
    return {n: True for n in TRAINS if n in names} | {n: False for n in TESTS if n in names}


def _copy(model: nnx.Module, dtype: Any, device: Any) -> nnx.Module:
    norms = {path for path, m in nnx.iter_modules(model) if isinstance(m, _NORMS)}
    graph, state = nnx.split(model)
    wide = jnp.promote_types(dtype, jnp.float32)  # statistics are at least float32

    def convert(path: Path, variable: Any) -> Any:
        value = variable.get_value()
        if jnp.issubdtype(value.dtype, jnp.floating):
            value = value.astype(wide if path[:-1] in norms else dtype)
        return variable.replace(jax.device_put(value, device))

    flat = [(path, convert(path, variable)) for path, variable in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(flat), copy=True)


def _attention_in_float64(*args: Any, **options: Any) -> jax.Array:
    """Flax's own attention, by the way that it takes where there is a dropout.

    The other way is `jax.nn.dot_product_attention`, whose softmax is in float32 at most.
    """
    return nnx.dot_product_attention(
        *args, **options | {"dropout_rate": 0.5, "deterministic": True}
    )


def _run_plainly(module: Any, dtype: Any) -> None:
    """Removes random draws, scans and mapped axes, and computes in one precision."""
    if dtype == np.float64 and getattr(module, "attention_fn", None) is nnx.dot_product_attention:
        module.attention_fn = _attention_in_float64
    rates = DROPS_BRANCHES.get(type(module).__name__, ())
    for name in ("rate",) if isinstance(module, nnx.Dropout | StochasticDepth) else rates:
        if hasattr(module, name):
            setattr(module, name, 0.0)
    plain = {
        "scan_blocks": False,
        "remat": False,
        "axis_name": None,
        "group_images": None,
        "dropout_rate": 0.0,
        "dtype": jnp.dtype(dtype),
    }
    for name in plain.keys() & vars(module).keys():
        if getattr(module, name) is not None:
            setattr(module, name, plain[name])
