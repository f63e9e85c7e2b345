"""What a pickle would call, read off its opcodes: nothing is imported, nothing is run."""

import pickletools
from dataclasses import dataclass
from typing import IO, Any

# An object may take 20 times the opcodes that make it; 50,000 tensors fit.
LARGEST_PICKLE = 2**23

# All that tensors, their containers and the counters of schedules need. Shorter than torch's own
# list: bytearray(n) and _codecs.encode(x, "hex"), repeated, take any amount of memory.
_CONTAINERS = frozenset(
    ("collections.OrderedDict", "collections.Counter", "builtins.set", "torch.Size")
)
_HARMLESS = _CONTAINERS | {
    "torch.device",
    "torch.nn.parameter.Parameter",
    "torch.storage.TypedStorage",
    "torch.storage.UntypedStorage",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
}
_KINDS = "Double Float Half BFloat16 Long Int Short Char Byte Bool ComplexDouble ComplexFloat"
_DTYPES = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex128 complex64"
_TORCH_NAMES = frozenset(
    [f"torch.{kind}Storage" for kind in _KINDS.split()]
    + [f"torch.{dtype}" for dtype in _DTYPES.split()]
)
_MARK = object()
# By the standard library's table: (values popped, whether all down to the mark are, pushed).
_EFFECTS = {
    opcode.name: (
        opcode.stack_before.index(pickletools.markobject)
        if pickletools.markobject in opcode.stack_before
        else len(opcode.stack_before),
        pickletools.markobject in opcode.stack_before,
        len(opcode.stack_after),
    )
    for opcode in pickletools.opcodes
}
# The most frequent of those that need no care.
_ORDINARY = frozenset(
    "BININT BININT1 BININT2 BINUNICODE MARK TUPLE TUPLE1 TUPLE2 BINPERSID NEWFALSE".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class Scan:
    """Attributes:
    names: every function and class that the pickle asks for.
    copies: how often it fills a container by a call, which copies another one.
    """

    names: frozenset[str]
    copies: int

    @property
    def unsafe(self) -> list[str]:
        """The names that a file of plain tensors does not need."""
        return sorted(self.names - _HARMLESS - _TORCH_NAMES)


def scan(pickle: IO[bytes]) -> Scan:
    """Follows one pickle, which ends at its STOP, with names for values.

    Raises:
        ValueError: it is damaged.
    """
    names: set[str] = set()
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    copies = 0
    argument: Any
    for opcode, argument, _ in pickletools.genops(pickle):
        pushed: Any = argument if type(argument) is str else None
        if opcode.name in _ORDINARY:
            pass
        elif opcode.name in ("GLOBAL", "INST"):
            pushed = _Global(_dotted(*argument.split(" ", 1)))
        elif opcode.name == "STACK_GLOBAL":
            pushed = _Global(_dotted(*stack[-2:]))
        elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
            pushed = memo.get(argument)
        elif opcode.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1] if stack else None
            continue
        elif opcode.name in ("REDUCE", "BUILD"):
            called = stack[-2] if len(stack) > 1 else None
            is_cheap = type(called) is _Global and called.name not in _CONTAINERS
            copies += not (is_cheap or stack[-1] == ())
        elif opcode.name == "EMPTY_TUPLE":
            pushed = ()
        if type(pushed) is _Global:
            names.add(pushed.name)
        _apply(opcode, stack, pushed)
    return Scan(frozenset(names), copies)


def _dotted(module: Any = None, name: Any = None) -> str:
    if not isinstance(module, str) or not isinstance(name, str):
        return "(a name that is computed)"
    return f"{'builtins' if module == '__builtin__' else module}.{name}"


def _apply(opcode: pickletools.OpcodeInfo, stack: list[Any], pushed: Any) -> None:
    """What an opcode does to the stack."""
    num_popped, to_mark, num_pushed = _EFFECTS[opcode.name]
    if to_mark or (opcode.name == "POP" and stack and stack[-1] is _MARK):
        while stack and stack.pop() is not _MARK:
            pass
        num_popped = num_popped if to_mark else 0
    if num_popped:
        if len(stack) < num_popped:
            raise ValueError(f"{opcode.name} has nothing to work on")
        del stack[-num_popped:]
    stack.extend([_MARK if opcode.name == "MARK" else pushed] * num_pushed)
