"""The starts of a run, of which a resumed one has several: what each was started by, and when."""

import datetime
import functools
import json
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

_PACKAGES = ("flax-resnet", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
STARTED_BY = ("when", "command", "commit", "versions", "devices")


def this_start(devices: str | None) -> dict[str, Any]:
    """When (UTC), by which command, commit and versions, on which devices."""
    return {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in _PACKAGES}},
        "devices": devices,
    }


def earlier_starts(path: Path) -> list[dict[str, Any]]:
    """Those that a run's `config.json` tells of, oldest first.

    Older versions told of the last one alone, without its time; a file that is missing or damaged
    tells of none, and does not keep a run from going on.
    """
    try:
        content = json.loads(path.read_text())
        return list(content.get("starts") or [{name: content.get(name) for name in STARTED_BY}])
    except (OSError, ValueError, AttributeError, TypeError):
        return []


def _commit() -> str | None:
    """Of the checkout that this code is in, with `+` where it was changed; None elsewhere."""
    git = ("git", "-C", str(Path(__file__).parent))
    try:
        run = functools.partial(subprocess.run, capture_output=True, text=True, check=True)
        commit = run([*git, "rev-parse", "HEAD"]).stdout.strip()
        return commit + ("+" if run([*git, "status", "--porcelain", "-uno"]).stdout else "")
    except (OSError, subprocess.CalledProcessError):
        return None
