"""What is given away with the sources: all that is in the repository."""

import subprocess
import tomllib
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_BY_ITSELF = {".gitignore", "LICENSE", "README.md", "pyproject.toml"}  # hatchling puts them in


@pytest.mark.skipif(not (_ROOT / ".git").exists(), reason="only git knows what is in it")
def test_the_archive_of_sources_has_whatever_is_in_the_repository():
    hatch = tomllib.loads((_ROOT / "pyproject.toml").read_text())["tool"]["hatch"]
    listed = {name.lstrip("/") for name in hatch["build"]["targets"]["sdist"]["include"]}
    command = ["git", "ls-files"]
    run = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True)
    there = {line.partition("/")[0] for line in run.stdout.splitlines()}
    assert listed | _BY_ITSELF == there
