"""A comparison as JSON and as cells of tables, and files that appear whole or not at all."""

import json
import math
from pathlib import Path
from typing import Any

from convert.atomic import replacing
from convert.diff.comparison import ACTIVATIONS, Comparison, Row
from convert.diff.measure import Difference
from convert.diff.verdict import times

FORMAT_VERSION = 1


def as_json(comparison: Comparison) -> str:
    """Everything that was found; numbers that JSON has not (infinity, NaN) are null."""
    verdict = comparison.verdict
    fields = {
        "version": FORMAT_VERSION,
        "verdict": {
            "same": verdict.same,
            "same_function": verdict.same_function,
            "first_layer": verdict.first_layer,
            "reasons": verdict.reasons,
            "lines": verdict.lines,
        },
        "models": [
            {"title": title, "framework": framework, "only": only}
            for title, framework, only in zip(
                comparison.titles, comparison.frameworks, comparison.only, strict=True
            )
        ],
        "precision": comparison.precision,
        "device": comparison.device,
        "images": comparison.images,
        "flags": comparison.flags,
        "described": comparison.described,
        "described_training": comparison.described_training,
        "sections": {
            section: [_row_fields(row) for row in rows]
            for section, rows in comparison.sections.items()
        },
    }
    return json.dumps(fields, indent=1, allow_nan=False) + "\n"


def _row_fields(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "parts": row.parts,
        "float64": _difference_fields(row.exact),
        "reduced": None if row.reduced is None else _difference_fields(row.reduced),
        "noise": _finite(row.noise),
        "noise_ratio": _finite(row.noise_ratio),
        "tolerance": row.tolerance,
        "note": row.note,
    }


def _difference_fields(difference: Difference) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in vars(difference).items()}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def headings(comparison: Comparison, section: str) -> list[str]:
    """Of the columns that `cells` fills."""
    names = ["layer" if section in ACTIVATIONS else "array", "absolute", "relative", "cosine"]
    if comparison.precision != "f64" and section != "weights":
        names += [f"{comparison.precision} relative", "noise", "times noise"]
    return names


def cells(row: Row) -> list[str]:
    """A row of a table, as text."""
    texts = [
        row.name,
        f"{row.exact.absolute:.1e}",
        f"{row.exact.relative:.1e}",
        "" if math.isnan(row.exact.cosine) else f"{row.exact.cosine:.6f}",
    ]
    if row.reduced is not None:
        texts += [f"{row.reduced.relative:.1e}", f"{row.noise:.1e}", times(row.noise_ratio)]
    return texts


def remark(row: Row, section: str, *, is_first: bool) -> str:
    """What the last column says: where the networks part first, and notes."""
    mark = "first to part" if is_first else "parts" if row.parts else ""
    if section in ACTIVATIONS and not row.parts and row.is_noisy:
        mark = "more than rounding"
    return ", ".join(text for text in (mark, row.note) if text)


def write_whole(path: Path, text: str) -> None:
    """Writes a text file that appears whole, or not at all.

    Raises:
        OSError: the file cannot be written; what was there before still is.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
