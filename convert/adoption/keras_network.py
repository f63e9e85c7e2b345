"""A Keras model as a function of its weights, on JAX, whose layers' calls are caught."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convert.errors import ConversionError

_LEAVES = {
    "conv": {"kernel": "kernel", "bias": "bias"},
    "linear": {"kernel": "kernel", "bias": "bias"},
    "norm": {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"},
}
_POLICIES = ("mixed_bfloat16", "mixed_float16", "bfloat16", "float16", "float32", "float64")
Values = dict[str, jax.Array]


def is_keras(model: Any) -> bool:
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(model, keras.Model)


class KerasNetwork:
    """A copy of a Keras model in one precision; weights are by its own paths, with dots.

    Attributes:
        given: all weights, in their own precision.
        rates: of its layers of dropout.
        momenta: of its batch normalisations, in torch's sense.
    """

    def __init__(self, model: Any, dtype: Any, device: Any):
        """Raises a ConversionError if Keras runs on another backend, or the model has no copy."""
        self._keras: Any = sys.modules["keras"]
        if (backend := self._keras.backend.backend()) != "jax":
            raise ConversionError(
                f"a Keras model is run on JAX, and Keras is on {backend}: set KERAS_BACKEND=jax "
                "before it is imported"
            )
        text, name = json.dumps(model.get_config()), json.dumps(jnp.dtype(dtype).name)
        for policy in _POLICIES:
            text = text.replace(json.dumps(policy), name)
        try:
            self._model = type(model).from_config(json.loads(text))
            self._model.set_weights(model.get_weights())
        except Exception as error:  # whatever an author's own code raises
            raise ConversionError(
                f"{model.name} cannot be built again in {name} from its configuration, as models "
                f"of Keras's own layers can: {error}"
            ) from error
        paths = [_name(variable) for variable in model.weights]
        if len({*paths}) < len(paths):
            raise ConversionError(f"{model.name} has several variables of one path")
        self.given = {n: jnp.asarray(v.value) for n, v in zip(paths, model.weights, strict=True)}
        self._trained, self._fixed = (
            [_name(variable) for variable in variables]
            for variables in (self._model.trainable_variables, self._model.non_trainable_variables)
        )
        values = {_name(v): jax.device_put(v.value, device) for v in self._model.variables}
        self.params: Values = {n: values[n] for n in self._trained}
        self.statistics: Values = {n: values[n] for n in self._fixed}
        layers = self._model._flatten_layers(include_self=False)
        norms, drops = (
            [layer for layer in layers if isinstance(layer, kind)]
            for kind in (self._keras.layers.BatchNormalization, self._keras.layers.Dropout)
        )
        self.momenta: set[float | None] = {round(1 - norm.momentum, 12) for norm in norms}
        self.rates = [float(drop.rate) for drop in drops if drop.rate]

    def run(
        self, params: Values, statistics: Values, images: jax.Array, *, train: bool
    ) -> tuple[Any, Values, Values]:
        """What it returns in evaluation mode; `train` is False."""
        del train
        values = params | statistics
        with _whole_float64():
            output, _ = self._model.stateless_call(
                [values[n] for n in self._trained],
                [values[n] for n in self._fixed],
                images,
                training=False,
            )
        return output, {}, statistics

    @contextlib.contextmanager
    def caught(self, called: Callable[..., Any], weights: Values) -> Iterator[None]:
        """Hands the calls of layers to `called`, and those of their activations after them.

        Args:
            called: takes the kind, the input, the rest of the call, and what describes the layer.
            weights: those of the run.
        """
        layers, linear = self._keras.layers, self._keras.activations.linear
        kinds = {
            layers.Conv2D: "conv",
            layers.BatchNormalization: "norm",
            layers.Dense: "linear",
            layers.GroupNormalization: "group normalisation",
            layers.LayerNormalization: "layer normalisation",
            layers.Activation: "",  # it only has one
            layers.Softmax: "softmax",
        }
        own = {kind: kind.call for kind in kinds}

        def catching(kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
            def caught(layer: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
                activation = getattr(layer, "activation", None) or linear
                if kind:
                    with _changed(layer, "activation", linear):
                        x = called(
                            kind,
                            x,
                            lambda x: call(layer, x, *args, **kwargs),
                            lambda: (
                                layer.name,
                                _tensors(kind, layer, weights),
                                _arguments(kind, layer),
                            ),
                        )
                if activation is linear:
                    return x
                name = getattr(activation, "__name__", type(activation).__name__)
                return called(name, x, activation, lambda: (layer.name, {}, {}))

            return caught

        try:
            for kind, call in own.items():
                kind.call = catching(kinds[kind], call)
            yield
        finally:
            for kind, call in own.items():
                kind.call = call


@contextlib.contextmanager
def _changed(layer: Any, name: str, value: Any) -> Iterator[None]:
    """Sets an attribute for a while, if the layer has it."""
    if not hasattr(layer, name):
        yield
        return
    own = getattr(layer, name)
    setattr(layer, name, value)
    try:
        yield
    finally:
        setattr(layer, name, own)


@contextlib.contextmanager
def _whole_float64() -> Iterator[None]:
    """Makes Keras compute float64 in float64: on JAX it computes in float32, and casts."""
    import keras.src.backend.common.dtypes as rules

    table: dict[str, str] = getattr(rules, "BIT64_TO_BIT32_DTYPE", {})
    kept = dict(table)
    table["float64"] = "float64"
    try:
        yield
    finally:
        table.update(kept)


def _name(variable: Any) -> str:
    return variable.path.replace("/", ".")


def _tensors(kind: str, layer: Any, weights: Values) -> Values:
    """The layer's tensors by Flax's word; all variables of a layer that a ResNet lacks."""
    if kind not in _LEAVES:
        return {variable.name: weights[_name(variable)] for variable in layer.variables}
    found = {ours: getattr(layer, theirs, None) for theirs, ours in _LEAVES[kind].items()}
    return {ours: weights[_name(v)] for ours, v in found.items() if v is not None}


def _arguments(kind: str, layer: Any) -> dict[str, Any]:
    if kind == "norm":
        return {"epsilon": float(layer.epsilon)}
    if kind != "conv":
        return {}
    padding = layer.padding
    return {
        "stride": tuple(layer.strides),
        "padding": (0, 0) if padding == "valid" else (padding,),
        "dilation": tuple(np.ravel(layer.dilation_rate).tolist()),
        "groups": layer.groups,
    }
