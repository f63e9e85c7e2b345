"""The results of one machine: a JSON file to compute with, and a Markdown file to read."""

import dataclasses
import datetime
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Row


def write_results(
    folder: Path,
    machine: Mapping[str, Any],
    name: str,
    titles: Mapping[str, str],
    rows: Sequence[Row],
    seconds: float,
) -> Path:
    """Replaces one benchmark's part of `<machine>.json`, and writes `<machine>.md` from it all.

    Args:
        folder: where both files are kept.
        machine: what `describe_machine` says.
        name: which benchmark was run.
        titles: all benchmarks' titles, in the order of the tables.
        rows: what it measured.
        seconds: how long it took.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{machine['name']}.json"
    results = json.loads(path.read_text())["results"] if path.exists() else {}
    results[name] = {
        "date": datetime.date.today().isoformat(),
        "seconds": round(seconds, 1),
        "machine": dict(machine),
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    results = {key: results[key] for key in titles if key in results}
    path.write_text(json.dumps({"machine": dict(machine), "results": results}, indent=2) + "\n")
    path.with_suffix(".md").write_text(to_markdown(machine, results, titles))
    return path


def to_markdown(
    machine: Mapping[str, Any], results: Mapping[str, Any], titles: Mapping[str, str]
) -> str:
    """A table of every benchmark; those without results say 'not run'."""
    where = machine["accelerator"] or f"{machine['cores']} cores"
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items() if v)
    parts = [f"# {machine['processor']}, {where}", f"{versions}; Python {machine['python']}."]
    for name, title in titles.items():
        parts.append(f"## {title}")
        if name not in results:
            parts.append("Not run.")
            continue
        found = results[name]
        rows = [Row(**row) for row in found["rows"]]
        parts.append(_table(rows))
        parts.append(f"`python -m benchmarks {name}`, {found['date']}, {found['seconds']:.0f} s.")
    return "\n\n".join(parts) + "\n"


def to_summary(results: Mapping[str, Any]) -> list[str]:
    """The rows that have a bar, of all benchmarks of one machine: what the README shows."""
    rows = [Row(**row) for found in results["results"].values() for row in found["rows"]]
    return _table([row for row in rows if row.bar and row.ours is not None]).splitlines()


def _table(rows: Sequence[Row]) -> str:
    lines = [
        "| case | measure | ours | peer | theirs | ratio | bar | |",
        "|---|---|--:|---|--:|--:|---|---|",
    ]
    for row in rows:
        verdict = {True: "met", False: "missed", None: ""}[row.is_met]
        cells = [
            row.case, row.measure, _number(row.ours), row.peer,
            _number(row.theirs) if row.peer else "", _number(row.ratio) if row.peer else "",
            row.bar, "; ".join(filter(None, (verdict, row.note))),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    """Three digits that count, without an exponent."""
    if value is None:
        return "not run"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":  # python -m benchmarks.table benchmarks/results/MACHINE.json
    print("\n".join(to_summary(json.loads(Path(sys.argv[1]).read_text()))))
