"""Pickles of plain tensors, read and written without `pickle`: nothing is imported or called.

A function or class that a pickle asks for stays a name. Those that tensors and their containers
need are carried out here, on descriptions of tensors; all others are listed.
"""

import functools
import io
import pickletools
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from convert.errors import ConversionError

# Bytes. An object may take 20 times the memory of its opcodes; 50,000 tensors fit.
LARGEST_PICKLE = 2**23
_MOST_AXES = 64  # as NumPy has
_LONG = 2**10  # bytes of a text that may be an array's
_LAST_OF_LATIN_1 = 0xC3  # the largest byte of such text in UTF-8
_MOST_OBJECTS = 2**20  # containers, tensors and remembered values: some 100 bytes each

_KINDS = "Double Float Half BFloat16 Long Int Short Char Byte Bool ComplexDouble ComplexFloat"
_DTYPES = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex128 complex64"
STORAGES = {
    **{f"torch.{k}Storage": d for k, d in zip(_KINDS.split(), _DTYPES.split(), strict=True)},
    "torch.storage.UntypedStorage": "uint8",
}

_NUMPY = ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
_LIGHTNINGS = (
    *("pytorch_lightning.utilities.parsing", "lightning_fabric.utilities.data"),
    "lightning.fabric.utilities.data",
)
_OMEGACONFS = (
    *("dictconfig.DictConfig", "listconfig.ListConfig", "base.ContainerMetadata", "base.Metadata"),
    *(f"nodes.{kind}Node" for kind in ("Any", "Boolean", "Float", "Integer", "String")),
)
# Well-known classes without effect on the tensors: a file may name them beside its weights. None is
# created: each stays an `Unknown`, and is refused in place of a tensor.
HARMLESS = {
    "_codecs.encode",  # bytes, before protocol 3
    "argparse.Namespace",
    *(f"builtins.{n}" for n in ("bool", "bytearray", "complex", "dict", "float", "frozenset")),
    *(f"builtins.{n}" for n in ("int", "list", "range", "set", "slice", "str", "tuple", "xrange")),
    "collections.defaultdict",
    "collections.deque",
    *(f"datetime.{n}" for n in ("date", "datetime", "time", "timedelta", "timezone")),
    *(f"numpy.{core}.{name}" for core in ("core", "_core") for name in _NUMPY),
    "numpy.dtype",
    "numpy.ndarray",
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in _PATHS),
    # configurations, as Hydra, Lightning, MMEngine and others keep them
    "addict.addict.Dict",
    "easydict.EasyDict",
    *(f"{module}.AttributeDict" for module in _LIGHTNINGS),
    "mmcv.utils.config.ConfigDict",
    "mmengine.config.config.ConfigDict",
    "mmengine.logging.history_buffer.HistoryBuffer",
    *(f"omegaconf.{name}" for name in _OMEGACONFS),
    "typing.Any",
    "yacs.config.CfgNode",
    "torch.torch_version.TorchVersion",
    "torch.Size",
    "torch.device",
    "torch.nn.parameter.Parameter",
    "torch.storage.TypedStorage",
    *(f"torch.{dtype}" for dtype in _DTYPES.split()),
}

_MOST_REMEMBERED = 256  # numbers of a byte
_STORAGE_OF = {dtype: kind for kind, dtype in STORAGES.items() if "Untyped" not in kind}
_CONJUGATED = "a tensor is stored conjugated or negated: call .resolve_conj() or .resolve_neg()"


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a function or class, which is never imported."""

    name: str


@dataclass(slots=True, eq=False)
class Unknown:
    """An object of a class, or the result of a call, of this name: only pickle could make it.

    `state` holds its attributes, where the pickle gives them; of bytes, their content.
    """

    name: str
    state: Any = None
    arguments: Any = None


@dataclass(frozen=True, slots=True)
class Storage:
    """Memory in the file: `numel` values of what it calls `key`, from value `start` on."""

    dtype: str
    key: str
    numel: int
    start: int = 0


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage; all in numbers of values."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class StateDict(dict[Any, Any]):
    """An ordered dictionary, with the `_metadata` that a module's state dict has."""

    metadata: Any = None


def read_pickle(
    content: bytes,
    unsafe: set[str],
    position: int = 0,
    storages: dict[str, Storage] | None = None,
) -> tuple[Any, int]:
    """What one pickle holds, and where it ends.

    Args:
        content: the pickle, and what may follow.
        unsafe: collects the names of functions and classes that plain tensors do not need, even
            if the pickle turns out to be damaged.
        position: where it begins.
        storages: collects the storages by their keys, whole ones, not views of them.

    Raises:
        ValueError: it is damaged, or would take far too much memory.
    """
    machine = _Machine(content, unsafe, position, {} if storages is None else storages)
    try:
        return machine.run(), machine.position
    except (IndexError, KeyError, struct.error) as error:
        raise ValueError(f"the pickle is damaged at byte {machine.position}") from error


class _Machine:
    """Executes the opcodes of a pickle on its own stack and memo."""

    def __init__(
        self, content: bytes, unsafe: set[str], position: int, storages: dict[str, Storage]
    ):
        self.content, self.unsafe, self.position = content, unsafe, position
        self.storages = storages
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.num_objects = 0
        self.limit = position + 2 * LARGEST_PICKLE  # of opcodes, without long texts and bytes

    def run(self) -> Any:
        while (code := self.content[self.position]) != _STOP:
            self.position += 1
            if self.position > self.limit:
                raise ValueError(f"it has more than {2 * LARGEST_PICKLE} bytes beside its arrays")
            if step := _STEPS.get(code):
                step(self)
            else:
                self.follow(_OPCODES[code])
        self.position += 1
        return self.stack.pop()

    def take(self, size: int) -> bytes:
        """The next bytes."""
        start, self.position = self.position, self.position + size
        if self.position > len(self.content):
            raise IndexError
        return self.content[start : self.position]

    def number(self, form: struct.Struct) -> Any:
        value = form.unpack_from(self.content, self.position)[0]
        self.position += form.size
        return value

    def byte(self) -> int:
        self.position += 1
        return self.content[self.position - 1]

    def push_byte(self) -> None:
        """One of the two most common steps, with the next: they call nothing."""
        self.stack.append(self.content[self.position])
        self.position += 1

    def recall(self) -> None:
        self.stack.append(self.memo[self.content[self.position]])
        self.position += 1

    def count(self, num_objects: int = 1) -> None:
        self.num_objects += num_objects
        if self.num_objects > _MOST_OBJECTS:
            raise ValueError(f"it makes more than {_MOST_OBJECTS} objects")

    def push_new(self, value: Any) -> None:
        self.count()
        self.stack.append(value)

    def pop_to_mark(self) -> list[Any]:
        start = len(self.stack) - 1
        while self.stack[start] is not _MARK:
            start -= 1
            if start < 0:
                raise IndexError
        values = self.stack[start + 1 :]
        del self.stack[start:]
        return values

    def push_last(self, count: int) -> None:
        """Pushes a tuple of the last `count` values."""
        if len(self.stack) < count:
            raise IndexError
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.push_new(values)

    def remember(self, number: int) -> None:
        self.count()
        self.memo[number] = self.stack[-1]

    def push_string(self, length: int) -> None:
        text = self.take(length)
        if length > _LONG:  # bytes that an old protocol writes as text
            if max(text) > _LAST_OF_LATIN_1:
                raise ValueError("it holds a long text that is no array")
            self.limit += length
        self.stack.append(str(text, "utf-8", "surrogatepass"))

    def push_bytes(self, length: int) -> None:
        """Bytes, also those that Python 2 took for text: a view, of which nothing is copied."""
        start = self.position
        self.position += length
        self.limit += length
        if length < 0 or self.position > len(self.content):
            raise IndexError
        self.push_new(Unknown("bytes", memoryview(self.content)[start : self.position]))

    def push_old_string(self, length: int) -> None:
        if length > _LONG:
            self.push_bytes(length)
        elif length < 0:
            raise IndexError
        else:
            self.stack.append(str(self.take(length), "latin-1"))

    def push_global(self, module: Any, name: Any) -> None:
        if isinstance(module, str) and isinstance(name, str):
            dotted = f"{'builtins' if module == '__builtin__' else module}.{name}"
        else:
            dotted = "(a name that is computed)"
        if not (dotted in _CALLS or dotted in STORAGES or dotted in HARMLESS):
            self.unsafe.add(dotted)
        self.push_new(Global(dotted))

    def read_global(self) -> None:
        end = self.content.index(b"\n", self.content.index(b"\n", self.position) + 1)
        module, name = str(self.take(end - self.position), "utf-8").split("\n")
        self.position += 1
        self.push_global(module, name)

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(values)
        elif type(target) is not Unknown:
            raise ValueError(f"it appends to a {type(target).__name__}")

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) in (dict, StateDict):
            for key, value in zip(values[::2], values[1::2], strict=True):
                target[_as_key(key)] = value
        elif type(target) is not Unknown:
            raise ValueError(f"it sets items of a {type(target).__name__}")

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not Global:
            self.push_new(Unknown("a call"))
        elif function.name not in _CALLS:
            self.push_new(Unknown(function.name, arguments=arguments))
        elif type(arguments) is tuple:
            self.push_new(_CALLS[function.name](self, *arguments))
        else:
            raise ValueError(f"it calls {function.name} with a {type(arguments).__name__}")

    def build(self) -> None:
        """`__setstate__`, which sets a state dict's `_metadata`."""
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is StateDict and type(state) in (dict, StateDict):
            target.metadata = state.get("_metadata")
        elif type(target) is Unknown:
            target.state = state
        else:
            raise ValueError(f"it sets the state of a {type(target).__name__}")

    def load_storage(self) -> None:
        match self.stack.pop():
            case ("storage" | b"storage", Global(kind), key, _, int(numel), *view) if (
                kind in STORAGES and type(key) is str and numel >= 0
            ):
                whole = Storage(STORAGES[kind], key, numel)
                if self.storages.setdefault(key, whole) != whole:
                    raise ValueError(f"the memory {key[:50]!r} is of two kinds")
                if view and view[0] is not None:  # a part of it, as torch wrote before 1.6
                    _, start, numel = view[0]
                    if type(start) is not int or type(numel) is not int or min(start, numel) < 0:
                        raise ValueError("a part of a tensor's memory is not described as one")
                    self.push_new(Storage(whole.dtype, key, numel, start))
                else:
                    self.push_new(whole)
            case _:
                self.push_new(Unknown("a persistent object"))

    def follow(self, opcode: pickletools.OpcodeInfo) -> None:
        """Executes an opcode that torch does not write, by the standard library's table."""
        argument: Any = None
        if opcode.arg is not None:
            stream = io.BytesIO(self.content)
            stream.seek(self.position)
            argument = opcode.arg.reader(stream)
            self.position = stream.tell()
        num_popped = len(opcode.stack_before)
        if pickletools.markobject in opcode.stack_before:
            self.pop_to_mark()
            num_popped = opcode.stack_before.index(pickletools.markobject)
        for _ in range(num_popped):
            self.stack.pop()
        if opcode.name == "INST":
            self.push_global(*argument.split(" ", 1))
            self.stack.pop()
        for _ in opcode.stack_after:
            is_plain = type(argument) in (str, int, float, bool)
            self.push_new(argument if is_plain else Unknown(f"made by {opcode.name}"))


def _tensor(
    machine: _Machine, storage: Any, offset: Any, shape: Any, strides: Any, *more: Any
) -> Tensor:
    """`torch._utils._rebuild_tensor` and `_v2`: ..., requires_grad, hooks, metadata."""
    is_shaped = type(shape) is tuple and type(strides) is tuple and len(shape) == len(strides)
    if type(storage) is not Storage or not is_shaped:
        raise ValueError("a tensor is not described as one")
    if len(shape) > _MOST_AXES:  # the product of their sizes may take forever, too
        raise ValueError(f"a tensor has {len(shape)} axes")
    if any(type(n) is not int or not 0 <= n < 2**63 for n in (offset, *shape, *strides)):
        raise ValueError("a tensor has a size that is none")
    if len(more) > 2 and more[2]:
        raise ValueError(_CONJUGATED)
    return Tensor(storage, offset, shape, strides)


def _parameter(machine: _Machine, data: Any, *more: Any) -> Any:
    """`torch._utils._rebuild_parameter`: data, requires_grad, hooks."""
    return data


def _as_key(value: Any) -> Any:
    """A key of a dictionary; the hash of other values might take forever."""
    return value if type(value) in _KEYS else Unknown(type(value).__name__)


def _dictionary(machine: _Machine, pairs: Any = ()) -> StateDict:
    """`collections.OrderedDict`, and the `Counter` of a schedule's milestones."""
    made = StateDict()
    if type(pairs) not in (list, tuple, dict, StateDict):
        raise ValueError(f"a dictionary is made of a {type(pairs).__name__}")
    machine.count(len(pairs))  # a call for each of many may ask for copies of copies
    for key, value in pairs.items() if isinstance(pairs, dict) else pairs:
        made[_as_key(key)] = value
    return made


def _encode(machine: _Machine, text: Any, encoding: Any = "utf-8") -> Unknown:
    """`_codecs.encode`, by which protocols 0 to 2 write bytes."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        return Unknown("_codecs.encode")
    return Unknown("bytes", text.encode("latin-1"))


_CALLS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encode,
    "collections.Counter": _dictionary,
    "collections.OrderedDict": _dictionary,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
}
_KEYS = (str, int, float, bool, type(None))
_MARK = object()
_STOP = ord(".")
_OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
_TWO, _FOUR, _EIGHT = (struct.Struct(f"<{letter}") for letter in "HIQ")
_SIGNED, _DOUBLE = struct.Struct("<i"), struct.Struct(">d")
# The opcodes of torch's files, in any protocol.
_STEPS: dict[int, Callable[[_Machine], Any]] = {
    ord("("): lambda m: m.stack.append(_MARK),
    ord(")"): lambda m: m.stack.append(()),
    ord("]"): lambda m: m.push_new([]),
    ord("}"): lambda m: m.push_new({}),
    ord("N"): lambda m: m.stack.append(None),
    0x88: lambda m: m.stack.append(True),
    0x89: lambda m: m.stack.append(False),
    ord("K"): _Machine.push_byte,
    ord("M"): lambda m: m.stack.append(m.number(_TWO)),
    ord("J"): lambda m: m.stack.append(m.number(_SIGNED)),
    0x8A: lambda m: m.stack.append(int.from_bytes(m.take(m.byte()), "little", signed=True)),
    ord("G"): lambda m: m.stack.append(m.number(_DOUBLE)),
    ord("X"): lambda m: m.push_string(m.number(_FOUR)),
    ord("B"): lambda m: m.push_bytes(m.number(_FOUR)),
    ord("C"): lambda m: m.push_bytes(m.byte()),
    ord("T"): lambda m: m.push_old_string(m.number(_SIGNED)),
    0x8E: lambda m: m.push_bytes(m.number(_EIGHT)),
    0x96: lambda m: m.push_bytes(m.number(_EIGHT)),  # BYTEARRAY8
    0x8C: lambda m: m.push_string(m.byte()),
    0x8D: lambda m: m.push_string(m.number(_EIGHT)),
    0x85: lambda m: m.push_last(1),
    0x86: lambda m: m.push_last(2),
    0x87: lambda m: m.push_last(3),
    ord("t"): lambda m: m.push_new(tuple(m.pop_to_mark())),
    ord("a"): lambda m: m.append([m.stack.pop()]),
    ord("e"): lambda m: m.append(m.pop_to_mark()),
    ord("s"): lambda m: m.set_items([m.stack.pop(), m.stack.pop()][::-1]),
    ord("u"): lambda m: m.set_items(m.pop_to_mark()),
    ord("q"): lambda m: m.remember(m.byte()),
    ord("r"): lambda m: m.remember(m.number(_FOUR)),
    0x94: lambda m: m.remember(len(m.memo)),
    ord("h"): _Machine.recall,
    ord("j"): lambda m: m.stack.append(m.memo[m.number(_FOUR)]),
    ord("c"): _Machine.read_global,
    0x93: lambda m: m.push_global(*[m.stack.pop(), m.stack.pop()][::-1]),
    ord("R"): _Machine.call,
    0x81: _Machine.call,  # NEWOBJ
    ord("b"): _Machine.build,
    ord("Q"): _Machine.load_storage,
}


def write_pickle(tensors: Iterable[tuple[str, Tensor]], metadata: Mapping[str, str]) -> bytes:
    """The pickle of a state dict as `torch.save` writes it, in few opcodes.

    `metadata` is the text of the state dict's `_metadata`.
    """
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
