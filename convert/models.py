"""Twins built from a description and its arrays, and the checks that both fit."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from convert import collector
from convert.arrays import as_arrays, compare_shapes, dtype_problems, to_tensor, value_problems
from convert.description import describe, describe_state
from convert.errors import ConversionError
from convert.twins import fill_by_name, flax_to_arrays
from convert.weights import Weights
from convert.wrappers import TORCHS_PREFIXES, prefix_problems, unwrap
from resnet_spec import ClassifierSpec, ResNetSpec

__all__ = ["arrays_of", "build", "build_flax", "build_torch", "check", "describe", "judge"]

if TYPE_CHECKING:
    from flax_resnet.network import ResidualNetwork as FlaxNetwork
    from torch_resnet.network import ResidualNetwork as TorchNetwork


def arrays_of(model: Any) -> dict[str, np.ndarray]:
    """The arrays of either twin with torch's names and axes, as views where that can be."""
    if hasattr(model, "state_dict"):
        return as_arrays(model.state_dict())
    return flax_to_arrays(model)


def check(classifier: ClassifierSpec, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises a ConversionError that lists every array that is not as this model has it."""
    expected, given = classifier.tensors(), {name: a.shape for name, a in arrays.items()}
    problems = compare_shapes(expected, given)
    if problems:
        problems = prefix_problems(expected, given) or problems
    problems += [p for name, array in arrays.items() for p in dtype_problems(name, array)]
    if problems:
        raise ConversionError("these weights are not those of this model:", problems)


def judge(
    source: Any, weights: Weights, *, as_described: bool = True, allow_nonfinite: bool = False
) -> None:
    """Raises a ConversionError that lists all that is wrong with the arrays of a source.

    Args:
        source: where they come from, for the message.
        weights: what was read there.
        as_described: compare the arrays also with the model that they say they are of, if any.
        allow_nonfinite: accept NaN, infinite values and negative variances.
    """
    problems = list(weights.faults)
    for name, array in weights.arrays.items():
        problems += value_problems(name, array, allow_nonfinite=allow_nonfinite)
    if as_described and weights.classifier is not None:
        try:
            check(weights.classifier, weights.arrays)
        except ConversionError as error:
            raise ConversionError(
                f"{source}: {error.what}", [*error.problems, *problems]
            ) from error
    if problems:
        raise ConversionError(f"{source} holds what no weights should:", problems)


def build(state: Mapping[str, Any], backend: Literal["torch", "flax"]) -> Any:
    """The torch or Flax twin of a state dict from `from_layout` or `flax_to_torch`, in eval mode.

    Raises:
        ConversionError: it does not say which network it is of, or has tensors of another one.
        ValueError: the backend is unknown.
    """
    builder = find_builder(backend)
    classifier = describe_state(state)
    if classifier is None:
        raise ConversionError(
            "this state dict does not say which network it is of: build the model by "
            "`create` and load it, or take the state dict from `from_layout`"
        )
    arrays, _ = unwrap(as_arrays(state), TORCHS_PREFIXES)
    return builder(classifier, arrays)


def find_builder(backend: str) -> Callable[..., Any]:
    """`build_torch` or `build_flax`; any other backend is a ValueError."""
    if backend not in ("torch", "flax"):
        raise ValueError(f"backend is 'torch' or 'flax', not {backend!r}")
    return build_torch if backend == "torch" else build_flax


def build_torch(
    classifier: ClassifierSpec, arrays: Mapping[str, np.ndarray], *, take: bool = False
) -> "TorchNetwork":
    """A torch twin in eval mode with these arrays, in their own dtypes; `take` as `build_flax`."""
    check(classifier, arrays)
    model = torch_skeleton(classifier)
    remove = arrays.pop if take and isinstance(arrays, dict) else arrays.__getitem__
    tensors = {name: to_tensor(remove(name)) for name in list(arrays)}
    model.load_state_dict(tensors, strict=True, assign=True)
    return model.eval()


def torch_skeleton(classifier: ClassifierSpec) -> "TorchNetwork":
    """A torch twin on the device "meta": names and shapes, no initial values, no memory."""
    import torch

    import torch_resnet

    with torch.device("meta"):
        model = torch_resnet.from_spec(classifier.network)
        if classifier.num_classes is not None:
            model.set_head(
                torch.nn.Linear(model.out_planes, classifier.num_classes, bias=classifier.head_bias)
            )
    return model


@collector.paused()
def build_flax(
    classifier: ClassifierSpec, arrays: Mapping[str, np.ndarray], *, take: bool = False
) -> "FlaxNetwork":
    """A Flax twin in eval mode with these arrays, in their own dtypes.

    With `take` each array leaves the dictionary when the model has it: where nothing else holds
    the arrays, memory has the weights once, not twice.
    """
    import jax

    check(classifier, arrays)
    has_float64 = any(array.dtype == np.float64 for array in arrays.values())
    if has_float64 and not jax.config.read("jax_enable_x64"):
        raise ConversionError(
            'float64 weights: call jax.config.update("jax_enable_x64", True) first'
        )
    model = _flax_skeleton(classifier)
    fill_by_name(model, arrays, take=take)
    return model


def _flax_skeleton(classifier: ClassifierSpec) -> "FlaxNetwork":
    """A Flax twin to fill, in eval mode: no weights are drawn, and equal blocks are built once.

    NNX takes ten times longer to build a block than to copy one.
    """
    from flax import nnx

    if _is_random(classifier.network):  # its streams are arrays, which nobody else may have
        model = _short_skeleton(classifier)
    else:
        model = nnx.merge(*_parts_of_short_skeleton(classifier), copy=True)
    for blocks, depth in zip(model.stages, classifier.network.stage_depths, strict=True):
        # NNX keeps what was split in reference cycles until the next garbage collection: a copy
        # replaces it in the model, so that no weights stay in memory with it.
        parts = nnx.split(blocks.pop())
        blocks.extend([nnx.merge(*parts, copy=True) for _ in range(depth - len(blocks))])
    model.spec = classifier.network
    return model


@functools.lru_cache(maxsize=16)
def _parts_of_short_skeleton(classifier: ClassifierSpec) -> Any:
    from flax import nnx

    return nnx.split(_short_skeleton(classifier))


def _short_skeleton(classifier: ClassifierSpec) -> "FlaxNetwork":
    """As `_flax_skeleton`, without the blocks of a stage that equal the one before."""
    from flax import nnx

    import flax_resnet
    from flax_resnet.layers import NoKeys, no_value, no_values

    spec, num_classes = classifier.network, classifier.num_classes
    rngs: Any = nnx.Rngs(0) if _is_random(spec) else NoKeys()
    # The first block of a stage differs from the others; random streams and rates differ in all.
    most = max(spec.stage_depths) if _is_random(spec) else 2
    depths = tuple(min(depth, most) for depth in spec.stage_depths)
    with no_values():
        model = flax_resnet.from_spec(dataclasses.replace(spec, stage_depths=depths), rngs=rngs)
    if num_classes is not None:
        context: Any = {"rngs": rngs, "kernel_init": no_value, "bias_init": no_value}
        model.set_head(
            nnx.Linear(model.out_planes, num_classes, use_bias=classifier.head_bias, **context)
        )
    model.eval()
    return model


def _is_random(spec: ResNetSpec) -> bool:
    return spec.drop_rate > 0 or spec.stochastic_depth > 0
