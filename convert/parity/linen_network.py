"""A linen network as a function of its weights, whose layers' outputs are recorded."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, traverse_util
from jax.core import Tracer

from convert.parity.nnx_network import mode_arguments
from convert.parity.probe import DROPS_BRANCHES, first_array, kind_of

_PARAMS, _STATISTICS = "params", "batch_stats"
_DRAWS = ("dropout", "drop_path", "stochastic_depth")  # usual names of streams, whose rates are 0
Values = dict[str, jax.Array]


class LinenNetwork:
    """A linen module and its variables, bound or as a pair; see `flax_probe.Network`."""

    def __init__(self, model: Any, dtype: Any, device: Any):
        self._module, variables = model if isinstance(model, tuple) else model.unbind()
        self._dtype = jnp.dtype(dtype)
        self._plain = {"dropout_rate": 0.0, "axis_name": None, "dtype": self._dtype}
        self._mode = mode_arguments(type(self._module).__call__)
        self.kinds: dict[str, str] = {}
        self.input_axes: dict[str, int] = {}
        self.rates: dict[str, float] = {}  # of dropout, and momenta: linen makes layers as it runs
        self.momenta: dict[str, float] = {}

        def convert(path: Any, value: Any) -> jax.Array:
            value = jnp.asarray(getattr(value, "value", value))  # of a box that shards it
            if jnp.issubdtype(value.dtype, jnp.floating):
                wide = jnp.promote_types(dtype, jnp.float32)  # statistics are at least float32
                value = value.astype(wide if path[0] == _STATISTICS else dtype)
            return jax.device_put(value, device)

        flat: dict[Any, Any] = dict(traverse_util.flatten_dict(_plain_dict(variables)))
        self._paths = {path: _name(path[1:]) for path in flat}
        weights = {p: v for p, v in flat.items() if p[0] in (_PARAMS, _STATISTICS)}
        self.given = {
            self._paths[p]: jnp.asarray(getattr(v, "value", v)) for p, v in weights.items()
        }
        flat = {path: convert(path, value) for path, value in flat.items()}
        self._rest = {p: v for p, v in flat.items() if p[0] not in (_PARAMS, _STATISTICS)}
        self.params = {self._paths[p]: v for p, v in flat.items() if p[0] == _PARAMS}
        self.statistics = {self._paths[p]: v for p, v in flat.items() if p[0] == _STATISTICS}

    def run(
        self, params: Values, statistics: Values, images: jax.Array, *, train: bool
    ) -> tuple[Any, Values, Values]:
        values = {_PARAMS: params, _STATISTICS: statistics}
        flat = {p: values[p[0]][n] for p, n in self._paths.items() if p[0] in values} | self._rest
        variables: Any = traverse_util.unflatten_dict(flat)
        activations: Values = {}

        def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if context.method_name != "__call__":
                return call(*args, **kwargs)
            module: Any = context.module
            self._run_plainly(module)
            output = call(*args, **kwargs)
            array, name = first_array(output), _name(module.path)
            is_identity = len(args) > 0 and output is args[0]
            if not name or is_identity or not isinstance(array, jax.Array):
                return output
            # what `remat` or `scan` traces exists only inside of it
            if name in self.kinds if train else not isinstance(array, Tracer):
                activations.pop(name, None)  # its place is that of the last call
                activations[name] = array
                self.kinds.setdefault(name, kind_of(type(module)))
            return output

        with linen.intercept_methods(record):
            output, moved = self._module.apply(
                variables,
                images,
                **{name: train == trains for name, trains in self._mode.items()},
                mutable=[name for name in variables if name != _PARAMS],
                rngs=dict.fromkeys(_DRAWS, jax.random.key(0)),
            )
        flat = traverse_util.flatten_dict(_plain_dict(moved.get(_STATISTICS, {})))
        after: Values = {_name(path): jnp.asarray(value) for path, value in flat.items()}
        return output, activations, statistics | after

    def _run_plainly(self, module: Any) -> None:
        """Removes random draws and mapped axes, and computes in one precision."""
        if isinstance(module, linen.Dropout):
            self.rates[_name(module.path)] = float(module.rate)
        elif isinstance(module, linen.BatchNorm):
            self.momenta[_name(module.path)] = float(module.momentum)
        rates = DROPS_BRANCHES.get(type(module).__name__, ())
        rates = ("rate",) if isinstance(module, linen.Dropout) else rates
        plain = self._plain | dict.fromkeys(rates, 0.0)
        for name, value in plain.items():
            if getattr(module, name, None) is not None:
                object.__setattr__(module, name, value)  # a bound copy, which linen freezes
        if isinstance(module, linen.DenseGeneral):
            axis = module.axis if isinstance(module.axis, tuple | list) else (module.axis,)
            self.input_axes[_name(module.path)] = len(axis)


def _name(path: tuple[str, ...]) -> str:
    return ".".join(path)


def _plain_dict(tree: Any) -> Any:
    """Nested dicts of a tree that may be frozen."""
    return {k: _plain_dict(v) for k, v in tree.items()} if hasattr(tree, "items") else tree
