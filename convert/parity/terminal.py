"""A comparison as tables on a terminal."""

import os
import sys

from rich.console import Console
from rich.table import Table

from convert.parity.cells import cells, headings
from convert.parity.comparison import SECTIONS, Comparison


class _Console(Console):
    """A console whose reader may leave, as `head` does, without a change of the exit code.

    Rich's own ends the process with 1, which means that the networks are not the same.
    """

    def on_broken_pipe(self) -> None:
        """Prints no more, not even when Python flushes its buffers at exit."""
        self.quiet = True
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def print_tables(comparison: Comparison) -> None:
    """Prints each section as a table; of the weights only those that differ."""
    console = _Console(highlight=False)
    if not console.is_terminal:
        console = _Console(highlight=False, width=160)  # a pipe has no width to keep to
    for section, rows in comparison.sections.items():
        shown = rows if section != "weights" else tuple(row for row in rows if row.differs)
        if not shown:
            continue
        table = Table(title=SECTIONS[section], title_justify="left")
        for number, heading in enumerate(headings(comparison, section)):
            table.add_column(heading, justify="right" if number in range(1, 7) else "left")
        table.columns[0].no_wrap = True
        first = comparison.first_in(section)
        for row in shown:
            style = "bold red" if row is first else "red" if row.differs else None
            table.add_row(*cells(comparison, section, row), style=style)
        console.print(table)
    verdict = comparison.verdict
    for line in (*verdict.lines[:-1], *(f"- {reason}" for reason in verdict.reasons)):
        console.print(line, markup=False, soft_wrap=True)
    style = "bold green" if verdict.same else "bold red"
    console.print(verdict.lines[-1], style=style, markup=False, soft_wrap=True)
