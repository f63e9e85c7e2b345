"""What docs/results.md shows of `results/`: `python -m tests.measured_results`."""

from pathlib import Path

from train.results.render import commands, markdown, sections, table_rows
from train.results.table import Table, read_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
DATA = "cifar10"


def results() -> Table:
    """The table that is committed."""
    return read_table(RESULTS / f"{DATA}.json", DATA)


def lines() -> list[str]:
    """Markdown: what was measured, which networks were not run, and the commands."""
    content = results()
    parts: list[str] = []
    for heading, groups in sections(content).items():
        absent = [m.model for m in content.missing if m.protocol == groups[0].first.protocol]
        parts += [f"Protocol {heading}:", "", *markdown(table_rows(groups)).splitlines(), ""]
        if absent:
            parts += [f"Not run: {', '.join(absent)}.", ""]
    return [*parts, "```console", *commands(content.groups), "```"]


if __name__ == "__main__":
    print("\n".join(lines()))
