"""A measurement in a process of its own: untouched memory and caches, and limits that hold."""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_LOOK_EVERY_SECONDS = 0.1
_GIB = 2**30


class StoppedError(Exception):
    """A measurement that went beyond a limit; its message says how far it had come."""


def call_apart(
    function: Callable[..., Any],
    *arguments: Any,
    environment: Mapping[str, str] | None = None,
    seconds: float = 600,
    memory_gib: float = 8,
) -> Any:
    """What a module's function returns in a fresh process without a cache of compiled programs.

    Args:
        function: of a module of `benchmarks`; what it takes and returns is written as JSON.
        arguments: positional ones.
        environment: changes to this process's.
        seconds: how long it may take, imports included.
        memory_gib: how much memory may be resident.

    Raises:
        StoppedError: a limit was reached, or the process failed; it has ended.
    """
    variables = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    with tempfile.TemporaryDirectory() as folder:
        path, errors = Path(folder) / "result.json", Path(folder) / "errors.txt"
        name = f"{function.__module__}:{function.__name__}"
        command = [sys.executable, "-m", "benchmarks.apart", name, json.dumps(arguments), str(path)]
        with errors.open("w") as stderr:
            process = subprocess.Popen(
                command, env={**variables, **(environment or {})}, stderr=stderr
            )
            try:
                _watch(process, seconds, memory_gib)
            finally:
                process.kill()
                process.wait()
        if process.returncode:
            lines = errors.read_text().strip().splitlines() or ["without a word"]
            raise StoppedError(f"failed with {process.returncode}: {lines[-1][:200]}")
        return json.loads(path.read_text())


def _watch(process: subprocess.Popen[bytes], seconds: float, memory_gib: float) -> None:
    """Until the process ends; not by a limit of the system, which ends it without saying why."""
    started = time.monotonic()
    while process.poll() is None:
        elapsed, resident = time.monotonic() - started, _resident(process.pid) / _GIB
        if elapsed > seconds or resident > memory_gib:
            raise StoppedError(f"stopped after {elapsed:.0f} s, {resident:.1f} GiB")
        time.sleep(_LOOK_EVERY_SECONDS)


def _resident(pid: int) -> int:
    """Bytes in memory; 0 where the process has just ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def find_platform() -> str:
    """`cpu`, `gpu` or `tpu`; asked apart, as a process that has asked keeps the accelerator."""
    return call_apart(_default_platform)


def _default_platform() -> str:
    import jax

    return jax.default_backend()


def peak_memory() -> int:
    """The most bytes that this process has had in memory."""
    # Not ru_maxrss, which a process inherits from the one that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """The other side of `call_apart`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("function", help="MODULE:NAME")
    parser.add_argument("arguments", type=json.loads)
    parser.add_argument("result", type=Path)
    options = parser.parse_args()
    module, name = options.function.split(":")
    result = getattr(importlib.import_module(module), name)(*options.arguments)
    options.result.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
