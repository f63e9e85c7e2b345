"""Every benchmark, at a size that only shows that it works, by the command that runs them all."""

import json
import math
from pathlib import Path

import pytest

from benchmarks import tpu
from benchmarks.__main__ import BENCHMARKS, RESULTS
from benchmarks.input import TENSORFLOW_PYTHON
from benchmarks.measure import Row
from benchmarks.peers.torch_resnet_package import REQUIREMENT
from benchmarks.table import to_markdown, to_summary
from tests.commands import run

_ROOT = Path(__file__).parents[1]
# Of a peer or a data set that a machine may not have, and what says so names.
_MAY_BE_ABSENT = (TENSORFLOW_PYTHON, "TFDS_DATA_DIR", REQUIREMENT)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The tables of all, by one command, and what it printed; it goes on after one that fails."""
    folder = tmp_path_factory.mktemp("measured")
    result = run("benchmarks", "--tiny", "--out", folder, cwd=_ROOT, limit=3500)
    return folder, result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.timeout(3600)  # the first one waits for all
@pytest.mark.xdist_group("benchmarks")  # one worker measures for all
@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_measures_us_and_writes_its_table(measured, name):
    folder, printed = measured
    (path,) = folder.glob("*.json")
    results = json.loads(path.read_text())["results"]
    assert name in results, printed
    rows = [Row(**row) for row in results[name]["rows"]]
    assert any(row.ours is not None for row in rows)
    for row in rows:
        numbers = [n for n in (row.ours, row.theirs, row.ratio) if n is not None]
        assert all(math.isfinite(number) and number > 0 for number in numbers), row
        is_whole = row.ours is not None and (not row.peer or None not in (row.theirs, row.ratio))
        assert is_whole or any(name in row.note for name in _MAY_BE_ABSENT), row
    table = path.with_suffix(".md").read_text()
    assert f"## {BENCHMARKS[name]}" in table
    assert all(f"| {row.case} | {row.measure} |" in table for row in rows)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_the_tables_of_a_machine_show_its_results_and_so_does_the_page_of_benchmarks(path):
    results = json.loads(path.read_text())
    page = to_markdown(results["machine"], results["results"], BENCHMARKS)
    assert path.with_suffix(".md").read_text() == page
    assert "\n".join(to_summary(results)) in (_ROOT / "benchmarks" / "README.md").read_text()


def test_the_table_of_compiled_steps_shows_what_was_compiled():
    path = tpu.RESULTS / "compiled.json"
    assert path.with_suffix(".md").read_text() == tpu.to_markdown(json.loads(path.read_text()))


def test_the_readme_cites_rows_as_they_were_measured():
    """Case, measure, figures and ratio word for word, and who is faster by that ratio."""
    tables = [path.with_suffix(".md").read_text() for path in RESULTS.glob("*.json")]
    measured = {row_of(line) for table in tables for line in table.splitlines()}
    lines = (_ROOT / "README.md").read_text().partition("## Speed")[2].partition("\n## ")[0]
    cited = [line for line in lines.splitlines() if line.startswith("| ResNet")]
    assert len(cited) == 5
    for line in cited:
        row = row_of(line)
        assert row in measured, line
        is_faster = (float(row[5]) > 1) == row[1].startswith("images/s")
        assert line.endswith("| faster |" if is_faster else "| slower |"), line


def row_of(line: str) -> tuple[str, ...]:
    """The first six cells: case, measure, ours, peer, theirs, ratio."""
    return tuple(cell.strip() for cell in line.strip("| ").split("|"))[:6]


def test_an_unknown_benchmark_is_refused_and_the_known_ones_are_named(tmp_path):
    result = run("benchmarks", "speed", "--out", tmp_path, cwd=_ROOT)
    assert result.returncode == 2
    assert "speed" in result.stderr
    assert all(name in result.stderr for name in BENCHMARKS)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_measured(tmp_path):
    (tmp_path / "file").write_text("")
    found = run("benchmarks", "loop", "--tiny", "--out", tmp_path / "file", cwd=_ROOT)
    assert found.returncode == 2
    assert f"--out {tmp_path / 'file'}" in found.stderr
    assert "loop:" not in found.stdout
