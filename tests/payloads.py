"""Pickles that run code, each of which would make a canary file, and files around them.

`pickle.loads(PAYLOADS[name](canary))` does run it: a test does so, in a process of its own, to
know that what the converter refuses is alive. Importing this module runs nothing.
"""

import builtins
import codecs
import functools
import io
import operator
import os
import pickle
import runpy
import subprocess
import time
import timeit
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._tensor import _rebuild_from_type_v2

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class _Call:
    """Pickles as a call of `function`, which may be such a call itself."""

    def __init__(self, function: Any, *arguments: Any):
        self.reduced = (function, arguments)

    def __call__(self) -> None:
        raise AssertionError("only pickle asks whether this can be called")

    def __reduce__(self) -> Any:
        return self.reduced


def _shell(canary: Path) -> str:
    return f"touch '{canary}'"


def _python(canary: Path) -> str:
    return f"open({str(canary)!r}, 'w').close()"


def _object_array(canary: Path) -> np.ndarray:
    array = np.empty(1, object)
    array[0] = _Call(os.system, _shell(canary))
    return array


def _numpy_load(canary: Path) -> Any:
    inner = io.BytesIO()
    np.save(inner, _object_array(canary), allow_pickle=True)
    return _Call(np.load, _Call(io.BytesIO, inner.getvalue()), None, True)


def _torch_load(canary: Path) -> Any:
    inner = legacy(pickle.dumps(_Call(os.system, _shell(canary)), 2))
    return _Call(torch.storage._load_from_bytes, inner)


def _attrgetter(canary: Path) -> Any:
    module = _Call(builtins.__import__, "os")
    return _Call(_Call(operator.attrgetter("system"), module), _shell(canary))


def _codec(canary: Path) -> Any:
    return _Call(eval, _Call(codecs.decode, codecs.encode(_python(canary), "rot13"), "rot13"))


def _rebuild(canary: Path) -> Any:
    """One that torch's own list of harmless functions has, and that calls what it is given."""
    return _Call(_rebuild_from_type_v2, os.system, torch.Tensor, (_shell(canary),), 0)


_OBJECTS: dict[str, Callable[[Path], Any]] = {
    "os.system": lambda c: _Call(os.system, _shell(c)),
    "eval": lambda c: _Call(eval, _python(c)),
    "exec": lambda c: _Call(exec, _python(c)),
    "import and getattr": lambda c: _Call(
        _Call(getattr, _Call(builtins.__import__, "os"), "system"), _shell(c)
    ),
    "subprocess.Popen": lambda c: _Call(subprocess.Popen, ["touch", str(c)]),
    "object array": _object_array,
    "numpy.load": _numpy_load,
    "functools.partial": lambda c: _Call(_Call(functools.partial, os.system, _shell(c))),
    "functools.reduce": lambda c: _Call(functools.reduce, operator.call, [_shell(c)], os.system),
    "operator.attrgetter": _attrgetter,
    "operator.methodcaller": lambda c: _Call(
        _Call(operator.methodcaller, "system", _shell(c)), _Call(builtins.__import__, "os")
    ),
    "map": lambda c: _Call(list, _Call(map, os.system, [_shell(c)])),
    "torch.load": _torch_load,
    "torch's rebuilding": _rebuild,
    "runpy": lambda c: _Call(runpy._run_code, _python(c), {}),  # type: ignore[attr-defined]
    "timeit": lambda c: _Call(timeit.timeit, _python(c), "pass", time.perf_counter, 1),
    "codecs": _codec,
}


def _in_a_state_dict(make: Callable[[Path], Any], protocol: int) -> Callable[[Path], bytes]:
    return lambda canary: pickle.dumps({"epoch": 3, "state_dict": {"w": make(canary)}}, protocol)


PAYLOADS: dict[str, Callable[[Path], bytes]] = {
    **{name: _in_a_state_dict(make, 2) for name, make in _OBJECTS.items()},
    # names built on the stack, and the opcode that imports and calls at once
    "protocol 4": _in_a_state_dict(_OBJECTS["os.system"], 4),
    "opcode INST": lambda c: f"(S{_shell(c)!r}\nios\nsystem\n.".encode(),
}


def zipped(payload: bytes) -> bytes:
    """What `torch.save` writes, around a pickle of one's own."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        members = {"data.pkl": payload, "byteorder": b"little", "version": b"3\n"}
        for name, member in members.items():
            archive.writestr(f"archive/{name}", member)
    return content.getvalue()


def legacy(payload: bytes) -> bytes:
    """What `torch.save` wrote before 1.6: five pickles one after the other."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    before, after = (_LEGACY_MAGIC, 1001, system), []
    return b"".join(pickle.dumps(p, 2) for p in before) + payload + pickle.dumps(after, 2)


def bare(payload: bytes) -> bytes:
    """The pickle alone."""
    return payload


def object_npz(canary: Path) -> bytes:
    """`numpy.load(..., allow_pickle=True)["w"]` runs it."""
    content = io.BytesIO()
    np.savez(content, w=_object_array(canary))
    return content.getvalue()


def npy_with_header(header: str, data: bytes = b"") -> bytes:
    """A `.npz` of one array with a header of one's own, which Python 2's NumPy evaluated."""
    text = header.encode() + b"\n"
    array = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("w.npy", array)
    return content.getvalue()


def header_npz(canary: Path) -> bytes:
    """`eval` of the header runs it."""
    return npy_with_header(f"{{'descr': '<f4', 'shape': {_python(canary)} or ()}}", bytes(4))
