"""A Flax model as pure functions of its arrays, in dicts by name."""

from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Float

from flax_resnet import BatchNorm
from flax_resnet.stochastic_depth import BranchDropRate
from flax_resnet.variables import named_variables

Arrays = dict[str, Array]


class Outputs(NamedTuple):
    """Logits (n, classes), and the statistics that the forward pass has moved on."""

    logits: Float[Array, "n classes"]
    statistics: Arrays


class Network:
    """One model, taken apart.

    Its train and eval graphs share one set of arrays: toggling a shared model would change what
    is compiled.

    Args:
        axis_name: the mapped axis over which the batch is spread, None for none.
        frozen_stages: so many stages, and the stem, stay as they are, their BatchNorm as in
            evaluation; None for none.

    Attributes:
        params, statistics: the model's arrays at the start.
        trained: names of the parameters that a step changes.
        moved: names of the statistics that it changes.
    """

    def __init__(
        self, model: Any, *, axis_name: str | None = None, frozen_stages: int | None = None
    ):
        variables = named_variables(model)
        self.params = _values(variables, nnx.Param)
        self.statistics = {n: v.get_value() for n, v in variables.items() if n not in self.params}
        model.set_attributes(BatchNorm, axis_name=axis_name, raise_if_not_found=False)
        frozen = () if frozen_stages is None else ("stem", *range(frozen_stages))
        parts = tuple("stem." if part == "stem" else f"stages.{part}." for part in frozen)
        self.trained = tuple(name for name in self.params if not name.startswith(parts))
        self.moved = tuple(name for name in self.statistics if not name.startswith(parts))
        model.train()
        for part in frozen:
            (model.stem if part == "stem" else model.stages[part]).eval()
        self._train_graph, state = nnx.split(model)
        model.eval()
        self._eval_graph = nnx.graphdef(model)
        self._rates = nnx.state(model, BranchDropRate)  # of stochastic depth, the same all along
        self._abstract_state = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), state)

    def train(
        self, params: Arrays, statistics: Arrays, images: Float[Array, "n h w c"], key: Array
    ) -> Outputs:
        """The forward pass in training: batch statistics, dropout drawn from `key`."""
        model = self.bind(self._train_graph, {**params, **statistics}, key)
        logits = model(images)
        moved = named_variables(model)
        return Outputs(logits, {name: moved[name].get_value() for name in statistics})

    def evaluate(
        self, params: Arrays, statistics: Arrays, images: Float[Array, "n h w c"]
    ) -> Float[Array, "n classes"]:
        """The forward pass in evaluation: running statistics, no dropout."""
        return self.model(params, statistics)(images)

    def model(self, params: Arrays, statistics: Arrays) -> Any:
        """The model in eval mode with these arrays."""
        return self.bind(self._eval_graph, {**params, **statistics}, jax.random.key(0))

    def bind(self, graph: Any, arrays: Arrays, key: Array) -> Any:
        """The model with these arrays and random streams derived from `key`."""
        model = nnx.merge(graph, self._abstract_state, copy=True)
        for name, variable in named_variables(model).items():
            variable.set_value(arrays[name])
        nnx.update(model, self._rates)
        streams = nnx.to_flat_state(nnx.state(model, nnx.RngState))
        for number, (_, stream) in enumerate(streams):
            if isinstance(stream, nnx.RngKey):
                stream.set_value(jax.random.fold_in(key, number))
            else:
                stream.set_value(jax.numpy.zeros((), jax.numpy.uint32))
        return model


def _values(variables: dict[str, nnx.Variable[Any]], kind: type) -> Arrays:
    return {n: v.get_value() for n, v in variables.items() if isinstance(v, kind)}
