"""What `compare` returns: the comparison, as a short table, a page and JSON."""

import os
from collections.abc import Iterator
from pathlib import Path

from convert.parity.cells import as_json, cells, headings, write_whole
from convert.parity.comparison import SECTIONS, Comparison, Row
from convert.parity.page import as_page

_SHOWN = 3  # rows after the first that differs


class Report(Comparison):
    """A comparison of two networks that can be shown."""

    def table(self) -> str:
        """The verdict, its reasons, and the rows about the first difference of each section."""
        verdict = self.verdict
        parts = [verdict.lines[-1], *verdict.lines[:-1], *(f"- {text}" for text in verdict.reasons)]
        for title, names in zip(self.titles, self.unpaired, strict=True):
            if names:
                parts.append(f"layers that only {title} has: {', '.join(names)}")
        for section, rows in self.sections.items():
            parts += ["", *self._part(section, rows)]
        return "\n".join(parts)

    def html(self, path: str | os.PathLike[str]) -> None:
        """Writes a page with a plot and all tables.

        Raises:
            OSError: the file cannot be written; what was there before is unchanged.
        """
        write_whole(Path(path), as_page(self))

    def json(self, path: str | os.PathLike[str]) -> None:
        """Writes all findings; raises as `html`."""
        write_whole(Path(path), as_json(self))

    def _part(self, section: str, rows: tuple[Row, ...]) -> Iterator[str]:
        first = self.first_in(section)
        if first is None:
            worst = max((row.exact.relative for row in rows), default=0.0)
            yield f"{SECTIONS[section]}: {len(rows)} agree (largest difference {worst:.1e})"
            return
        differing = [row for row in rows if row.differs]
        yield f"{SECTIONS[section]}: {len(differing)} of {len(rows)} differ"
        place = next(number for number, row in enumerate(rows) if row is first)
        shown = rows[max(place - 1, 0) : place + 1 + _SHOWN]
        texts = [headings(self, section), *(cells(self, section, row) for row in shown)]
        widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
        for name, *others in texts:
            padded = (text.rjust(width) for text, width in zip(others, widths[1:], strict=True))
            yield "  ".join(["", name.ljust(widths[0]), *padded]).rstrip()
