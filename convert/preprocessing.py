"""The preprocessing that a file of weights carries, read without its weights."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.errors import ConversionError
from convert.weights import decode_description
from resnet_spec import Preprocessing

_Metadata = tuple[Mapping[str, Any], int]  # and the number of tensors beside it


def load_preprocessing(path: str | os.PathLike[str]) -> Preprocessing | None:
    """What a file says of its preprocessing, None where it says nothing; no weights are read.

    Raises:
        ConversionError: the suffix is unknown, or the file or its description is damaged.
        OSError: the file cannot be read.
    """
    path = Path(path)
    if path.suffix not in _READERS:
        raise ConversionError(f"{path}: preprocessing is in {', '.join(_READERS)} files")
    with path.open("rb"):  # a clear FileNotFoundError or PermissionError before any parser
        pass
    try:
        metadata, num_tensors = _READERS[path.suffix](path)
    except Exception as error:  # of a dozen kinds for damaged and hostile files
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConversionError(f"{path} is not a whole file of weights: {reason}") from error
    return decode_description(path, metadata, num_tensors).get("preprocessing")


def _of_safetensors(path: Path) -> _Metadata:
    from safetensors import safe_open

    with safe_open(path, framework="np", backend="pread") as file:
        return file.metadata() or {}, len(list(file.keys()))


def _of_torch(path: Path) -> _Metadata:
    import torch

    # Tensors on the device "meta" have shapes, and no memory to read into.
    content = torch.load(path, map_location="meta", weights_only=True)
    metadata: Any = getattr(content, "_metadata", None)
    own = metadata.get("") if isinstance(metadata, Mapping) else None
    return (own if isinstance(own, Mapping) else {}), len(content)


_READERS = {
    ".safetensors": _of_safetensors,
    ".pt": _of_torch,
    ".pth": _of_torch,
}
