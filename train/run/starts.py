"""The starts of a run, of which a resumed one has several: when, by which command and versions."""

import datetime
import functools
import itertools
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from train.config import Config, computed_fields

_PACKAGES = ("flax-resnet", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
STARTED_BY = ("when", "command", "commit", "versions", "devices", "cores")


def this_start(devices: str | None) -> dict[str, Any]:
    """Time (UTC), command, commit, versions, devices and cores of this start."""
    return {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in _PACKAGES}},
        "devices": devices,
        "cores": count_cores(),
    }


def count_cores() -> int:
    """Those that this process may use: sums of XLA's on CPU have other bits on another number."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def rounds_otherwise(path: Path, devices: str) -> str:
    """Why a run on CPU does not go on bit for bit; empty if it does, or nobody can know.

    XLA cuts its sums by the number of cores that the process may use, and the batch by devices.
    """
    if "cpu" not in devices:
        return ""
    last = (earlier_starts(path) or [{}])[-1]
    cores = count_cores()
    before = _computed_by(last.get("devices") or devices, last.get("cores") or cores)
    now = _computed_by(devices, cores)
    if before == now:
        return ""
    return (
        f"the last steps were computed by {before}, the next by {now}: they round otherwise, so "
        "this is not bit for bit the run that never stopped"
    )


def _computed_by(devices: str, cores: int) -> str:
    return f"{devices} with {cores} core{'s' if cores > 1 else ''}"


def earlier_starts(path: Path) -> list[dict[str, Any]]:
    """The starts in a run's `config.json`, oldest first.

    Older versions noted only the last one, without its time. A missing or damaged file has none; it
    does not keep a run from going on.
    """
    try:
        content = json.loads(path.read_text())
        return list(content.get("starts") or [{name: content.get(name) for name in STARTED_BY}])
    except (OSError, ValueError, AttributeError, TypeError):
        return []


def changed_fields(path: Path, now: Config) -> dict[str, list[Any]]:
    """Computed fields that differ from a run's `config.json`: field -> [before, now].

    A folder of images may move.
    """
    try:
        before = _plain(Config.from_json(json.loads(path.read_text())["config"]))
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return {}
    return {
        name: [before[name], value]
        for name, value in _plain(now).items()
        if before[name] != value and name != "data"
    }


def find_changes(starts: Sequence[dict[str, Any]], now: Config) -> list[str]:
    """The changes of a run's configuration between its steps, one text each.

    A start without a step, or whose steps were all repeated, changed nothing.
    """
    fields, known = [_plain(now)], list(starts)
    for start in reversed(known[1:]):
        before = {name: pair[0] for name, pair in start.get("changed", {}).items()}
        fields.insert(0, {**fields[0], **before})
    parts = [(_step(known[place]), fields[place]) for place in _lasting(known)]
    return [
        f"{name} {before[name]} to {after[name]} at step {step}"
        for (_, before), (step, after) in itertools.pairwise(parts)
        for name in after
        if before[name] != after[name] and not _is_length(name, before, after)
    ]


def find_devices(starts: Sequence[dict[str, Any]]) -> list[str]:
    """What computed the steps of a run, in their order; `torch` for those that came from torch."""
    found = [starts[place].get("devices") for place in _lasting(starts)]
    return list(dict.fromkeys(str(devices) for devices in found if devices is not None))


def _lasting(starts: Sequence[dict[str, Any]]) -> list[int]:
    """The places of those starts whose steps were not all repeated by a later one."""
    places: list[int] = []
    for place, start in enumerate(starts):
        while places and _step(starts[places[-1]]) >= _step(start):
            places.pop()
        places.append(place)
    return places


def _step(start: dict[str, Any]) -> int:
    return int(start.get("step") or 0)


def _is_length(name: str, before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether a field only sets the length of a run: with drops, its steps are the same."""
    is_by_drops = before["schedule"] == after["schedule"] == "drops"
    return name in ("epochs", "max_steps") and is_by_drops


def _plain(config: Config) -> dict[str, Any]:
    """The computed fields after a round trip through JSON."""
    return json.loads(json.dumps(computed_fields(config)))


def _commit() -> str | None:
    """The commit of the checkout of this code, with `+` if files changed; None elsewhere."""
    git = ("git", "-C", str(Path(__file__).parent))
    try:
        run = functools.partial(subprocess.run, capture_output=True, text=True, check=True)
        commit = run([*git, "rev-parse", "HEAD"]).stdout.strip()
        return commit + ("+" if run([*git, "status", "--porcelain", "-uno"]).stdout else "")
    except (OSError, subprocess.CalledProcessError):
        return None
