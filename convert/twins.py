"""Weights from one twin to the other, every leaf accounted for, bit for bit."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from convert import collector, leaves
from convert.arrays import as_arrays, compare_shapes, is_floating, is_lossless
from convert.description import as_state_dict, describe, describe_state, differences_from_row
from convert.errors import ConversionError
from convert.wrappers import TORCHS_PREFIXES, unwrap
from resnet_spec import ClassifierSpec

if TYPE_CHECKING:
    import torch
    from flax import nnx

_PLACED_AT_ONCE = 100  # arrays: enough to outweigh the cost of a call, and few of all arrays


def flax_to_torch(flax_model: "nnx.Module") -> "dict[str, torch.Tensor]":
    """The weights and statistics of a Flax model as the state dict of its torch twin.

    `torch_model.load_state_dict(flax_to_torch(flax_model))` is strict and bit-exact. The tensors
    have their own memory. The state dict of a model of the table says which model that is, and a
    torch twin that computes something else (with other padding, for example) refuses it. The state
    dict of a model that was edited after it was built does not say it.

    Raises:
        ConversionError: it is no module of Flax NNX, has no values (`nnx.eval_shape`), or two of
            its arrays have the same name in torch.
    """
    arrays = flax_to_arrays(flax_model)
    try:
        classifier = describe(flax_model)
    except ConversionError:  # own blocks or head: describe the network alone, if it is ours
        spec, classifier = getattr(flax_model, "spec", None), None
        if spec is not None and not differences_from_row(flax_model):
            classifier = ClassifierSpec(spec)
    return as_state_dict(arrays, classifier)


def torch_to_flax(state_dict: Mapping[str, Any], flax_model: "nnx.Module") -> None:
    """Fills a Flax model, in place and bit for bit, with the state dict of its torch twin.

    Args:
        state_dict: torch tensors, or NumPy arrays with torch's names and axes; the prefixes of
            torch's wrappers, `module.` and `_orig_mod.`, are removed.
        flax_model: the twin, or one of `nnx.eval_shape`; arrays stay on their devices.

    Raises:
        ConversionError: a name is missing or left over, a shape is wrong, or a dtype cannot hold
            the values; all of them are listed, and the model is unchanged.
    """
    variables = _variables(flax_model)
    arrays = as_arrays(state_dict)
    if not variables.keys() & arrays.keys():
        arrays, _ = unwrap(arrays, TORCHS_PREFIXES)
    problems = compare_shapes(
        {name: _torch_shape(flax_name, v) for name, (flax_name, v) in variables.items()},
        {name: array.shape for name, array in arrays.items()},
    )
    spec, described = getattr(flax_model, "spec", None), describe_state(state_dict)
    if spec is not None and described is not None:
        problems += spec.differences(described.network)
    for name, (_, variable) in variables.items():
        if name in arrays:
            problems += _lossy(name, arrays[name], np.dtype(variable.get_value().dtype))
    if problems:
        raise ConversionError("these weights are not those of this model:", problems)
    for name, (flax_name, variable) in variables.items():
        _fill(variable, leaves.to_flax(flax_name, arrays[name]))


@collector.paused()
def flax_to_arrays(flax_model: "nnx.Module") -> dict[str, np.ndarray]:
    """As `flax_to_torch`, as read-only views with torch's names and axes; needs no torch."""
    variables = _variables(flax_model)
    arrays = as_arrays({name: _value(variable) for name, (_, variable) in variables.items()})
    return {name: leaves.to_torch(variables[name][0], array) for name, array in arrays.items()}


def _value(variable: "nnx.Variable[Any]") -> Any:
    """`variable.get_value()`, which walks a tree and takes ten times as long for a plain array."""
    import jax
    from flax import nnx

    value = variable.get_raw_value()
    is_plain = (
        isinstance(value, jax.Array)
        and type(variable).get_value is nnx.Variable.get_value
        and not variable.has_metadata("on_get_value")
    )
    return value if is_plain else variable.get_value()


def _variables(model: "nnx.Module") -> "dict[str, tuple[str, nnx.Variable[Any]]]":
    """The variables by torch's name, each with Flax's name."""
    from flax import nnx

    from flax_resnet.variables import named_parts

    if not isinstance(model, nnx.Module):
        raise ConversionError(
            f"this must be a model of Flax NNX, not a {type(model).__name__} of "
            f"{type(model).__module__.partition('.')[0]}"
        )
    variables, modules = named_parts(model)
    for name, module in modules.items():
        if isinstance(module, nnx.ConvTranspose):  # torch's has other axes, and is mirrored
            raise ConversionError(f"{name} is a transposed convolution, which is not converted")
    containers = {name.rpartition(".")[0] for name in modules if name}
    named: dict[str, tuple[str, nnx.Variable[Any]]] = {}
    for flax_name, variable in variables.items():
        layer, _, leaf = flax_name.rpartition(".")
        # a block's own `scale` is not that of a normalisation
        is_own = layer in containers and leaf in leaves.OF_NORMS
        name = flax_name if is_own else leaves.torch_name(flax_name)
        if name in named:
            raise ConversionError(f"{flax_name} and {named[name][0]} are both {name} in torch")
        named[name] = (flax_name, variable)
    return named


def fill_by_name(
    flax_model: "nnx.Module", arrays: Mapping[str, np.ndarray], *, take: bool = False
) -> None:
    """As `torch_to_flax`, for a model just built from the table, which takes the arrays' dtypes.

    Each array finds its layer by its name: walking through a model of NNX takes longer than
    reading its file. With `take` each array leaves the dictionary when the model has it, so that
    memory holds the weights once.
    """
    problems: list[str] = []
    found: list[tuple[str, str, nnx.Variable[Any], np.dtype]] = []
    layers: dict[str, Any] = {}
    for name, array in arrays.items():
        path, _, leaf = name.rpartition(".")
        if path not in layers:
            layers[path] = _part(flax_model, path)
        flax_leaf = leaves.flax_leaf(leaf, array.ndim)
        variable = getattr(layers[path], flax_leaf)
        dtype = array.dtype if is_floating(array.dtype) else np.dtype(variable.dtype)
        problems += _lossy(name, array, dtype)
        found.append((name, flax_leaf, variable, dtype))
    if problems:
        raise ConversionError("these weights are not those of this model:", problems)
    remove = arrays.pop if take and isinstance(arrays, dict) else arrays.__getitem__
    for start in range(0, len(found), _PLACED_AT_ONCE):
        part = found[start : start + _PLACED_AT_ONCE]
        values = [_detached(leaves.to_flax(leaf, remove(name)), d) for name, leaf, _, d in part]
        _place([variable for _, _, variable, _ in part], values)


def _part(model: Any, path: str) -> Any:
    for part in path.split("."):
        model = model[int(part)] if part.isdigit() else getattr(model, part)
    return model


def _place(variables: "list[nnx.Variable[Any]]", values: list[np.ndarray]) -> None:
    import jax

    if jax.default_backend() == "cpu":
        values = _transpose_spatial_kernels(values)
    placed = jax.block_until_ready(jax.device_put(values))
    for variable, value in zip(variables, placed, strict=True):
        variable.set_value(value)


def _transpose_spatial_kernels(values: list[np.ndarray]) -> list[np.ndarray]:
    """Puts kernels of more than one pixel in C order, in memory that JAX on CPU uses as it is.

    JAX transposes them in three quarters of the time if height and width are joined in one axis.
    """
    import jax

    places = [
        place
        for place, value in enumerate(values)
        if value.ndim > 3 and value.shape[:-2] != (1, 1) and not value.flags.c_contiguous
    ]
    flat = [values[place].reshape(-1, *values[place].shape[-2:]) for place in places]
    values = list(values)
    with jax.ensure_compile_time_eval():  # within `nnx.eval_shape` or `jax.jit`, too
        for place, array in zip(places, jax.device_put(flat), strict=True):
            values[place] = np.asarray(array).reshape(values[place].shape)
    return values


def _torch_shape(flax_name: str, variable: "nnx.Variable[Any]") -> tuple[int, ...]:
    placeholder = np.broadcast_to(np.zeros((), np.int8), variable.get_value().shape)
    return leaves.to_torch(flax_name, placeholder).shape


def _lossy(name: str, array: np.ndarray, target: np.dtype) -> list[str]:
    if np.issubdtype(array.dtype, np.integer) and np.issubdtype(target, np.integer):
        fits = bool(np.all(array.astype(target).astype(array.dtype) == array))
    else:
        fits = is_lossless(array.dtype, target)
    return [] if fits else [f"dtype: {name} is {array.dtype}, the model holds {target}"]


def _fill(variable: "nnx.Variable[Any]", array: np.ndarray) -> None:
    import jax

    old = variable.get_value()
    is_placed = isinstance(old, jax.Array) and old.committed
    array = _detached(array, np.dtype(old.dtype))
    placed = jax.device_put(array, old.sharding if is_placed else None)
    variable.set_value(jax.block_until_ready(placed))


def _detached(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """An array that JAX may keep: JAX shares the memory of an array in C order, so that is copied.

    JAX itself copies any other array, in less time than NumPy.
    """
    return array.astype(dtype, order="K", copy=array.flags.c_contiguous)
