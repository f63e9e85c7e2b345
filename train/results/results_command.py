"""`resnet-train results`: the table, the curves and the web page of the runs in some folders."""

import argparse
import importlib.util
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from train.errors import UserError
from train.results.collect import RecordedRun, find_runs
from train.results.groups import Group, group_key, group_runs
from train.results.published import DATA
from train.results.record import encode, to_record, write_files
from train.results.render import print_results, results_page
from train.results.table import Table, read_table

_DESCRIPTION = """\
Finds all runs in and below the folders, groups the runs that differ only in their seed, and prints
the errors that they reached (mean, standard deviation, lowest and highest) beside the published
ones. Writes the table to results.json and results.md, the curves to curves.png and curves.svg, and
all of it to results.html: one page to sort, zoom and follow links in, which needs no network. With
--html a folder of `resnet-train table` is shown, too, with its DATA.json.
Exit code: 0; 2 if there is no run, or for a mistake in the command.
"""
_PAGE = "results.html"
_MOST_SECONDS = 86_400


@dataclass(frozen=True)
class _Found:
    """What is in the folders; `tables` by the folder that they are in."""

    runs: list[RecordedRun]
    skipped: dict[Path, str]
    tables: dict[Path, list[Table]]

    @property
    def all_groups(self) -> list[Group]:
        """Of the runs, and of those in the tables that are not among them."""
        known = {(group_key(run), run.seed) for run in self.runs}
        listed = [table for tables in self.tables.values() for table in tables]
        old = [run for table in listed for group in table.groups for run in group.finished]
        return group_runs([*self.runs, *(r for r in old if (group_key(r), r.seed) not in known)])


def main(arguments: list[str]) -> int:
    """Prints and writes the table, with `--plot` the curves and with `--html` the page.

    Raises:
        UserError: there is no run in the folders, the files cannot be written, or a package that
            draws is not installed.
    """
    options = _parser().parse_args(arguments)
    if problems := _problems(options):
        raise UserError("; ".join(problems))
    out = options.folders[0] if options.output is None else options.output
    found = _find(options)
    for path, reason in found.skipped.items():
        print(f"resnet-train: skipped {path}: {reason}", file=sys.stderr)
    _check_found(found, options)
    print_results(found.all_groups)
    files = _files(found, options, out) if found.runs else {}
    if options.html:
        files[_PAGE] = _page(found, options, out)
    write_files(out, files)
    print(f"wrote {', '.join(files)} in {out}", flush=True)
    while options.follow and any(run.outcome is None for run in found.runs):
        time.sleep(options.follow)
        found = _find(options)
        _check_found(found, options)
        write_files(out, {_PAGE: _page(found, options, out)})
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
    add("--html", action="store_true", help=f"also write the page, {_PAGE}")
    add("--follow", metavar="SECONDS", type=float, help="write the page again every so many "
        "seconds until all runs have ended; an open page loads itself again")  # fmt: skip
    add("-o", "--output", metavar="OUT", type=Path, help="where to write; default: the first DIR")
    return parser


def _problems(options: argparse.Namespace) -> list[str]:
    problems = [
        f"--{flag} needs {package}: install flax-resnet[plot]"
        for flag, package in (("plot", "matplotlib"), ("html", "plotly"))
        if getattr(options, flag) and importlib.util.find_spec(package) is None
    ]
    if options.follow is not None and not options.html:
        problems.append("--follow writes the page of --html: give both")
    if options.follow is not None and not 1 <= options.follow <= _MOST_SECONDS:
        problems.append(f"--follow must be from 1 to {_MOST_SECONDS}, not {options.follow:g}")
    return problems


def _find(options: argparse.Namespace) -> _Found:
    runs, skipped = find_runs(options.folders)
    tables: dict[Path, list[Table]] = {}
    for folder in options.folders if options.html else ():
        found = [read_table(folder / f"{data}.json", data) for data in DATA]
        if any(table.groups for table in found):
            tables[folder] = [table for table in found if table.groups]
    return _Found(runs, skipped, tables)


def _check_found(found: _Found, options: argparse.Namespace) -> None:
    """Raises a UserError if there is nothing to show."""
    if not (found.runs or found.tables):
        places = ", ".join(map(str, options.folders))
        raise UserError(f"there is no run (a folder with our config.json) in or below {places}")


def _files(found: _Found, options: argparse.Namespace, out: Path) -> dict[str, bytes]:
    """The table of the runs and their pictures: file name -> content."""
    groups = group_runs(found.runs)
    place = _places(out)
    pictures = _draw(options.folders, found.runs) if options.plot else {}
    record = {
        "results": [to_record(group, place) for group in groups],
        "skipped": {place(path): reason for path, reason in sorted(found.skipped.items())},
    }
    shown = (name for name in pictures if name.endswith(".svg"))
    page = results_page(groups, place) + "".join(f"\n![Training curves]({n})\n" for n in shown)
    return {"results.json": encode(record), "results.md": encode(page), **pictures}


def _page(found: _Found, options: argparse.Namespace, out: Path) -> bytes:
    from train.results.html_page import Page, html_page

    is_over = all(run.outcome is not None for run in found.runs)
    names = [
        name
        for folder in options.folders
        for name in [t.data for t in found.tables.get(folder, [])] or [folder.resolve().name]
    ]
    page = Page(
        title=", ".join(dict.fromkeys(names)),
        groups=found.all_groups,
        tables=found.tables,
        place=_places(out),
        refresh_seconds=None if is_over else options.follow,
    )
    return encode(html_page(page))


def _places(out: Path) -> Callable[[Path], str]:
    """How a path is written in the files in `out`."""
    return lambda path: Path(os.path.relpath(path, out)).as_posix()


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
