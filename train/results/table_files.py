"""The files of a table: written whole, each before another names it, and read again."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from train.errors import UserError
from train.results.content import Content, collect, from_json, to_json
from train.results.keep import file_stem, small_networks
from train.results.page import as_markdown
from train.results.results_command import encode_text, write_files
from train.results.training import find_below


def write_table(out: Path, data: str, runs: Path, protocol: str, models: Sequence[str]) -> Content:
    """Writes the table of the runs below `runs`, and of what the table in `out` tells of others.

    Raises:
        UserError: the older table is damaged, or a file cannot be written.
    """
    before = read_table(out / f"{data}.json", data)
    content = collect(find_below(runs), before, protocol, models)
    weights, files = small_networks(content)
    content = dataclasses.replace(content, weights=weights)

    def place(folder: Path) -> str:  # below RUNS, wherever that is
        return (folder.relative_to(runs) if folder.is_relative_to(runs) else folder).as_posix()

    files |= _curves(content, out)
    page = as_markdown(content) + _shown(out, [*files], data)
    record = json.dumps(to_json(content, place), indent=2, allow_nan=False) + "\n"
    write_files(out, {**files, f"{data}.json": record.encode(), f"{data}.md": encode_text(page)})
    return content


def read_table(path: Path, data: str) -> Content:
    """A table that was written before, empty where there is none.

    Raises:
        UserError: it is damaged, or of another version.
    """
    if not path.exists():
        return Content(data, [], [])
    try:
        return from_json(json.loads(path.read_text()))
    except (UserError, OSError, ValueError) as error:
        raise UserError(f"{path}: {error}; mend it, or write elsewhere by --out") from error


def _curves(content: Content, out: Path) -> dict[str, bytes]:
    """A picture for each row with runs that are here: file name -> content.

    One that is there stays while runs of the row are elsewhere, which it may show.
    """
    try:
        from train.results.plot import draw
    except ModuleNotFoundError:  # matplotlib, of which the command has spoken
        return {}
    pictures: dict[str, bytes] = {}
    for group in content.groups:
        name = f"curves/{file_stem(group)}.svg"
        here = tuple(run for run in group.runs if run.metrics)
        is_whole = all(run.metrics for run in group.finished)
        if here and (is_whole or not (out / name).exists()):
            pictures[name] = draw([dataclasses.replace(group, runs=here, options={})])["svg"]
    return pictures


def _shown(out: Path, new: Sequence[str], data: str) -> str:
    """The pictures that are there, the older ones too."""
    older = [path.relative_to(out).as_posix() for path in (out / "curves").glob(f"{data}-*.svg")]
    names = sorted({*older, *(name for name in new if name.endswith(".svg"))})
    return "".join(f"\n![{Path(name).stem}]({name})\n" for name in names)
