"""The folder in which JAX keeps what it has compiled, for the next start."""

import hashlib
import importlib.metadata
import os
import platform
import time
import zlib
from pathlib import Path

import jax

from train.errors import UserError
from train.run.starts import count_cores

NONE = Path("none")
_DAYS, _BYTES = 30, 2 * 2**30


def use(chosen: Path | None) -> None:
    """Keeps compiled programs in a folder, without one in the user's cache; `none` keeps none.

    A folder that the environment names for JAX stays, unless another is `chosen`. Programs that
    nobody used for a month, or beyond 2 GiB, are deleted. UserError if `chosen` cannot be written.
    """
    if chosen == NONE:
        jax.config.update("jax_compilation_cache_dir", None)
    named = jax.config.values["jax_compilation_cache_dir"]
    if chosen == NONE or (chosen is None and named):
        return
    try:
        root = chosen or user_caches() / "flax-resnet"
        folder = make_folder(root)
        prune(root)
    except (OSError, RuntimeError) as error:  # the latter where nobody knows a home
        if chosen is None:  # a user without a home that can be written to
            return
        raise UserError(f"--compile-cache {chosen}: {error}") from error
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # small programs, too: a start has a hundred of them
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def user_caches() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def make_folder(root: Path) -> Path:
    """A folder in `root` for this JAX, processor and number of cores, which programs depend on."""
    cpu = Path("/proc/cpuinfo")
    first = cpu.read_text().partition("\n\n")[0] if cpu.exists() else platform.processor()
    moving = ("cpu MHz", "bogomips", "microcode", "processor", "apicid", "initial apicid")
    facts = [line for line in first.splitlines() if not line.startswith(moving)]
    facts += [platform.machine(), str(count_cores())]
    digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]
    jax_version, jaxlib_version = (importlib.metadata.version(name) for name in ("jax", "jaxlib"))
    folder = root / f"jax-{jax_version}-{jaxlib_version}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def prune(root: Path) -> None:
    """Takes out what is old, too much, or was cut short by a kill while it was written."""
    root.mkdir(parents=True, exist_ok=True)
    checked = root / "checked"
    since = checked.stat().st_mtime if checked.exists() else 0.0
    checked.touch()
    found = [(path, _stat(path)) for path in root.glob("jax-*/*-cache")]
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
