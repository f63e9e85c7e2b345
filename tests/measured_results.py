"""What docs/results.md shows of `results/`: `python -m tests.measured_results`."""

from pathlib import Path

from train.results.content import Content
from train.results.page import commands, measured, table, tables
from train.results.protocol import protocol_of
from train.results.table_files import read_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
DATA = "cifar10"


def results() -> Content:
    """The table that is committed."""
    return read_table(RESULTS / f"{DATA}.json", DATA)


def lines() -> list[str]:
    """Markdown: what was measured, which networks were not run, and the commands."""
    content = results()
    parts: list[str] = []
    for heading, groups in tables(content).items():
        absent = [m.model for m in content.missing if m.protocol == protocol_of(groups[0].first)]
        parts += [f"Protocol {heading}:", "", *table(measured(groups)).splitlines(), ""]
        if absent:
            parts += [f"Not run: {', '.join(absent)}.", ""]
    return [*parts, "```console", *commands(content.groups), "```"]


if __name__ == "__main__":
    print("\n".join(lines()))
