"""What `--compile-for` found: as lines to read, and as JSON."""

import dataclasses
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from train.ahead.figures import Figures
from train.ahead.topology import describe_chips
from train.config import Config


@dataclass(frozen=True)
class Attempt:
    """One way to train, and what the compiler made of it.

    Attributes:
        step: None where it does not fit.
        needed_bytes: of memory, on each device; None if the compiler does not say.
    """

    global_batch_size: int
    accumulate_steps: int
    remat: bool
    step: Figures | None = None
    needed_bytes: int | None = None

    def __str__(self) -> str:
        parts = f" --accumulate-steps {self.accumulate_steps}" if self.accumulate_steps > 1 else ""
        return f"--global-batch-size {self.global_batch_size}{parts}{self.remat * ' --remat'}"


@dataclass(frozen=True)
class Report:
    """The attempts, of which the first is what was asked for.

    Attributes:
        available: bytes of each device's memory, None if the compiler does not say.
        test: the step of a test; None where the training step does not fit.
    """

    config: Config
    devices: Sequence[Any]
    available: int | None
    attempts: Sequence[Attempt]
    test: Figures | None

    @property
    def largest(self) -> int | None:
        """The largest batch that fits without other changes."""
        asked = self.attempts[0]
        return max(
            (
                attempt.global_batch_size
                for attempt in self.attempts
                if attempt.step is not None
                and attempt.accumulate_steps == asked.accumulate_steps
                and attempt.remat == asked.remat
            ),
            default=None,
        )

    def to_json(self) -> dict[str, Any]:
        """Sizes in bytes, times in seconds, those of one step on one device."""
        config, (_, chips) = self.config, describe_chips(self.devices)
        return {
            "topology": config.compile_for,
            "device_kind": self.devices[0].device_kind,
            "chips": chips,
            "devices": len(self.devices),
            "available_bytes": self.available,
            "versions": _versions(),
            "model": config.model,
            "data": config.data,
            "precision": config.precision,
            "parallel": config.parallel,
            "fits": self.attempts[0].step is not None,
            "largest_batch_size": self.largest,
            "attempts": [
                {
                    **dataclasses.asdict(attempt),
                    "images_per_device": attempt.global_batch_size // len(self.devices),
                    **_rates(attempt, self.devices),
                }
                for attempt in self.attempts
            ],
            "test": None if self.test is None else dataclasses.asdict(self.test),
        }

    def to_text(self) -> str:
        """The figures of the training step and of a test, or all that was tried instead."""
        config, asked, count = self.config, self.attempts[0], len(self.devices)
        _, chips = describe_chips(self.devices)
        lines = [
            f"{config.model} on {config.data}, {config.precision}, {asked}",
            f"{config.compile_for}: {chips} {self.devices[0].device_kind}, {count} "
            f"device{'s' if count > 1 else ''} of {asked.global_batch_size // count} images and "
            f"{_binary(self.available)}",
            f"{', '.join(map(' '.join, _versions().items()))}: compiled, never executed",
        ]
        if asked.step is not None:
            lines += ["training step", *_rows(asked.step), *_rate_rows(asked, self.devices)]
        if self.test is not None:
            lines += ["step of a test", *_rows(self.test)]
        if asked.step is None:
            width = max(len(str(attempt)) for attempt in self.attempts)
            lines += ["tried"]
            lines += [_row(f"{a!s:<{width}}", _outcome(a, self.devices)) for a in self.attempts]
        return "\n".join(lines)

    def refusal(self) -> str:
        """One sentence for a step that does not fit."""
        asked = self.attempts[0]
        fitting = "; ".join(str(attempt) for attempt in self.attempts if attempt.step is not None)
        return (
            f"{asked} needs {_binary(asked.needed_bytes)} on each device, which has "
            f"{_binary(self.available)}; what fits: {fitting or 'nothing that was tried'}"
        )


def _versions() -> dict[str, str]:
    try:
        libtpu = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:  # of the machine, by TPU_LIBRARY_PATH
        libtpu = "of unknown version"
    return {"jax": importlib.metadata.version("jax"), "libtpu": libtpu}


def _rates(attempt: Attempt, devices: Sequence[Any]) -> dict[str, Any]:
    """What follows from the compiler's time and from the chip's peaks; nothing without a step."""
    step, (chip, chips) = attempt.step, describe_chips(devices)
    if step is None:
        return {}
    rates: dict[str, Any] = {
        "images_per_second_per_chip": attempt.global_batch_size / step.seconds / chips
    }
    if chip is not None:
        memory = step.bytes_accessed / chip.bytes_per_second * chip.devices
        arithmetic = step.flops / chip.flops_per_second * chip.devices
        rates |= {"memory_seconds": memory, "arithmetic_seconds": arithmetic}
        rates["bound_by"] = "memory" if memory > arithmetic else "arithmetic"
    return rates


def _rows(step: Figures) -> list[str]:
    turns = f", loops counted whole (x {step.loops:.2f})" if step.loops > 1.005 else ""
    return [
        _row("peak memory", _binary(step.peak_bytes)),
        _row("floating-point operations", f"{step.flops:.4g}"),
        _row("bytes accessed", _decimal(step.bytes_accessed)),
        _row("compiler's time", f"{1e3 * step.seconds:.4g} ms{turns}"),
        _row("all-reduces", f"{step.all_reduces}, {_decimal(step.all_reduce_bytes)}"),
        _row("convolutions not bfloat16", f"{step.wide_convolutions} of {step.convolutions}"),
        _row("compiled in", f"{step.compile_seconds:.0f} s"),
    ]


def _rate_rows(attempt: Attempt, devices: Sequence[Any]) -> list[str]:
    rates = _rates(attempt, devices)
    rows = [_row("images a second a chip", f"{rates['images_per_second_per_chip']:,.0f} at most")]
    if "bound_by" in rates:
        memory, arithmetic = 1e3 * rates["memory_seconds"], 1e3 * rates["arithmetic_seconds"]
        times = f"{memory:.4g} ms of memory, {arithmetic:.4g} ms of arithmetic at the chip's peaks"
        rows.append(_row("bound by", f"{rates['bound_by']}: {times}"))
    return rows


def _outcome(attempt: Attempt, devices: Sequence[Any]) -> str:
    if attempt.step is None:
        return f"needs {_binary(attempt.needed_bytes)}"
    rate = _rates(attempt, devices)["images_per_second_per_chip"]
    return (
        f"fits: {_binary(attempt.needed_bytes)}, {1e3 * attempt.step.seconds:.4g} ms, "
        f"{rate:,.0f} images a second a chip"
    )


def _row(name: str, value: str) -> str:
    return f"  {name:<28} {value}"


def _decimal(count: float) -> str:
    return f"{count / 1e9:.4g} GB" if count >= 1e9 else f"{count / 1e6:.4g} MB"


def _binary(count: int | None) -> str:
    if count is None:
        return "an unknown number of GiB"
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"
