"""Building a twin that fits a description and its arrays."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from convert.arrays import compare_shapes, is_floating, to_numpy, to_tensor
from convert.description import describe, describe_state
from convert.errors import ConversionError
from convert.twins import flax_to_arrays, take_dtypes, torch_to_flax
from resnet_spec import ClassifierSpec

__all__ = ["arrays_of", "build", "build_flax", "build_torch", "check", "describe"]

if TYPE_CHECKING:
    from flax_resnet.network import ResidualNetwork as FlaxNetwork
    from torch_resnet.network import ResidualNetwork as TorchNetwork


def arrays_of(model: Any) -> dict[str, np.ndarray]:
    """The arrays of either twin with torch's names and axes, as views where that can be."""
    if hasattr(model, "state_dict"):
        return {name: to_numpy(tensor) for name, tensor in model.state_dict().items()}
    return flax_to_arrays(model)


def check(classifier: ClassifierSpec, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises a ConversionError that lists every array that the model has not, or otherwise."""
    given = {name: array.shape for name, array in arrays.items()}
    problems = compare_shapes(classifier.tensors(), given)
    for name, array in arrays.items():
        is_counter = name.endswith("num_batches_tracked")
        if is_counter and array.dtype != np.int64:
            problems.append(f"dtype: {name} should be int64, is {array.dtype}")
        elif not is_counter and not is_floating(array.dtype):
            problems.append(f"dtype: {name} should be floating-point, is {array.dtype}")
    if problems:
        raise ConversionError("these weights are not those of this model:", problems)


def build(state: Mapping[str, Any], backend: Literal["torch", "flax"]) -> Any:
    """The torch or Flax twin of a state dict from `from_layout` or `flax_to_torch`, in eval mode.

    Raises:
        ConversionError: it does not say which network it is of, or its tensors are another's.
        ValueError: the backend is unknown.
    """
    if backend not in ("torch", "flax"):
        raise ValueError(f"backend is 'torch' or 'flax', not {backend!r}")
    classifier = describe_state(state)
    if classifier is None:
        raise ConversionError(
            "this state dict does not say which network it is of: build the model by "
            "`create` and load it, or take the state dict from `from_layout`"
        )
    arrays = {name: to_numpy(tensor) for name, tensor in state.items()}
    return (build_torch if backend == "torch" else build_flax)(classifier, arrays)


def build_torch(classifier: ClassifierSpec, arrays: Mapping[str, np.ndarray]) -> "TorchNetwork":
    """A torch twin in eval mode with these arrays, in their own dtypes."""
    import torch

    import torch_resnet

    check(classifier, arrays)
    with torch.device("meta"):  # no initial values, no memory
        model = torch_resnet.from_spec(classifier.network)
        if classifier.num_classes is not None:
            model.set_head(
                torch.nn.Linear(model.out_planes, classifier.num_classes, bias=classifier.head_bias)
            )
    tensors = {name: to_tensor(array) for name, array in arrays.items()}
    model.load_state_dict(tensors, strict=True, assign=True)
    return model.eval()


def build_flax(classifier: ClassifierSpec, arrays: Mapping[str, np.ndarray]) -> "FlaxNetwork":
    """A Flax twin in eval mode with these arrays, in their own dtypes."""
    import jax
    from flax import nnx

    import flax_resnet

    check(classifier, arrays)
    has_float64 = any(array.dtype == np.float64 for array in arrays.values())
    if has_float64 and not jax.config.read("jax_enable_x64"):
        raise ConversionError(
            'float64 weights: call jax.config.update("jax_enable_x64", True) first'
        )
    rngs = nnx.Rngs(0)
    model = flax_resnet.from_spec(classifier.network, rngs=rngs)
    if classifier.num_classes is not None:
        model.set_head(
            nnx.Linear(
                model.out_planes,
                classifier.num_classes,
                use_bias=classifier.head_bias,
                rngs=rngs,
            )
        )
    take_dtypes(model, arrays)
    torch_to_flax(arrays, model)
    model.eval()
    return model
