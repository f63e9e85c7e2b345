"""NumPy arrays from and to torch tensors, bit for bit, bfloat16 too."""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from convert.errors import ConversionError

try:
    from zlib_ng.zlib_ng import crc32
except ImportError:  # `pip install --no-deps` leaves it out; zlib takes four times as long
    from zlib import crc32

if TYPE_CHECKING:
    import torch

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_COLUMNS = 16  # copied at once
_COUNTER = "num_batches_tracked"
_VARIANCES = ("running_var", "var", "moving_variance")


def to_numpy(value: Any) -> np.ndarray:
    """An array that shares the memory of `value` where it can: a torch, JAX or NumPy array."""
    if type(value).__module__.partition(".")[0] != "torch":
        array = np.asarray(value)
        return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    import torch

    tensor: torch.Tensor = value.detach().cpu()
    if tensor.dtype == torch.bfloat16:  # which torch cannot hand to NumPy
        return tensor.view(torch.int16).numpy().view(BFLOAT16)
    return tensor.numpy()


def check_mapping(tensors: Any) -> None:
    """Raises a ConversionError for what is neither a state dict nor a tree."""
    if not isinstance(tensors, Mapping):
        raise ConversionError(
            f"a state dict is a mapping of names to tensors, not a {type(tensors).__name__}"
        )


def as_arrays(tensors: Any) -> dict[Any, np.ndarray]:
    """A state dict's tensors as arrays that share their memory where they can.

    Raises:
        ConversionError: it is no mapping, or NumPy cannot hold some values (sparse or 8-bit
            tensors, shapes alone, dictionaries): all of them are named.
    """
    check_mapping(tensors)
    arrays, problems = {}, []
    for name, tensor in tensors.items():
        try:
            arrays[name] = to_numpy(tensor)
            if arrays[name].dtype.kind == "O":
                raise TypeError(f"it is a {type(tensor).__name__}")
        except (TypeError, RuntimeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            problems.append(f"{name} is not an array of numbers: {reason}")
    if problems:
        raise ConversionError("these are not weights:", problems)
    return arrays


def to_tensor(array: np.ndarray) -> "torch.Tensor":
    """A tensor with its own memory."""
    import torch

    copy = np.array(array, order="C")  # never the immutable buffer of a JAX array
    if copy.dtype == BFLOAT16:
        return torch.from_numpy(copy.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(copy)


def is_floating(dtype: np.dtype) -> bool:
    """Whether a dtype is one of the floating-point dtypes that both frameworks have."""
    return dtype in (BFLOAT16, np.float16, np.float32, np.float64)


def is_lossless(source: np.dtype, target: np.dtype) -> bool:
    """Whether `target` can hold every floating-point value of `source` exactly."""
    if source == target:
        return True
    if BFLOAT16 in (source, target):
        return source == BFLOAT16 and target in (np.float32, np.float64)
    return np.can_cast(source, target, "safe")


def in_order(array: np.ndarray, memory: np.ndarray | None = None) -> np.ndarray:
    """The array if it is in C order, else a copy in C order, in `memory` where that is given."""
    if array.flags.c_contiguous:
        return array
    if memory is None:
        memory = np.empty(array.nbytes, np.uint8)
    copy = memory[: array.nbytes].view(array.dtype).reshape(array.shape)
    if array.ndim < 2:
        copy[...] = array
        return copy
    # A few columns stay in the processor's cache: two thirds of the time for a transposed kernel.
    for start in range(0, array.shape[1], _COLUMNS):
        copy[:, start : start + _COLUMNS] = array[:, start : start + _COLUMNS]
    return copy


def as_bytes(array: np.ndarray, memory: np.ndarray | None = None) -> memoryview:
    """An array's memory in C order; no copy if it is in that order already."""
    return in_order(array, memory).reshape(-1).view(np.uint8).data


def checksum(array: np.ndarray) -> int:
    """The CRC-32 of an array's bytes in C order."""
    return crc32(as_bytes(array))


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of parameters and statistics under our names, whatever order they are in.

    Counters of batches are left out: files of Flax have none.
    """
    total = hashlib.sha256()
    for name in sorted(name for name in arrays if not is_counter(name)):
        array = arrays[name]
        total.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        total.update(as_bytes(array))
    return total.hexdigest()


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    """Equal shape, dtype and bytes: NaNs count as equal, 0 and -0 as different."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.dtype.itemsize in (1, 2, 4, 8):  # without a copy, whatever the strides are
        bits = f"u{one.dtype.itemsize}"
        return bool(np.array_equal(one.view(bits), other.view(bits)))
    one, other = (np.ravel(array, order="C").view(np.uint8) for array in (one, other))
    return bool(np.array_equal(one, other))


def value_problems(name: str, array: np.ndarray, *, allow_nonfinite: bool = False) -> list[str]:
    """A sentence if an array is empty or has NaN, infinite values or negative variances."""
    if array.size == 0:
        return [f"empty: {name} {array.shape} has no value"]
    if allow_nonfinite or not (is_floating(array.dtype) or array.dtype.kind == "c"):
        return []
    is_finite = np.isfinite(array)
    if is_finite.all():
        if not _is_variance(name) or array.dtype.kind == "c" or not (array < 0).any():
            return []
        return [f"negative: {name} has {np.count_nonzero(array < 0)} variances below zero"]
    nans = int(np.count_nonzero(np.isnan(array)))
    infinities = array.size - int(np.count_nonzero(is_finite)) - nans
    return [f"non-finite: {name} has {nans} NaN and {infinities} infinite of {array.size} values"]


def _is_variance(name: str) -> bool:
    """Whether it is a BatchNorm's running variance, by torch's name, Flax's, Keras's or Haiku's."""
    name = name.replace("/", ".")
    return name.rpartition(".")[2] in _VARIANCES or name.endswith("var_ema.average")


def is_counter(name: str) -> bool:
    """Whether an array counts the batches that a BatchNorm has seen."""
    return name.endswith(_COUNTER)


def is_count(array: np.ndarray | None) -> bool:
    """Whether an array is a count of batches as torch has it, a single int64."""
    return array is not None and array.shape == () and array.dtype == np.int64


def counters_reset(arrays: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray]) -> list[str]:
    """A note on the number of counters that are zero because `given` has no count for them."""
    num_counts = sum(is_counter(name) and is_count(array) for name, array in given.items())
    num_reset = sum(map(is_counter, arrays)) - num_counts
    return [f"taken as zero: {num_reset} {_COUNTER}, missing or no int64"] if num_reset > 0 else []


def dtype_problems(name: str, array: np.ndarray) -> list[str]:
    """A sentence if weights are not floating-point, or a counter of batches is not int64."""
    if is_counter(name) and array.dtype != np.int64:
        return [f"dtype: {name} should be int64, is {array.dtype}"]
    if not is_counter(name) and not is_floating(array.dtype):
        return [f"dtype: {name} should be floating-point, is {array.dtype}"]
    return []


def array_problems(arrays: Mapping[str, np.ndarray], allow_nonfinite: bool = False) -> list[str]:
    """Every problem of the dtypes and values of weights, a sentence each."""
    problems: list[str] = []
    for name, array in arrays.items():
        problems += dtype_problems(name, array)
        problems += value_problems(name, array, allow_nonfinite=allow_nonfinite)
    return problems


def compare_shapes(
    expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """A sentence for every name that is missing, left over or misshapen."""
    missing = [f"missing: {name} {shape}" for name, shape in expected.items() if name not in given]
    left_over = [
        f"left over: {name} {shape}" for name, shape in given.items() if name not in expected
    ]
    misshapen = [
        f"shape: {name} should be {shape}, is {given[name]}"
        for name, shape in expected.items()
        if name in given and given[name] != shape
    ]
    return [*missing, *left_over, *misshapen]
