"""A comparison as JSON and as the cells of tables."""

import json
import math
from pathlib import Path
from typing import Any

from convert.atomic import replacing
from convert.parity.comparison import ACTIVATIONS, Comparison, Difference, Row
from convert.parity.verdict import times

FORMAT_VERSION = 1
_SETTINGS = ("precision", "device", "images", "flags", "described", "described_training")


def as_json(comparison: Comparison) -> str:
    """All findings. Numbers that JSON does not have (infinity, NaN) are null."""
    fields = {
        "version": FORMAT_VERSION,
        "verdict": vars(comparison.verdict),
        "models": [
            {"title": title, "framework": framework, "only": only, "unpaired": unpaired}
            for title, framework, only, unpaired in zip(
                comparison.titles,
                comparison.frameworks,
                comparison.only,
                comparison.unpaired,
                strict=True,
            )
        ],
        **{name: getattr(comparison, name) for name in _SETTINGS},
        "hints": [vars(hint) for hint in comparison.hints],
        "sections": {
            section: [_row_fields(row) for row in rows]
            for section, rows in comparison.sections.items()
        },
    }
    return json.dumps(fields, indent=1, allow_nan=False) + "\n"


def _row_fields(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "parts": row.differs,  # its name in version 1 of the format
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
    """Of the columns that `cells` fills; that of the remarks has none."""
    names = ["layer" if section in ACTIVATIONS else "array", "absolute", "relative", "cosine"]
    if comparison.precision != "f64" and section != "weights":
        names += [f"{comparison.precision} relative", "noise", "times noise"]
    return [*names, ""]


def cells(comparison: Comparison, section: str, row: Row) -> list[str]:
    """A row of a table, as text; the last cell says where the networks differ, and notes."""
    texts = [
        row.name,
        f"{row.exact.absolute:.1e}",
        f"{row.exact.relative:.1e}",
        "" if math.isnan(row.exact.cosine) else f"{row.exact.cosine:.6f}",
    ]
    if row.reduced is not None:
        texts += [f"{row.reduced.relative:.1e}", f"{row.noise:.1e}", times(row.noise_ratio)]
    mark = "differs" if row.differs else ""
    if row is comparison.first_in(section):
        mark = "first to differ"
    elif section in ACTIVATIONS and not row.differs and row.is_noisy:
        mark = "more than rounding"
    return [*texts, ", ".join(text for text in (mark, row.note) if text)]


def write_whole(path: Path, text: str) -> None:
    """Writes a text file whole or not at all.

    Raises:
        OSError: the file cannot be written; what was there before is unchanged.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
