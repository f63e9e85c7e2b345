"""The JSON files of a run: written whole or not at all, and checked to be ours when read."""

import json
from pathlib import Path
from typing import Any


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON as `write_whole` does."""
    write_whole(path, json.dumps(content, indent=2) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Replaces a file by a complete new one, on disk; an OSError leaves the old one."""
    from convert.atomic import replacing  # which imports all of convert: help need not wait

    with replacing(path) as temporary:
        temporary.write_text(text)


def leftovers(path: Path) -> list[Path]:
    """The half-written files that killed processes left beside `path`."""
    of_older_versions = path.with_name(f".{path.name}.new")
    found = path.parent.glob(f".{path.stem}-????????{path.suffix}")  # by `convert.atomic.replacing`
    return [*found, *([of_older_versions] if of_older_versions.exists() else [])]


def read_json(path: Path) -> dict[str, Any]:
    """The inverse of `write_json`; OSError if the file is missing, ValueError if it is damaged."""
    try:
        content = json.loads(path.read_text())
    except RecursionError as error:
        raise ValueError("its brackets are nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("it was not written by this trainer")
    return content


def read_own_json(path: Path) -> dict[str, Any]:
    """The same for a file that lists the versions which wrote it, flax-resnet's among them."""
    content = read_json(path)
    versions = content.get("versions")
    if not isinstance(versions, dict) or "flax-resnet" not in versions:
        raise ValueError("it was not written by this trainer")
    return content
