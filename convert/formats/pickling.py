"""The pickle of a state dict as `torch.save` writes it, made without torch, in few opcodes."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from convert.errors import ConversionError
from convert.formats.pickles import STORAGES, Tensor

_MOST_REMEMBERED = 256  # numbers of a byte
_STORAGE_OF = {dtype: kind for kind, dtype in STORAGES.items() if "Untyped" not in kind}


def write_pickle(tensors: Iterable[tuple[str, Tensor]], metadata: Mapping[str, str]) -> bytes:
    """An ordered dictionary of tensors, and text where a module's state dict has its metadata."""
    writer = _Writer()
    writer.put(b"\x80\x02", writer.new_dictionary(), b"(")
    for name, tensor in tensors:
        writer.put(_text(name), writer.tensor(tensor))
    entry = b"".join((writer.new_dictionary(), b"(", _text(""), writer.texts(metadata), b"u"))
    writer.put(b"u", b"}", _text("_metadata"), entry, b"s", b"b.")
    return b"".join(writer.parts)


@dataclass
class _Writer:
    """The opcodes so far, and the number under which each repeated value is remembered."""

    parts: list[bytes] = field(default_factory=list)
    memo: dict[bytes, bytes] = field(default_factory=dict)

    def put(self, *parts: bytes) -> None:
        self.parts += parts

    def once(self, opcodes: bytes) -> bytes:
        """The opcodes of a value the first time, and afterwards only its number."""
        if opcodes in self.memo:
            return self.memo[opcodes]
        if len(self.memo) == _MOST_REMEMBERED:
            return opcodes
        number = bytes([len(self.memo)])
        self.memo[opcodes] = b"h" + number
        return opcodes + b"q" + number

    def called(self, name: str) -> bytes:
        """A function or a class by its full name."""
        return self.once(_global(name))

    def new_dictionary(self) -> bytes:
        return self.called("collections.OrderedDict") + b")R"

    def texts(self, texts: Mapping[str, str]) -> bytes:
        return b"".join((b"}(", *(_text(t) for item in texts.items() for t in item), b"u"))

    def tensor(self, tensor: Tensor) -> bytes:
        storage = tensor.storage
        if storage.dtype not in _STORAGE_OF:
            raise ConversionError(f"torch's files have no name for {storage.dtype}")
        return b"".join(
            (
                self.called("torch._utils._rebuild_tensor_v2"),
                b"((",
                self.once(_text("storage")),
                self.called(_STORAGE_OF[storage.dtype]),
                _text(storage.key),
                self.once(_text("cpu")),
                _number(storage.numel),
                b"tQ",
                _number(tensor.offset),
                self.once(_numbers(tensor.shape)),
                self.once(_numbers(tensor.strides)),
                b"\x89",  # no gradient is asked for
                self.new_dictionary(),  # no hooks
                b"tR",
            )
        )


@functools.cache
def _global(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def _text(text: str) -> bytes:
    content = text.encode("utf-8", "surrogatepass")
    return b"X" + len(content).to_bytes(4, "little") + content


def _number(value: int) -> bytes:
    if value < 2**8:
        return b"K" + value.to_bytes(1, "little")
    if value < 2**31:
        return b"J" + value.to_bytes(4, "little")
    return b"\x8a\x08" + value.to_bytes(8, "little")


@functools.lru_cache(_MOST_REMEMBERED)
def _numbers(values: tuple[int, ...]) -> bytes:
    return b"".join((b"(", *map(_number, values), b"t"))
