"""Running a stage's blocks in turn, optionally as one scan and with rematerialisation.

Neither changes a weight, an output or a gradient: a scan compiles equal blocks once however many
there are, rematerialisation keeps only the blocks' inputs for the backward pass.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flax_resnet.convolution import in_loop
from flax_resnet.stochastic_depth import with_rate_as_array

Block = Callable[[Array], Array]
Pure = Callable[[Array, Any], tuple[Array, Any]]


def run_blocks(
    blocks: Sequence[Any], x: Float[Array, "n h w c"], *, scan: bool, remat: bool
) -> Float[Array, "n h2 w2 c2"]:
    """The blocks' composition; their statistics are updated as if each had been called."""
    if not scan and not remat:
        for block in blocks:
            x = block(x)
        return x
    for graph, members in _groups(blocks):
        if graph is None:
            function = members[0].block
            x = (jax.checkpoint(function) if remat else function)(x)
            continue
        run = _rematerialised(graph) if remat else _pure(graph)
        if isinstance(members[0].block, StackedBlocks):
            x = members[0].block(x)
        elif scan and len(members) > 1:
            x, changed = _scan(run, x, _stack([member.state for member in members]))
            for index, member in enumerate(members):
                nnx.update(member.block, jax.tree.map(lambda leaf, i=index: leaf[i], changed))
        else:
            for member in members:
                x, changed = run(x, member.state)
                nnx.update(member.block, changed)
    return x


class StackedBlocks(nnx.Module):
    """Equal blocks as one, whose arrays have a leading axis: one for each, in their order.

    A scan reads it as it is; of separate blocks every step would copy every array.
    """

    def __init__(self, block: Any, *, count: int, remat: bool):
        self.block = block
        self.count = count
        self.remat = remat

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        graph, state = nnx.split(self.block)
        run = _rematerialised(graph) if self.remat else _pure(graph)
        x, changed = _scan(run, x, state)
        nnx.update(self.block, changed)
        return x


def stack_blocks(model: Any) -> dict[str, list[str]]:
    """Makes `StackedBlocks` of each stage's neighbouring equal blocks, in the model itself.

    Returns:
        By the prefix of each block's array names, `stages.0.1.block.`, the prefixes of the blocks
        that it stacks: `stages.0.1.`, `stages.0.2.` and so on. A block that is not stacked has one
        prefix, in which only the number may have changed.
    """
    names: dict[str, list[str]] = {}
    for number, blocks in enumerate(model.stages):
        stage, position = nnx.List(), 0
        for graph, members in _groups(blocks):
            place, count = f"stages.{number}.{len(stage)}.", len(members)
            old = [f"stages.{number}.{position + index}." for index in range(count)]
            if count > 1:
                block = nnx.merge(graph, _stack([member.state for member in members]))
                stage.append(StackedBlocks(block, count=count, remat=model.remat))
                names[f"{place}block."] = old
            else:
                stage.append(members[0].block)
                names[place] = old
            position += count
        model.stages[number] = stage
    return names


class _Split:
    """A block as its static graph and its arrays; a function, not being a module, has neither."""

    def __init__(self, block: Any):
        self.block = block
        self.graph, self.state = None, None
        if isinstance(block, nnx.Module):
            self.graph, self.state = nnx.split(with_rate_as_array(block))

    def kind(self) -> Any:
        """Equal for blocks that one scan can run."""
        if self.graph is None:
            return self
        return self.graph, [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(self.state)]


def _groups(blocks: Sequence[Any]) -> Iterator[tuple[Any, list[_Split]]]:
    """Neighbouring equal blocks, and their graph, which is None where it is a function alone."""
    for _, group in itertools.groupby(map(_Split, blocks), key=_Split.kind):
        members = list(group)
        yield members[0].graph, members


def _pure(graph: Any) -> Pure:
    """One block's call as a function of its arrays; returns what the call changed in them.

    In evaluation it changes nothing: the model may be a constant of a compiled function, to which
    JAX refuses to assign anything, even the same values.
    """

    def run(x: Array, state: Any) -> tuple[Array, Any]:
        block = nnx.merge(graph, state, copy=True)
        before = {path: variable.get_value() for path, variable in _mutable(block)}
        y = block(x)
        changed = [  # or created by the call
            (path, variable)
            for path, variable in _mutable(block)
            if path not in before or variable.get_value() is not before[path]
        ]
        return y, nnx.from_flat_state(changed)

    return run


def _mutable(block: Any) -> Any:
    """What a call may change, by path: statistics, and counts of random draws."""
    return nnx.to_flat_state(nnx.state(block, nnx.Not(nnx.Param)))


def _rematerialised(graph: Any) -> Pure:
    # prevent_cse guards against XLA undoing the rematerialisation outside of a scan
    return jax.checkpoint(_pure(graph))


def _scan(run: Pure, x: Array, stacked: Any) -> tuple[Array, Any]:
    with in_loop():
        return jax.lax.scan(run, x, stacked)


def _stack(states: Sequence[Any]) -> Any:
    """Arrays with a leading axis; only their shapes where the model has no values."""

    def stack(*leaves: Any) -> Any:
        if isinstance(leaves[0], jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct((len(leaves), *leaves[0].shape), leaves[0].dtype)
        return jnp.stack(leaves)

    return jax.tree.map(stack, *states)
