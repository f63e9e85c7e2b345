"""A Flax model as pure functions of its arrays, in dicts by name."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flax_resnet import BatchNorm
from flax_resnet.depth import stack_blocks
from flax_resnet.stochastic_depth import BranchDropRate
from flax_resnet.variables import named_variables

Arrays = dict[str, Array]


class Outputs(NamedTuple):
    """Logits (n, classes), and the updated statistics."""

    logits: Float[Array, "n classes"]
    statistics: Arrays


class Network:
    """One model, split into graphs for training and evaluation and one set of arrays.

    There are two graphs because toggling a shared model would change what is compiled.

    Args:
        axis_name: the mapped axis over which the batch is spread, None for none.
        group_images: images that BatchNorm normalises together, None for the whole batch.
        frozen_stages: number of stages that are frozen together with the stem, BatchNorm as in
            evaluation; None freezes nothing.
        stacked: stack the arrays of equal blocks that follow each other, see `pack`.

    Attributes:
        params, statistics: the model's initial arrays; only shapes if it was made without values.
        trained: names of the parameters that a step changes.
        moved: names of the statistics that a step changes.
    """

    def __init__(
        self,
        model: Any,
        *,
        axis_name: str | None = None,
        group_images: int | None = None,
        frozen_stages: int | None = None,
        stacked: bool = False,
    ):
        streams = [_dotted(path) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.RngState))]
        self._stream_numbers = {name: number for number, name in enumerate(streams)}
        self._stacks = stack_blocks(model) if stacked else {}
        variables = named_variables(model)
        self.params = {n: v.get_value() for n, v in variables.items() if isinstance(v, nnx.Param)}
        self.statistics = {n: v.get_value() for n, v in variables.items() if n not in self.params}
        self.group_images = group_images
        model.set_attributes(
            BatchNorm, axis_name=axis_name, group_images=group_images, raise_if_not_found=False
        )
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
        self._rates = nnx.state(model, BranchDropRate)  # of stochastic depth, constant
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
        """The model with these arrays, and random streams derived from `key`."""
        model = nnx.merge(graph, self._abstract_state, copy=True)
        for name, variable in named_variables(model).items():
            variable.set_value(arrays[name])
        nnx.update(model, self._rates)
        for path, stream in nnx.to_flat_state(nnx.state(model, nnx.RngState)):
            members = self.members(_dotted(path))
            numbers = jnp.asarray([self._stream_numbers[name] for name in members])
            if isinstance(stream, nnx.RngKey):
                keys = jax.vmap(partial(jax.random.fold_in, key))(numbers)
                stream.set_value(keys if len(members) > 1 else keys[0])
            else:
                shape = numbers.shape if len(members) > 1 else ()
                stream.set_value(jnp.zeros(shape, jnp.uint32))
        return model

    def pack(self, tree: Any) -> Any:
        """Stacks the host arrays of equal blocks along a leading axis, if this network is stacked.

        `tree` holds dicts of arrays by name, anywhere.
        """
        return _map_dicts(self._pack, tree)

    def unpack(self, tree: Any) -> Any:
        """The inverse of `pack`."""
        return _map_dicts(self._unpack, tree)

    def _pack(self, arrays: Arrays) -> Arrays:
        packed = {}
        for name in (*self.params, *self.statistics):
            members = self.members(name)
            if members[0] in arrays:
                found = [arrays[member] for member in members]
                packed[name] = np.stack(found) if len(found) > 1 else found[0]
        return packed

    def _unpack(self, packed: Arrays) -> Arrays:
        arrays = {}
        for name, array in packed.items():
            members = self.members(name)
            parts = array if len(members) > 1 else [array]
            arrays.update(zip(members, parts, strict=True))
        return arrays

    def members(self, name: str) -> list[str]:
        """The names of an array's parts in a network that is not stacked."""
        if name.startswith("stages.") and self._stacks:
            stage, number, rest = name.removeprefix("stages.").split(".", 2)
            place = f"stages.{stage}.{number}."
            if f"{place}block." in self._stacks:
                place, rest = f"{place}block.", rest.removeprefix("block.")
            return [f"{member}{rest}" for member in self._stacks[place]]
        return [name]


def _map_dicts(change: Callable[[Arrays], Arrays], tree: Any) -> Any:
    def is_dict(node: Any) -> bool:
        return isinstance(node, dict)

    return jax.tree.map(lambda node: change(node) if is_dict(node) else node, tree, is_leaf=is_dict)


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))
