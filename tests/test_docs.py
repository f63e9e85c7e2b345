"""The Python in README and docs runs, line by line as it stands there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.readme_table import rows

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def python_blocks(page: Path) -> list[str]:
    """The fenced blocks of Python of a page."""
    parts = page.read_text().split("```python\n")[1:]
    return [part.partition("```")[0] for part in parts]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page, tmp_path):
    code = "\n".join(python_blocks(page))
    environment = {**os.environ, "XLA_FLAGS": ""}
    run = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_the_readme_shows_the_whole_table():
    text = (ROOT / "README.md").read_text()
    assert "\n".join(rows()) in text
    assert not [line for line in text.splitlines() if line.isupper() and line.isalpha()]


@pytest.mark.slow
def test_the_shell_lines_of_the_readme_run(tmp_path):
    """Those marked `sh`; the ones marked `console` need a data set, a download or make."""
    parts = (ROOT / "README.md").read_text().split("```sh\n")[1:]
    lines = "\n".join(part.partition("```")[0] for part in parts)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    run = subprocess.run(
        ["bash", "-euxc", lines],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    for file in ("digits.safetensors", "digits.pt", "runs/again/model.safetensors"):
        assert (tmp_path / file).is_file()
