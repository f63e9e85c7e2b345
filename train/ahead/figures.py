"""What the TPU's compiler says of one compiled step: memory, arithmetic, traffic and time."""

import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import jax
from jax.stages import Lowered

from train.ahead.topology import to_bytes

_BYTES = {"bf16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "f16": 2, "pred": 1}


class OutOfMemoryError(Exception):
    """The step needs more memory than a device has: `needed_bytes`, None if it is not said."""

    def __init__(self, needed_bytes: int | None):
        super().__init__(needed_bytes)
        self.needed_bytes = needed_bytes


@dataclass(frozen=True)
class Figures:
    """Of one step on one device, as the compiler estimates them: nothing is executed.

    Attributes:
        peak_bytes: of memory, the step's arguments included.
        flops, bytes_accessed: after all fusions; the body of a loop is counted once.
        seconds: the compiler's `optimal_seconds`, corrected twice. Each `ConcatBitcast` takes one
            second off, which is added again. It counts the body of a loop once: the time is longer
            by as much as the compiler's `estimated_cycles` are when loops are counted whole.
        loops: this factor; 1.0 without loops.
        all_reduces, all_reduce_bytes: in a step, those in loops as often as these turn.
        convolutions, wide_convolutions: in the program; and those with an operand that is not
            bfloat16.
        compile_seconds: on this machine.
    """

    peak_bytes: int
    flops: float
    bytes_accessed: float
    seconds: float
    loops: float
    all_reduces: int
    all_reduce_bytes: int
    convolutions: int
    wide_convolutions: int
    compile_seconds: float


def compile_step(lowered: Lowered) -> Figures:
    """Compiles a step for the devices that it was lowered for; OutOfMemoryError if too large."""
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemoryError(_needed(str(error))) from error
    seconds = time.perf_counter() - start
    program = Program(compiled.as_text() or "")
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    assert cost is not None
    assert memory is not None
    lost = program.count_calls("ConcatBitcast")
    return Figures(
        peak_bytes=memory.peak_memory_in_bytes,
        flops=cost["flops"],
        bytes_accessed=cost["bytes accessed"],
        seconds=(cost["optimal_seconds"] + lost) * program.loops,
        loops=program.loops,
        all_reduces=program.all_reduces,
        all_reduce_bytes=program.all_reduce_bytes,
        convolutions=program.convolutions,
        wide_convolutions=program.wide_convolutions,
        compile_seconds=seconds,
    )


def _needed(message: str) -> int | None:
    """The bytes that a refused program wants."""
    for pattern in (r"Used ([\d.]+)([KMGT]) of", r"temporaries \(([\d.]+)([KMGT])\)"):
        if found := re.search(pattern, message):
            return to_bytes(*found.groups())
    return None


class Program:
    """The text of a compiled program (HLO), as far as its costs need it.

    A computation is a heading and indented instructions, `%name = type operation(operands), ...`.
    """

    def __init__(self, text: str):
        self._computations: dict[str, list[str]] = {}
        name = entry = ""
        for line in text.splitlines():
            if heading := re.match(r"(ENTRY )?%?(\S+) \(.*\{$", line):
                name = heading[2]
                entry = name if heading[1] else entry
                self._computations[name] = []
            elif name and line.startswith("  "):
                self._computations[name].append(line)
        self._turns: Counter[str] = Counter()
        self._visit(entry, 1)
        self.loops = self._cycles(self._turns) / max(1, self._cycles(dict.fromkeys(self._turns, 1)))
        self.loops = self.loops or 1.0
        reduces = [(n, line) for n, line in self._found(r" all-reduce(?:-start)?\(")]
        self.all_reduces = sum(n for n, _ in reduces)
        self.all_reduce_bytes = sum(n * _size(line) for n, line in reduces)
        types = dict(re.findall(r"%(\S+) = (\w+)\[", text))
        operands = [
            re.findall(r"%([\w.\-]+)", line.partition(" convolution(")[2].partition(")")[0])
            for _, line in self._found(r" convolution\(.*window=")  # a product of matrices has none
        ]
        self.convolutions = len(operands)
        self.wide_convolutions = sum({types.get(o) for o in pair} != {"bf16"} for pair in operands)

    def count_calls(self, target: str) -> int:
        """Custom calls of this target, each once."""
        return sum(1 for _ in self._found(f'custom_call_target="{target}"'))

    def _visit(self, name: str, times: int) -> None:
        """Counts how often each computation is run; a loop turns as its condition's limit says."""
        self._turns[name] += times
        for line in self._computations.get(name, ()):
            if loop := re.search(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)", line):
                limit = " ".join(self._computations.get(loop[1], ()))
                turns = max(map(int, re.findall(r"s32\S* constant\((\d+)\)", limit)), default=1)
                self._visit(loop[2], times * turns)
            else:
                for called in re.findall(r"(?:calls|to_apply|\w+_computation)=%?([\w.\-]+)", line):
                    self._visit(called, times)

    def _found(self, pattern: str) -> Iterator[tuple[int, str]]:
        """The instructions that fit, and how often each is run."""
        for name, times in self._turns.items():
            for line in self._computations.get(name, ()):
                if re.search(pattern, line):
                    yield times, line

    def _cycles(self, turns: dict[str, int]) -> int:
        found = (
            (times, re.findall(r'"estimated_cycles":"(\d+)"', line))
            for name, times in turns.items()
            for line in self._computations.get(name, ())
        )
        return sum(times * sum(map(int, cycles)) for times, cycles in found)


def _size(line: str) -> int:
    """Bytes of an instruction's result, an array or a tuple of arrays."""
    result = line.partition(" = ")[2].partition(" all-reduce")[0]
    total = 0
    for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", result):
        count = 1
        for length in filter(None, shape.split(",")):
            count *= int(length)
        total += count * _BYTES.get(kind, 4)
    return total
