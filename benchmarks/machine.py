"""What the figures were measured on: processor, accelerator and the versions of what was run."""

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

_PACKAGES = ("jax", "flax", "optax", "torch", "torchvision", "timm", "onnxruntime", "grain")


def describe_machine() -> dict[str, Any]:
    """`name`, which names the files of results, `processor`, `cores`, `memory_gib`, `versions`."""
    import jax

    devices = jax.devices()
    accelerator = devices[0].device_kind if devices[0].platform != "cpu" else None
    cores = len(os.sched_getaffinity(0))
    processor = _processor()
    name = f"{len(devices)} {accelerator}" if accelerator else f"{processor} {cores} cores"
    return {
        "name": re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"),
        "processor": processor,
        "cores": cores,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "accelerator": f"{len(devices)} x {accelerator}" if accelerator else None,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()
