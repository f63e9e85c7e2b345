"""The command line of `resnet-train results`."""

import argparse
import importlib.util
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from train.errors import UserError
from train.results.collect import Run, find_runs
from train.results.groups import Group, group_runs
from train.results.record import as_json
from train.results.table import as_markdown, print_table

_DESCRIPTION = """\
Finds all runs in and below the folders, groups those that differ in nothing but the seed, and
prints what they reached: mean, standard deviation, least and greatest error, beside the published
one. The table is written as results.json and results.md, the curves as curves.png and curves.svg.
Exit code: 0; 2 where there is no run, or for a mistake in the command.
"""


def main(arguments: list[str]) -> int:
    """Prints and writes the table, and with `--plot` the curves.

    Raises:
        UserError: there is no run in the folders, matplotlib is asked for and not installed, or the
            files cannot be written.
    """
    options = _parser().parse_args(arguments)
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        raise UserError("--plot needs matplotlib: install flax-resnet[plot]")
    runs, skipped = find_runs(options.folders)
    for path, reason in skipped.items():
        print(f"resnet-train: skipped {path}: {reason}", file=sys.stderr)
    if not runs:
        places = ", ".join(map(str, options.folders))
        raise UserError(f"there is no run (a folder with our config.json) in or below {places}")
    groups = group_runs(runs)
    print_table(groups)
    out = options.folders[0] if options.output is None else options.output
    pictures = _draw(options.folders, runs) if options.plot else {}
    _write(out, groups, skipped, pictures)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "resnet-train results",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders", metavar="DIR", type=Path, nargs="+", help="of runs, at any depth"
    )
    parser.add_argument("--plot", action="store_true", help="draw the curves of each DIR, too")
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=Path,
        help="folder to write to; default: the first DIR",
    )
    return parser


def _draw(folders: Sequence[Path], runs: Sequence[Run]) -> dict[str, bytes]:
    """One picture for each folder that has runs: file name -> content."""
    from train.results.plot import draw

    pictures: dict[str, bytes] = {}
    names: Counter[str] = Counter()
    for folder in {folder.resolve(): folder for folder in folders}.values():
        groups = group_runs(run for run in runs if _is_below(run.folder, folder))
        if not groups:
            continue
        title = folder.resolve().name
        names[title] += 1
        number = f"-{names[title]}" if names[title] > 1 else ""
        stem = "curves" if len(folders) == 1 else f"curves-{title}{number}"
        for form, content in draw(groups).items():
            pictures[f"{stem}.{form}"] = content
    return pictures


def _is_below(place: Path, folder: Path) -> bool:
    """By its path, on which there may be links, or by that without them."""
    return place.is_relative_to(folder) or place.resolve().is_relative_to(folder.resolve())


def _write(
    out: Path, groups: list[Group], skipped: dict[Path, str], pictures: dict[str, bytes]
) -> None:

    def place(path: Path) -> str:
        return Path(os.path.relpath(path, out)).as_posix()

    markdown = as_markdown(groups, place)
    shown = [name for name in pictures if name.endswith(".svg")]
    markdown += "".join(f"\n![Training curves]({name})\n" for name in shown)
    record = json.dumps(as_json(groups, skipped, place), indent=2, allow_nan=False) + "\n"
    contents = {"results.json": record.encode(), "results.md": encode_text(markdown), **pictures}
    write_files(out, contents)
    print(f"wrote {', '.join(contents)} in {out}")


def encode_text(text: str) -> bytes:
    """As UTF-8, also where the name of a folder is not."""
    return text.encode(errors="backslashreplace")


def write_files(out: Path, contents: dict[str, bytes]) -> None:
    """Writes files into a folder in their order, each whole or not at all.

    Raises:
        UserError: the folder cannot be written to.
    """
    try:
        for name, content in contents.items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.new")
            temporary.write_bytes(content)
            temporary.replace(path)
    except OSError as error:
        raise UserError(f"{out} cannot be written to: {error}") from error
