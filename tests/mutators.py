"""Small files of every form, and ways to damage them: bytes, numbers, structure, directories."""

import io
import json
import pickle
import random
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import msgpack
import numpy as np
import torch

from convert.files import Weights, write_weights
from convert.weights import encode_description
from resnet_spec import ClassifierSpec, ResNetSpec

_SPEC = ResNetSpec("basic", (1,), (2,), 2, in_planes=1, small_images=True)
_CLASSIFIER = ClassifierSpec(_SPEC, 2)
_NUMBERS = (0, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40)
_NUMBERS = (*_NUMBERS, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_TEXTS = [str(n).encode() for n in _NUMBERS] + [b"-1", b"1e999", b"NaN", b"9" * 5000, b"[" * 3000]
_JUNK: list[Any] = [None, True, -1, 0.5, 2**70, "", "F32", "I64", [], {}, [[]], "../../e", "\0"]
_ZIP_SIGNATURES = (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06")


def base_files() -> dict[str, list[tuple[str, bytes]]]:
    """(suffix, content) of whole files, by kind."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        name: np.array(3) if shape == () else rng.standard_normal(shape).astype(np.float32)
        for name, shape in _CLASSIFIER.tensors().items()
    }
    arrays |= {name: abs(array) for name, array in arrays.items() if name.endswith("running_var")}
    files: dict[str, list[tuple[str, bytes]]] = {"safetensors": [], "npz": [], "pt": []}
    with tempfile.TemporaryDirectory() as folder:
        for kind, found in files.items():
            path = Path(folder) / f"m.{kind}"
            write_weights(path, Weights(arrays, _CLASSIFIER))
            found.append((path.suffix, path.read_bytes()))
    compressed, legacy, wrapped = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez_compressed(compressed, **arrays)
    state = {f"module.{name}": torch.from_numpy(array) for name, array in arrays.items()}
    torch.save(state, legacy, _use_new_zipfile_serialization=False)
    torch.save({"state_dict": state, "epoch": 3, "best": torch.tensor(0.5)}, wrapped)
    files["npz"].append((".npz", compressed.getvalue()))
    files["pt"] += [(".pth", legacy.getvalue()), (".th", wrapped.getvalue())]
    files["msgpack"] = [
        (".msgpack", bytes(msgpack.packb({"params": arrays}, default=_as_flax) or b""))
    ]
    files["hdf5"] = _keras_files(arrays)
    files["pickle"] = [
        (".pkl", pickle.dumps({"model": arrays, "__author__": "a"}, 4)),
        (".pdparams", pickle.dumps({n: (n, array) for n, array in arrays.items()}, 2)),
    ]
    return files


def _as_flax(array: np.ndarray) -> msgpack.ExtType:
    """An array as `flax.serialization` packs it; its JAX would not bear the fuzzer's forks."""
    parts = (array.shape, array.dtype.name, array.tobytes())
    return msgpack.ExtType(1, msgpack.packb(parts))


def _keras_files(arrays: dict[str, np.ndarray]) -> list[tuple[str, bytes]]:
    """HDF5 as Keras 3 and as older releases group it, and an archive around the first."""
    new, old, archive = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with h5py.File(new, "w") as file:
        for number, (name, array) in enumerate(arrays.items()):
            file[f"layers/conv2d_{number}/vars/0"] = array
            file[f"layers/conv2d_{number}/vars"].attrs["name"] = name
    with h5py.File(old, "w") as file:
        for name, array in arrays.items():
            file[f"model_weights/{name}/{name}/kernel:0"] = array
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("metadata.json", "{}")
        file.writestr("model.weights.h5", new.getvalue())
    contents = {".h5": new, ".hdf5": old, ".keras": archive}
    return [(suffix, content.getvalue()) for suffix, content in contents.items()]


def description() -> Any:
    """The description in those files, as JSON."""
    (text,) = encode_description(Weights({}, _CLASSIFIER)).values()
    return json.loads(text)


def with_header(header: str | bytes, data: bytes) -> bytes:
    """A safetensors file around a header."""
    header = header.encode("utf-8", "surrogatepass") if isinstance(header, str) else header
    return struct.pack("<Q", len(header)) + header + data


def split_header(content: bytes) -> tuple[Any, bytes]:
    """The header of a whole safetensors file, as JSON, and its data."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def mutate_bytes(rng: random.Random, content: bytes) -> bytes:
    """One to four damages that know nothing of the form."""
    damaged = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        if not damaged:
            break
        at = rng.randrange(len(damaged))
        length = rng.choice((1, 2, 4, 8, 64))
        match rng.randrange(8):
            case 0:
                damaged[at] ^= 1 << rng.randrange(8)
            case 1:
                damaged[at : at + length] = rng.randbytes(length)
            case 2:
                damaged[at:at] = rng.randbytes(length)
            case 3:
                del damaged[at : at + length]
            case 4:
                del damaged[at:]
            case 5:
                damaged[at:at] = damaged[rng.randrange(len(damaged)) :][:length]
            case 6:
                _put_number(rng, damaged, at)
            case 7:
                _replace_digits(rng, damaged, at)
    return bytes(damaged)


def _put_number(rng: random.Random, damaged: bytearray, at: int) -> None:
    size = rng.choice((1, 2, 4, 8))
    number = rng.choice(_NUMBERS) & (2 ** (8 * size) - 1)
    damaged[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))


def _replace_digits(rng: random.Random, damaged: bytearray, start: int) -> None:
    """The next number in text becomes an extreme one."""
    for at in range(start, len(damaged)):
        if chr(damaged[at]).isdigit() and damaged[at] < 128:
            end = at
            while end < len(damaged) and 48 <= damaged[end] < 58:
                end += 1
            damaged[at:end] = rng.choice(_TEXTS)
            return


def mutate_json(rng: random.Random, value: Any) -> str:
    """One to three changes of the structure, as text, with a name twice now and then."""
    for _ in range(rng.randint(1, 3)):
        value = _mutate_node(rng, value)
    text = json.dumps(value)
    if isinstance(value, dict) and value and rng.random() < 0.2:
        name = rng.choice(list(value))
        text = f"{{{json.dumps(name)}: {json.dumps(rng.choice(_JUNK))}, {text[1:]}"
    return text


def _mutate_node(rng: random.Random, value: Any) -> Any:
    is_container = isinstance(value, dict | list) and value
    if not is_container or rng.random() < 0.1:
        numbers = [rng.choice(_NUMBERS), -rng.choice(_NUMBERS)]
        return rng.choice([*numbers, *_JUNK, [value] * 3, {"a": value}, [value, [value]]])
    key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    copy: Any = value.copy()
    match rng.randrange(6):
        case 0:
            del copy[key]
        case 1 if isinstance(value, dict):
            copy[rng.choice(["", "a", "../../e", "__metadata__", "dtype"])] = copy.pop(key)
        case 2 if isinstance(value, list):
            copy = copy * rng.choice((2, 100))
        case _:
            copy[key] = _mutate_node(rng, value[key])
    return copy


def mutate_zip(rng: random.Random, content: bytes) -> bytes:
    """Damage to the directory, or to a member, packed again with a sound checksum."""
    if rng.random() < 0.4:
        damaged = bytearray(content)
        signature = rng.choice(_ZIP_SIGNATURES)
        places = [i for i in range(len(content)) if content.startswith(signature, i)]
        if places:
            _put_number(rng, damaged, rng.choice(places) + rng.randrange(4, 46))
        return bytes(damaged)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    chosen = rng.randrange(len(members))
    if rng.random() < 0.6:  # where the structure is
        chosen = next((i for i, m in enumerate(members) if m[0].endswith("data.pkl")), chosen)
    name, member = members[chosen]
    names = ["../../e.npy", "/etc/x.npy", "", "data.pkl", "a/constants.pkl", name.upper()]
    edits: list[Callable[[], Any]] = [
        lambda: members.pop(chosen),
        lambda: members.__setitem__(chosen, (rng.choice(names), member)),
        lambda: members.append((rng.choice(names), member)),
    ]
    if rng.random() < 0.3:
        rng.choice(edits)()
    else:
        members[chosen] = (name, mutate_bytes(rng, member))
    packed = io.BytesIO()
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, member in members:
            archive.writestr(zipfile.ZipInfo(name), member, method)
    return packed.getvalue()
