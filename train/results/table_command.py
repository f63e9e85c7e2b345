"""`resnet-train table`: trains the published networks and writes the table of their errors."""

import argparse
import dataclasses
import hashlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resnet_spec import find_spec
from train.config import Config
from train.config.recipes import RECIPES
from train.errors import UserError
from train.results.collect import find_runs
from train.results.groups import Group, group_key
from train.results.plan import Asked, configure, is_usual, row_name
from train.results.protocol import PROTOCOLS
from train.results.published import DATA, published_models
from train.results.record import EXPORT, encode, write_files
from train.results.render import table_page
from train.results.table import Table, make_table, read_table, to_json
from train.results.training import Plan, find_below, train_missing

_DESCRIPTION = """\
Trains the networks of a table, the cheapest first, and tests every export again in the torch
twin. Writes the table to OUT after every run: DATA.json, DATA.md, curves/, and small networks in
weights/. A run below RUNS that has the configuration of a row is a run of that row, whoever
started it. Finished runs are not repeated, unfinished ones continue. Finished runs in the table in
OUT that are not below RUNS stay in it; the curve of a row is only drawn again if all of its runs
are below RUNS. Networks without a run are marked so.
Exit code: 0; 1 if a run diverged; 2 for a mistake; 75 if a signal stopped it: the same command
continues.

protocols:
"""
_SEEDS = "5"  # as in torch-resnet's table
_KEPT_SEED, _KEPT_BYTES = 111, 2_000_000  # whose network is kept as a file, up to which size
_DIGITS = 8  # of the hash in the names of an unusual row's files


def main(arguments: list[str]) -> int:
    """Trains what is missing and writes the table.

    Raises:
        UserError: a mistake in the command, or files that cannot be read or written.
        DivergedError: a run was not finite.
        StoppedError: a signal came.
    """
    options = _parser().parse_args(arguments)
    plan = _plan(options)
    if importlib.util.find_spec("matplotlib") is None:
        print("resnet-train: no curves: install flax-resnet[plot]", file=sys.stderr)

    for folder, reason in find_runs([plan.runs] if plan.runs.exists() else [])[1].items():
        print(f"resnet-train: skipped {folder}: {reason}", file=sys.stderr)

    def write() -> None:
        write_table(plan, options.out)

    write()  # before hours of training, to see that it can be written
    if not options.only_write:
        train_missing(plan, lambda line: print(line, flush=True), write)
    print(f"wrote {options.data}.json and {options.data}.md in {options.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    protocols = "".join(f"  {name}: {text}\n" for name, text in PROTOCOLS.items())
    parser = argparse.ArgumentParser(
        "resnet-train table",
        description=_DESCRIPTION + protocols,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add: Callable[..., Any] = parser.add_argument
    known = [name for name in RECIPES if name in DATA and name != "imagenet2012"]
    add("--protocol", required=True, choices=PROTOCOLS, help="which images, see above")
    add("--data", choices=known, default="cifar10", help="default: cifar10")
    add("--models", help="separated by commas; default: all with a published error")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seeds", default=_SEEDS,
        help=f"how many (111, 222, ...), or a list with commas; default: {_SEEDS}")  # fmt: skip
    which.add_argument("--seed", type=int, help="a single seed")
    recipes = [name for name, recipe in RECIPES.items() if recipe.config.data in known]
    add("--recipe", choices=recipes, metavar="RECIPE",
        help=f"{', '.join(recipes)}; default: DATA's own, for Wide ResNets DATA-wide")  # fmt: skip
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, help="scale the recipe's schedule to this length")
    length.add_argument("--max-steps", type=int, help="the same, in steps")
    add("--precision", choices=("f32", "bf16"), default="f32", help="default: f32")
    add("--seeds-mode", choices=("turns", "auto", "vmap", "devices"), default="turns",
        help="train a model's seeds one after another or at once; default: turns")  # fmt: skip
    add("--scan-blocks", action="store_true", help="compile equal blocks once")
    add("--remat", action="store_true", help="use less memory and more time")
    add("--parallel", choices=("pmap", "jit"), default="pmap", help="default: pmap")
    add(
        "--data-dir",
        type=Path,
        help="folder of tensorflow-datasets; default: TFDS_DATA_DIR, or ~/tensorflow_datasets",
    )
    add("--runs", type=Path, default=Path("runs/table"), help="folder of runs; default: runs/table")
    add("--out", type=Path, default=Path("results"), help="folder to write to; default: results")
    add("--only-write", action="store_true", help="train nothing, write the table of what is there")
    return parser


def _plan(options: argparse.Namespace) -> Plan:
    """What the options ask for; checks everything that can be checked before training."""
    names = options.models.split(",") if options.models else published_models(options.data)
    if not names:
        raise UserError(f"no error is published for {options.data}: name --models")
    models = list({find_spec(name): name for name in names}.values())  # each network once
    one = options.seed is not None
    seeds = (Config(seed=options.seed) if one else Config(seeds=options.seeds)).seed_list
    asked = Asked(options.data, options.protocol, options.recipe, options.epochs, options.max_steps)
    names = ("data_dir", "precision", "scan_blocks", "remat", "parallel")
    fields = {name: getattr(options, name) for name in names}
    for model in models:
        configure(model, asked, **fields)
    return Plan(asked, models, seeds, options.seeds_mode, options.runs, fields)


def write_table(plan: Plan, out: Path) -> None:
    """Writes the table of the runs of a plan, and of the other runs in the table in `out`.

    Raises:
        UserError: the older table is damaged, or a file cannot be written.
    """
    data = plan.asked.data
    before = read_table(out / f"{data}.json", data)
    table = make_table(find_below(plan.runs), before, plan.asked.protocol, plan.models)
    weights, files = _kept_networks(table)
    table = dataclasses.replace(table, weights=weights)
    files |= _curves(table, out)

    def place(folder: Path) -> str:
        is_below = folder.is_relative_to(plan.runs)
        return (folder.relative_to(plan.runs) if is_below else folder).as_posix()

    older = (path.relative_to(out).as_posix() for path in (out / "curves").glob(f"{data}-*.svg"))
    shown = sorted({*older, *(name for name in files if name.endswith(".svg"))})
    page = table_page(table) + "".join(f"\n![{Path(name).stem}]({name})\n" for name in shown)
    record = to_json(table, place)
    write_files(out, {**files, f"{data}.json": encode(record), f"{data}.md": encode(page)})


def _kept_networks(table: Table) -> tuple[dict[str, dict[str, Any]], dict[str, bytes]]:
    """The entries of the networks that are kept, by `group_key`; their files, name -> content.

    Small networks of seed 111 are kept. An entry of an older table stays if its run is not here.
    """
    entries: dict[str, dict[str, Any]] = {}
    files: dict[str, bytes] = {}
    for group in table.groups:
        run = next((run for run in group.finished if run.seed == _KEPT_SEED), None)
        if run is None or run.outcome is None:
            continue
        source, key, outcome = run.folder / EXPORT, group_key(run), run.outcome
        if not (run.metrics and source.is_file()):  # a run of an older table is not here
            entries |= {key: table.weights[key]} if key in table.weights else {}
        elif source.stat().st_size <= _KEPT_BYTES:
            name = f"weights/{_file_stem(group)}.safetensors"
            files[name] = source.read_bytes()
            in_torch = outcome.torch_error  # that of the file, in float32
            entries[key] = {
                "file": name,
                "seed": run.seed,
                "error": round(outcome.error if in_torch is None else in_torch, 6),
                "different_predictions": outcome.different_predictions,
                "test_images": run.test_images,
            }
    return entries, files


def _curves(table: Table, out: Path) -> dict[str, bytes]:
    """A picture for each row with runs that are here: file name -> content.

    An older picture stays as long as some runs of its row are not here: it may show them.
    """
    try:
        from train.results.plot import draw
    except ModuleNotFoundError:  # matplotlib; `main` has said so
        return {}
    pictures: dict[str, bytes] = {}
    for group in table.groups:
        name = f"curves/{_file_stem(group)}.svg"
        here = tuple(run for run in group.runs if run.metrics)
        is_whole = all(run.metrics for run in group.finished)
        if here and (is_whole or not (out / name).exists()):
            pictures[name] = draw([dataclasses.replace(group, runs=here, options={})])["svg"]
    return pictures


def _file_stem(group: Group) -> str:
    """The name of a row's files: that of its folder, with a hash if it does not say everything."""
    run = group.first
    name = f"{run.config.data}-{row_name(run.config, run.protocol)}"
    if is_usual(run.config):
        return name
    return f"{name}-{hashlib.sha256(group_key(run).encode()).hexdigest()[:_DIGITS]}"
