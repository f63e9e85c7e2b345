"""Reads what a network of Flax or Keras computes: from its layers' calls, and what JAX traces."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from jax.extend.core import Literal, Primitive

from convert import leaves
from convert.adoption.flow import PADS, Flow, Layer, Node, finish
from convert.adoption.keras_network import KerasNetwork, is_keras
from convert.errors import ConversionError
from convert.parity.flax_probe import is_linen
from convert.parity.linen_network import LinenNetwork
from convert.parity.nnx_network import NNXNetwork
from convert.parity.precision import float64
from convert.parity.probe import flatten_output
from flax_resnet import BatchNorm
from resnet_spec import RunningVariance

_KINDS = {
    "conv": (nnx.Conv, linen.Conv),
    "norm": (nnx.BatchNorm, linen.BatchNorm, BatchNorm),
    "linear": (nnx.Linear, linen.Dense),
    "group normalisation": (nnx.GroupNorm, linen.GroupNorm),
    "layer normalisation": (nnx.LayerNorm, linen.LayerNorm, nnx.RMSNorm, linen.RMSNorm),
}
_OURS = ("conv", "norm", "linear")  # kinds that a ResNet has
_LEAVES = ("kernel", "scale", "bias", "mean", "var")
_EPSILON = 1e-5  # of our own BatchNorm, which has no other
_LOOPS = ("scan", "while", "cond")
_BEGIN, _END = Primitive("layer_begins"), Primitive("layer_ends")
for _mark in (_BEGIN, _END):
    _mark.def_impl(lambda x, **_: x)
    _mark.def_abstract_eval(lambda x, **_: x)


class FlaxNetwork:
    """A copy of an NNX module, of a linen one with its variables, or of a Keras model.

    See `TorchNetwork`.
    """

    def __init__(self, model: Any, dtype: str):
        self._dtype, self._title = jnp.dtype(dtype), _title(model)
        kind: Any = LinenNetwork if is_linen(model) else NNXNetwork
        kind = KerasNetwork if is_keras(model) else kind
        with float64(("flax",)):
            self._network: Any = kind(model, self._dtype, jax.devices("cpu")[0])
        self.running_variance = _running_variance(model)
        self._rates, self._momenta = _dropout_rates(model), _momenta(model)
        if is_keras(model):
            self._rates, self._momenta = self._network.rates, self._network.momenta
        self.given = {n: _as_torch(n, np.asarray(a)) for n, a in self._network.given.items()}

    def run(self, images: np.ndarray, *, keep_values: bool = False) -> Flow:
        """One run in evaluation mode; `images` are (n, h, w, c).

        Raises:
            ConversionError: the network raises an error, or returns no logits.
        """
        is_real = np.issubdtype(images.dtype, np.floating)
        with float64(("flax",)), jax.default_device(jax.devices("cpu")[0]):
            given = jnp.asarray(images, self._dtype if is_real else images.dtype)
            try:
                eager = _Calls(self._weights(), marks=False)
                outputs = self._outputs(given, eager)
                traced = _Calls(self._weights(), marks=True)
                names: list[str] = []

                def outputs_of(x: jax.Array) -> list[jax.Array]:
                    found = self._outputs(x, traced)
                    names[:] = found
                    return list(found.values())

                program = jax.make_jaxpr(outputs_of)(given)
            except ConversionError:
                raise
            except Exception as error:
                raise ConversionError(
                    f"{self._title} does not run on images {images.shape} in {self._dtype}: {error}"
                ) from error
        reader = _Reader(traced.layers, self._weights(), tuple(images.shape))
        ends = reader.read(program)
        arrays = {name: np.asarray(outputs[name]) for name in names}
        values = {node: np.asarray(eager.outputs[n]) for n, node in reader.of_layers.items()}
        for node, value in values.items() if keep_values else ():
            node.value = value.transpose(0, 3, 1, 2) if value.ndim == 4 else value
        return finish(
            reader.nodes,
            list(zip(ends, arrays.values(), strict=True)),
            [*self._weights()],
            images,
            _stem_input(eager, reader, images),
            self._title,
            value_of=values.get,
            channels_last=True,
        )

    def fill(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replaces weights, by their names; with torch's axes."""
        with float64(("flax",)):
            for values in (self._network.params, self._network.statistics):
                for name in values.keys() & arrays.keys():
                    array = leaves.to_flax(name, arrays[name]).reshape(values[name].shape)
                    values[name] = jnp.asarray(array, values[name].dtype)

    def draws(self, images: np.ndarray) -> tuple[list[float], set[str]]:
        """See `TorchNetwork`; only layers of dropout are found, of linen those of a run before."""
        del images
        network = self._network
        rates = network.rates.values() if isinstance(network, LinenNetwork) else self._rates
        return [rate for rate in rates if rate], set()

    def momenta(self) -> set[float | None]:
        """In torch's sense; of linen those of a run before."""
        network = self._network
        if isinstance(network, LinenNetwork):
            return {_torch_momentum(momentum) for momentum in network.momenta.values()}
        return self._momenta

    def _weights(self) -> dict[str, Any]:
        return {**self._network.params, **self._network.statistics}

    def _outputs(self, images: Any, calls: "_Calls") -> dict[str, Any]:
        network = self._network
        keras = contextlib.nullcontext()
        if isinstance(network, KerasNetwork):
            keras = network.caught(calls.called, self._weights())
        with calls.caught(), keras:
            output, _, _ = network.run(network.params, network.statistics, images, train=False)
        return {n: a for n, a in flatten_output(output).items() if isinstance(a, jax.Array)}


def _title(model: Any) -> str:
    return type(model[0] if isinstance(model, tuple) else model).__name__


def _torch_momentum(momentum: Any) -> float | None:
    """What a new batch counts, of what the old average counts."""
    return round(1 - float(momentum), 12)


def _dropout_rates(model: Any) -> list[float]:
    """None of linen, which makes its layers as it runs."""
    if not isinstance(model, nnx.Module):
        return []
    found = (m for _, m in nnx.iter_modules(model) if isinstance(m, nnx.Dropout))
    return [float(module.rate) for module in found]


def _momenta(model: Any) -> set[float | None]:
    if not isinstance(model, nnx.Module):
        return set()
    modules = [module for _, module in nnx.iter_modules(model)]
    flaxs = {_torch_momentum(m.momentum) for m in modules if isinstance(m, nnx.BatchNorm)}
    return flaxs | {float(m.momentum) for m in modules if isinstance(m, BatchNorm)}


def _running_variance(model: Any) -> RunningVariance:
    """What a batch adds: in Flax's own BatchNorm the biased one, in that of our twins either."""
    if not isinstance(model, nnx.Module):
        return "biased"
    ours = [m.running_variance for _, m in nnx.iter_modules(model) if isinstance(m, BatchNorm)]
    return "unbiased" if "unbiased" in ours else "biased"


def _as_torch(name: str, array: np.ndarray) -> np.ndarray:
    return np.array(leaves.to_torch(name, array))


class _Calls:
    """The calls of layers in one run, in their order; with marks about them for the reader."""

    def __init__(self, weights: Mapping[str, Any], *, marks: bool):
        self._names = {id(array): name for name, array in weights.items()}
        self._has_marks = marks
        self._is_inside = False
        self.layers: list[Layer] = []
        self.outputs: list[Any] = []
        self.stem_input: Any = None

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Catches NNX layers at `__call__` of their classes, linen ones by its interceptor."""
        own = {
            kind: kind.__call__
            for kinds in _KINDS.values()
            for kind in kinds
            if issubclass(kind, nnx.Module)
        }

        def catching(call: Callable[..., Any]) -> Any:
            return lambda module, x, *args, **kwargs: self._flax_called(
                module, x, lambda x: call(module, x, *args, **kwargs), _nnx_tensors
            )

        def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if context.method_name != "__call__" or _kind(context.module) is None:
                return call(*args, **kwargs)
            x, *others = args
            return self._flax_called(
                context.module, x, lambda x: call(x, *others, **kwargs), _linen_tensors
            )

        try:
            for kind, call in own.items():
                kind.__call__ = catching(call)
            with linen.intercept_methods(intercept):
                yield
        finally:
            for kind, call in own.items():
                kind.__call__ = call

    def _flax_called(
        self,
        module: Any,
        x: Any,
        call: Callable[[Any], Any],
        tensors_of: Callable[[Any], dict[str, Any]],
    ) -> Any:
        kind, title = _kind(module), type(module).__name__
        return self.called(
            kind, x, call, lambda: (title, tensors_of(module), _arguments(kind, module))
        )

    def called(
        self, kind: str | None, x: Any, call: Callable[[Any], Any], describe: Callable[[], Any]
    ) -> Any:
        """The result of a call, which is noted; `describe` gives title, tensors and arguments."""
        if self._is_inside or kind is None:  # one layer that calls another
            return call(x)
        number = len(self.outputs)
        self.outputs.append(None)
        if kind == "conv" and self.stem_input is None:
            self.stem_input = x
        self._is_inside = True
        x = _BEGIN.bind(x, number=number) if self._has_marks else x
        y = call(x)
        y = _END.bind(y, number=number) if self._has_marks else y
        self._is_inside = False
        self.outputs[number] = y
        self.layers.append(self._layer(kind, *describe()))
        return y

    def _layer(
        self, kind: str, title: str, tensors: Mapping[str, Any], arguments: dict[str, Any]
    ) -> Layer:
        names = {leaf: self._names[id(a)] for leaf, a in tensors.items() if id(a) in self._names}
        path = next(iter(names.values()), "").rpartition(".")[0] or title
        arrays = {
            leaves.torch_name(leaf): _as_torch(leaf, np.asarray(a)) for leaf, a in tensors.items()
        }
        if kind == "norm":
            planes = arrays["running_mean"].shape
            arrays = {"weight": np.ones(planes), "bias": np.zeros(planes), **arrays}
        named = {leaves.torch_name(leaf): name for leaf, name in names.items()}
        return Layer(kind, path, arrays, named, arguments=arguments)


def _kind(module: Any) -> str | None:
    return next((kind for kind, kinds in _KINDS.items() if isinstance(module, kinds)), None)


def _nnx_tensors(module: Any) -> dict[str, Any]:
    found = {leaf: getattr(module, leaf, None) for leaf in _LEAVES}
    values = {n: v.get_value() for n, v in found.items() if isinstance(v, nnx.Variable)}
    return {name: value for name, value in values.items() if value is not None}


def _linen_tensors(module: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for collection in module.variables.values():
        found |= {leaf: getattr(a, "value", a) for leaf, a in collection.items() if leaf in _LEAVES}
    return found


def _arguments(kind: str | None, module: Any) -> dict[str, Any]:
    if kind == "norm":
        return {"epsilon": float(getattr(module, "epsilon", _EPSILON))}
    if kind != "conv":
        return {}
    axes = len(module.kernel_size)

    def each(value: Any) -> tuple[int, ...]:
        return tuple(value) if isinstance(value, tuple | list) else (value or 1,) * axes

    padding = module.padding
    return {
        "stride": each(module.strides),
        "padding": (padding.lower(),) if isinstance(padding, str) else _sides(padding, axes),
        "dilation": each(module.kernel_dilation),
        "groups": module.feature_group_count,
    }


def _sides(padding: Any, axes: int) -> tuple[Any, ...]:
    """One number for each axis, as torch has it, or a pair where both sides differ."""
    sides = padding if isinstance(padding, tuple | list) else (padding,) * axes
    pairs = [side if isinstance(side, tuple | list) else (side, side) for side in sides]
    return tuple(a if a == b else (a, b) for a, b in pairs)


class _Reader:
    """Turns a program of JAX into nodes, with each layer as one."""

    def __init__(self, layers: list[Layer], weights: Mapping[str, Any], shape: tuple[int, ...]):
        self._layers = layers
        self._names = {id(array): name for name, array in weights.items()}
        self.images = Node("images", (), shape)
        self.nodes: list[Node] = [self.images]
        self.of_layers: dict[int, Node] = {}
        self._begins: dict[int, tuple[Node, ...]] = {}

    def read(self, program: Any) -> list[Node | None]:
        """The nodes of what the program returns, None for what does not depend on the images."""
        jaxpr = program.jaxpr
        nodes: dict[Any, Node] = {jaxpr.invars[0]: self.images}
        names = {
            v: self._names[id(c)]
            for v, c in zip(jaxpr.constvars, program.consts, strict=True)
            if id(c) in self._names
        }
        self._walk(jaxpr, nodes, names)
        return [None if isinstance(v, Literal) else nodes.get(v) for v in jaxpr.outvars]

    def _walk(self, jaxpr: Any, nodes: dict[Any, Node], names: dict[Any, str]) -> None:
        for equation in jaxpr.eqns:
            given = [v for v in equation.invars if not isinstance(v, Literal)]
            inputs = tuple(nodes[v] for v in given if v in nodes)
            inner = _inner(equation)
            if inner is not None and _has_marks(inner):
                self._inline(inner, equation, nodes, names)
                continue
            if not inputs:
                continue
            constants = (self._names.get(id(getattr(v, "val", None))) for v in equation.invars)
            used = [*(names[v] for v in given if v in names), *(n for n in constants if n)]
            self._step(equation, inputs, tuple(used), nodes)

    def _step(
        self, equation: Any, inputs: tuple[Node, ...], names: tuple[str, ...], nodes: Any
    ) -> None:
        number, layer = equation.params.get("number"), None
        if equation.primitive is _BEGIN:
            self._begins[number] = inputs
            nodes[equation.outvars[0]] = inputs[0]
            return
        if equation.primitive is _END:
            inputs, layer = self._begins[number], self._layers[number]
        name = str(equation.params.get("name", equation.primitive.name)).strip("_")
        shape = tuple(equation.outvars[0].aval.shape)
        detail = str(equation.params.get("window_dimensions", ""))
        if layer is not None and layer.kind not in _OURS:
            name, names, layer = layer.kind, tuple(layer.names.values()), None
        node = Node("layer" if layer else name, inputs, shape, layer, names, detail)
        self.nodes.append(node)
        if layer is not None:
            self.of_layers[number] = node
        nodes.update(dict.fromkeys(equation.outvars, node))

    def _inline(self, inner: Any, equation: Any, nodes: Any, names: Any) -> None:
        jaxpr = getattr(inner, "jaxpr", inner)
        if len(jaxpr.invars) != len(equation.invars) or equation.primitive.name in _LOOPS:
            raise ConversionError(
                f"its layers run inside {equation.primitive.name}, which is not opened: build the "
                "network without it (scan, remat)"
            )
        pairs = [
            (i, o)
            for i, o in zip(jaxpr.invars, equation.invars, strict=True)
            if not isinstance(o, Literal)
        ]
        own = {i: nodes[o] for i, o in pairs if o in nodes}
        self._walk(jaxpr, own, {i: names[o] for i, o in pairs if o in names})
        for ours, outer in zip(jaxpr.outvars, equation.outvars, strict=True):
            if not isinstance(ours, Literal) and ours in own:
                nodes[outer] = own[ours]


def _inner(equation: Any) -> Any:
    params = equation.params
    return next((params[n] for n in ("jaxpr", "call_jaxpr", "fun_jaxpr") if n in params), None)


def _has_marks(inner: Any) -> bool:
    jaxpr = getattr(inner, "jaxpr", inner)
    return any(
        equation.primitive is _END or ((more := _inner(equation)) is not None and _has_marks(more))
        for equation in jaxpr.eqns
    )


def _stem_input(calls: _Calls, reader: _Reader, images: np.ndarray) -> np.ndarray:
    """(n, h, w, c): what the first convolution gets, before a pad of its own."""
    first = next((n for n, la in enumerate(calls.layers) if la.kind == "conv"), None)
    if first is None or first not in reader.of_layers:
        raise ConversionError("this network has no convolution of the images")
    (node,) = reader.of_layers[first].inputs
    if node.operation not in PADS:
        return np.asarray(calls.stem_input)
    while node.operation in PADS:
        (node,) = node.inputs
    if node is not reader.images:
        raise ConversionError(
            "this network prepares its images itself: give it those it would make"
        )
    return images
