"""The msgpack of `flax.serialization`: `checkpoint_100`, `flax_model.msgpack`, a tree of arrays.

Arrays are called by their path in the tree: `params/conv_init/kernel`.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from convert.arrays import BFLOAT16
from convert.errors import ConversionError
from convert.formats.form import Contents, Visitor

# Flax's codes of what msgpack does not have: an array, and a single number of NumPy's.
_ARRAY, _NUMBER = 1, 3
_IN_CHUNKS = "__msgpack_chunked_array__"  # how Flax divides arrays of more than 1 GB
_MOST_ENTRIES = 200_000  # each takes some 200 bytes in memory


def read(path: Path, visit: Visitor) -> Contents:
    """Visits every array and number of the tree.

    Raises:
        ConversionError: the file is damaged, or no tree of arrays.
    """
    import msgpack

    num_entries = 0

    def as_dict(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        nonlocal num_entries
        num_entries += len(pairs)
        if num_entries > _MOST_ENTRIES:
            raise ValueError(f"more than {_MOST_ENTRIES} entries")
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError(f"a name that is there twice, among {[key for key, _ in pairs][:4]}")
        return dict(pairs)

    left_out: list[str] = []
    try:
        tree = msgpack.unpackb(
            path.read_bytes(),
            object_pairs_hook=as_dict,
            ext_hook=_array,
            max_array_len=1024,
            strict_map_key=False,  # NNX counts the layers of a list
        )
        for name, leaf in _leaves(tree, ()):
            if isinstance(leaf, np.ndarray):
                visit(name, leaf)
            elif isinstance(leaf, bool | int | float):
                visit(name, np.asarray(leaf))
            elif leaf is not None:
                left_out.append(name)
    except Exception as error:  # of several kinds for damaged and hostile files
        reason = str(error) or type(error).__name__
        raise ConversionError(f"{path} is not a whole msgpack file of Flax: {reason}") from error
    return Contents({}, notes=tuple(f"left out: {name}, which is no array" for name in left_out))


def _leaves(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, dict) or (not path and not tree):
        if not path:
            raise ValueError("it is no tree with names")
        yield "/".join(path), tree
        return
    if _IN_CHUNKS in tree:
        raise ValueError(f"{'/'.join(path)} is an array in several parts, of more than 1 GB")
    for key, inner in tree.items():
        if not isinstance(key, str | int):
            raise ValueError(f"{str(key)[:60]} is no name")
        yield from _leaves(inner, (*path, str(key)))


def _array(code: int, data: bytes) -> np.ndarray:
    """What Flax packs as an extension: shape, dtype and bytes."""
    import msgpack

    if code not in (_ARRAY, _NUMBER):
        raise ValueError(f"a value of the unknown kind {code}")
    shape, dtype_name, content = msgpack.unpackb(data, raw=True)
    dtype = BFLOAT16 if dtype_name == b"bfloat16" else np.dtype(dtype_name.decode())
    if dtype.kind not in "fiubcV" or dtype.hasobject or (dtype.kind == "V" and dtype != BFLOAT16):
        raise ValueError(f"an array of {dtype}")
    if not isinstance(shape, list) or math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"{len(content)} bytes for {dtype} {shape}")
    return np.frombuffer(content, dtype).reshape(shape)
