"""Files of weights: `.safetensors` and `.pt`, written whole or not at all, and checked."""

import collections
import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from convert.arrays import same_bits, to_numpy, to_tensor
from convert.atomic import replacing
from convert.errors import ConversionError
from convert.models import arrays_of, build_flax, build_torch, check, describe
from convert.weights import Weights, decode_description, encode_description
from resnet_spec import Preprocessing

__all__ = ["SUFFIXES", "Weights", "load", "read_weights", "save", "write_weights"]

Visitor = Callable[[str, np.ndarray], None]  # what a reader does with each array in turn

SUFFIXES = (".safetensors", ".pt", ".pth")


def save(
    path: str | os.PathLike[str], model: Any, *, preprocessing: Preprocessing | None = None
) -> None:
    """Writes either twin, with its description, to a `.safetensors` or `.pt` file.

    The tensors have our names and torch's axes: torch's own loaders read them into the twin. The
    file appears whole, read back and compared, or not at all. `load_preprocessing` gives the
    preprocessing back.

    Raises:
        ConversionError: the model cannot be described (own blocks, own head) or is not what it
            was built as, the preprocessing is of another number of channels or classes, the
            suffix is unknown, or what was written reads back otherwise.
        OSError: the file cannot be written.
    """
    classifier, arrays = describe(model), arrays_of(model)
    check(classifier, arrays)
    write_weights(Path(path), Weights(arrays, classifier, preprocessing))


def load(path: str | os.PathLike[str], backend: Literal["torch", "flax"]) -> Any:
    """The model of a file that `save` wrote, in eval mode, as a torch or a Flax twin.

    Raises:
        ConversionError: the file is damaged, does not describe its model, or its tensors are not
            the ones of the model it describes.
        OSError: the file cannot be read.
        ValueError: the backend is unknown.
    """
    if backend not in ("torch", "flax"):
        raise ValueError(f"backend is 'torch' or 'flax', not {backend!r}")
    weights = read_weights(Path(path))
    if weights.classifier is None:
        raise ConversionError(
            f"{path} does not say which model it holds: name its layout and model, as in "
            "`resnet-convert import FILE --layout torchvision --model ResNet50 -o OUT`"
        )
    build = build_torch if backend == "torch" else build_flax
    try:
        return build(weights.classifier, weights.arrays)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error


def write_weights(path: Path, weights: Weights) -> None:
    """Writes arrays and their description; see `save`."""
    weights.check_preprocessing()
    write, read = _WRITERS[_suffix(path)], _READERS[_suffix(path)]
    same: set[str] = set()

    def compare(name: str, array: np.ndarray) -> None:
        if name in weights.arrays and same_bits(array, weights.arrays[name]):
            same.add(name)

    with replacing(path) as temporary:
        try:
            write(temporary, weights)
        except OSError:
            raise
        except Exception as error:  # both libraries have errors of their own for a full disk
            raise OSError(f"{path} cannot be written: {error}") from error
        description = read(temporary, compare)
        wrong = sorted(set(weights.arrays) - same)
        if wrong or Weights({}, **description) != dataclasses.replace(weights, arrays={}):
            raise ConversionError(f"{path} reads back otherwise than written:", wrong)


def read_weights(path: Path, *, suffix: str | None = None) -> Weights:
    """Arrays by name, and their description where the file has one.

    Args:
        path: the file.
        suffix: of the format that it is in, where its own name does not tell.

    Raises:
        ConversionError: the suffix is unknown or the file is damaged.
        OSError: the file cannot be read.
    """
    read = _READERS[suffix or _suffix(path)]
    with path.open("rb"):  # a clear FileNotFoundError or PermissionError before any parser
        pass
    arrays: dict[str, np.ndarray] = {}
    description = read(path, arrays.__setitem__)
    return Weights(arrays, **description)


def _suffix(path: Path) -> str:
    if path.suffix not in SUFFIXES:
        raise ConversionError(f"{path}: weights are in {', '.join(SUFFIXES)} files")
    return path.suffix


def _write_safetensors(path: Path, weights: Weights) -> None:
    from safetensors.numpy import save_file

    metadata = {"format": "pt", **encode_description(weights)}
    # save_file writes the memory of an array as it lies, whatever its strides are
    arrays = {name: np.asarray(array, order="C") for name, array in weights.arrays.items()}
    save_file(arrays, path, metadata=metadata)


def _read_safetensors(path: Path, visit: Visitor) -> dict[str, Any]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="np", backend="pread") as file:
            names = list(file.keys())
            for name in names:
                visit(name, file.get_tensor(name))
            metadata = file.metadata()
    except Exception as error:  # of several kinds for damaged headers and unknown dtypes
        raise ConversionError(f"{path} is not a whole safetensors file: {error}") from error
    return decode_description(path, metadata, len(names))


def _write_torch(path: Path, weights: Weights) -> None:
    import torch

    tensors = {name: to_tensor(array) for name, array in weights.arrays.items()}
    state_dict: Any = collections.OrderedDict(tensors)
    state_dict._metadata = {"": encode_description(weights)}  # which `Module.state_dict` has, too
    torch.save(state_dict, path)


def _read_torch(path: Path, visit: Visitor) -> dict[str, Any]:
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        is_state_dict = isinstance(content, Mapping) and all(map(torch.is_tensor, content.values()))
        if is_state_dict:
            for name, tensor in content.items():
                visit(name, to_numpy(tensor))
    except Exception as error:  # of a dozen kinds for damaged, hostile and unusual files
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConversionError(f"{path} is not a whole file of plain tensors: {reason}") from error
    if not is_state_dict:
        raise ConversionError(f"{path} does not hold a state dict, a mapping of names to tensors")
    metadata: Any = getattr(content, "_metadata", None)
    own = metadata.get("") if isinstance(metadata, Mapping) else None
    return decode_description(path, own, len(content))


_READERS: dict[str, Callable[[Path, Visitor], dict[str, Any]]] = {
    ".safetensors": _read_safetensors,
    ".pt": _read_torch,
    ".pth": _read_torch,
}
_WRITERS: dict[str, Callable[[Path, Weights], None]] = {
    ".safetensors": _write_safetensors,
    ".pt": _write_torch,
    ".pth": _write_torch,
}
