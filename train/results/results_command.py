"""`resnet-train results`: the table and the curves of the runs in some folders."""

import argparse
import importlib.util
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from train.errors import UserError
from train.results.collect import RecordedRun, find_runs
from train.results.groups import group_runs
from train.results.record import encode, to_record, write_files
from train.results.render import print_results, results_page

_DESCRIPTION = """\
Finds all runs in and below the folders, groups the runs that differ only in their seed, and prints
the errors that they reached (mean, standard deviation, lowest and highest) beside the published
ones. Writes the table to results.json and results.md, the curves to curves.png and curves.svg.
Exit code: 0; 2 if there is no run, or for a mistake in the command.
"""


def main(arguments: list[str]) -> int:
    """Prints and writes the table, and with `--plot` the curves.

    Raises:
        UserError: there is no run in the folders, the files cannot be written, or `--plot` is given
            and matplotlib is not installed.
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
    print_results(groups)
    out = options.folders[0] if options.output is None else options.output
    pictures = _draw(options.folders, runs) if options.plot else {}

    def place(path: Path) -> str:
        return Path(os.path.relpath(path, out)).as_posix()

    record = {
        "results": [to_record(group, place) for group in groups],
        "skipped": {place(path): reason for path, reason in sorted(skipped.items())},
    }
    shown = (name for name in pictures if name.endswith(".svg"))
    page = results_page(groups, place) + "".join(f"\n![Training curves]({n})\n" for n in shown)
    files = {"results.json": encode(record), "results.md": encode(page), **pictures}
    write_files(out, files)
    print(f"wrote {', '.join(files)} in {out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "resnet-train results",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("folders", metavar="DIR", type=Path, nargs="+", help="a folder of runs, at any depth")
    add("--plot", action="store_true", help="also draw the curves of each DIR")
    add("-o", "--output", metavar="OUT", type=Path, help="where to write; default: the first DIR")
    return parser


def _draw(folders: Sequence[Path], runs: Sequence[RecordedRun]) -> dict[str, bytes]:
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
        pictures |= {f"{stem}.{form}": content for form, content in draw(groups).items()}
    return pictures


def _is_below(place: Path, folder: Path) -> bool:
    """With or without following links."""
    return place.is_relative_to(folder) or place.resolve().is_relative_to(folder.resolve())
