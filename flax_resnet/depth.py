"""Running a stage's blocks in turn, optionally as one scan and with rematerialisation.

Neither changes a weight, an output or a gradient: a scan compiles equal blocks once however many
there are, rematerialisation keeps only the blocks' inputs for the backward pass.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flax_resnet.convolution import in_loop

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
    for (graph, _), group in itertools.groupby(map(_Split, blocks), key=_Split.kind):
        run = _rematerialised(graph) if remat else _pure(graph)
        members = list(group)
        if scan and len(members) > 1:
            x = _scan(run, members, x)
        else:
            for member in members:
                x, changed = run(x, member.state)
                nnx.update(member.block, changed)
    return x


class _Split:
    """A block as its static graph and its arrays."""

    def __init__(self, block: Any):
        self.block = block
        self.graph, self.state = nnx.split(block)

    def kind(self) -> tuple[Any, Any]:
        """Equal for blocks that one scan can run."""
        return self.graph, [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(self.state)]


def _pure(graph: Any) -> Pure:
    """One block's call as a function of its arrays; returns what the call changed in them."""

    def run(x: Array, state: Any) -> tuple[Array, Any]:
        block = nnx.merge(graph, state, copy=True)
        y = block(x)
        return y, nnx.state(block, nnx.Not(nnx.Param))

    return run


def _rematerialised(graph: Any) -> Pure:
    # prevent_cse guards against XLA undoing the rematerialisation outside of a scan
    return jax.checkpoint(_pure(graph))


def _scan(run: Pure, members: Sequence[_Split], x: Array) -> Array:
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(m.state for m in members))
    with in_loop():
        x, changed = jax.lax.scan(run, x, stacked)
    leaves, structure = jax.tree.flatten(changed)
    for index, member in enumerate(members):
        one = jax.tree.unflatten(structure, [leaf[index] for leaf in leaves])
        nnx.update(member.block, one)
    return x
