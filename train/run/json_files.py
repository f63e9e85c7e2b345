"""The JSON files of a run: written whole, and read as nobody's but ours."""

import json
from pathlib import Path
from typing import Any


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a whole file or none."""
    temporary = temporary_of(path)
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """The inverse of `write_json`.

    Raises:
        OSError: there is no such file.
        ValueError: it is damaged, or was not written so.
    """
    try:
        content = json.loads(path.read_text())
    except RecursionError as error:
        raise ValueError("its brackets go too deep") from error
    if not isinstance(content, dict):
        raise ValueError("it was not written by this trainer")
    return content


def read_own_json(path: Path) -> dict[str, Any]:
    """The same of a file that says which versions wrote it, ours among them."""
    content = read_json(path)
    versions = content.get("versions")
    if not isinstance(versions, dict) or "flax-resnet" not in versions:
        raise ValueError("it was not written by this trainer")
    return content


def temporary_of(path: Path) -> Path:
    """Where a file is written before it is whole."""
    return path.with_name(f".{path.name}.new")
