"""The folder of compiled programs that all tests share, and what is taken out of it."""

import hashlib
import importlib.metadata
import os
import platform
import time
import zlib
from pathlib import Path

_DAYS, _BYTES = 30, 2 * 2**30


def folder() -> Path:
    """The folder of compiled programs, one for each JAX, processor and number of cores.

    It lies outside the checkout, so that a fresh clone finds what an earlier one has compiled.
    """
    cpu = Path("/proc/cpuinfo")
    first = cpu.read_text().partition("\n\n")[0] if cpu.exists() else platform.processor()
    moving = ("cpu MHz", "bogomips", "microcode", "processor", "apicid", "initial apicid")
    facts = [line for line in first.splitlines() if not line.startswith(moving)]
    facts += [platform.machine(), str(os.cpu_count())]
    digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]
    jax_version, jaxlib_version = (importlib.metadata.version(name) for name in ("jax", "jaxlib"))
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = f"jax-{jax_version}-{jaxlib_version}-{digest}"
    try:
        (caches / "flax-resnet-tests" / name).mkdir(parents=True, exist_ok=True)
    except OSError:  # a user without a home that can be written to
        return Path(__file__).parents[1] / ".pytest_cache" / "jax" / name
    return caches / "flax-resnet-tests" / name


def prune(root: Path) -> None:
    """Takes out what is old, too much, or was cut short by a kill while it was written."""
    root.mkdir(parents=True, exist_ok=True)
    checked = root / "checked"
    since = checked.stat().st_mtime if checked.exists() else 0.0
    checked.touch()
    found = [(path, _stat(path)) for path in root.glob("*/*-cache")]
    entries = [(path, stat) for path, stat in found if stat is not None]
    kept, oldest = 0, time.time() - 24 * 3600 * _DAYS
    for path, stat in sorted(entries, key=lambda entry: entry[1].st_atime, reverse=True):
        kept += stat.st_size
        is_cut = stat.st_mtime >= since and _is_cut(path)
        if kept > _BYTES or max(stat.st_atime, stat.st_mtime) < oldest or is_cut:
            path.unlink(missing_ok=True)


def _stat(path: Path) -> os.stat_result | None:
    """None for a file that another session has taken away."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _is_cut(path: Path) -> bool:
    """Whether an entry, compressed by zlib where JAX finds no zstandard, has no end."""
    try:
        content = path.read_bytes()
        if content[:1] != b"\x78":
            return not content
        stream = zlib.decompressobj()
        stream.decompress(content)
    except (FileNotFoundError, zlib.error):
        return True
    return not stream.eof
