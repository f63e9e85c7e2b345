"""The command line of `resnet-train table`."""

import argparse
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
from train.results.plan import Wish, configure
from train.results.protocol import PROTOCOLS
from train.results.published import DATA, published_models
from train.results.table_files import write_table
from train.results.training import Plan, train_missing

_DESCRIPTION = """\
Trains the networks of a table and writes it into OUT, anew after every run: DATA.json, DATA.md,
curves/, and small networks in weights/. A run that is done is not done again, a half-done one goes
on: whatever run below RUNS has the configuration that a row asks for is that row's, whoever
started it. The cheapest network comes first. Every export is measured again in the torch twin.
Finished runs of the table in OUT that are not here stay in it; a row has a curve of its own, drawn
anew where all of its runs are here. What nobody ran is marked so.
Exit code: 0; 1 where a run diverged; 2 for a mistake; 75 where a signal stopped it: the same
command goes on.

protocols:
"""
_SEEDS = "5"  # as in torch-resnet's table


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
        write_table(options.out, options.data, plan.runs, options.protocol, plan.models)

    write()  # rather than learn after hours of training that it cannot be
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
    add("--models", help="with commas between them; default: all with a published error")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seeds", default=_SEEDS,
        help=f"how many (111, 222, ...), or which, with commas; default: {_SEEDS}")  # fmt: skip
    which.add_argument("--seed", type=int, help="a single one")
    recipes = [name for name, recipe in RECIPES.items() if recipe.config.data in known]
    add("--recipe", choices=recipes, metavar="RECIPE",
        help=f"{', '.join(recipes)}; default: DATA's own, for Wide ResNets DATA-wide")  # fmt: skip
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, help="scale the recipe's whole schedule to so many")
    length.add_argument("--max-steps", type=int, help="the same in steps")
    add("--precision", choices=("f32", "bf16"), default="f32", help="default: f32")
    add("--seeds-mode", choices=("turns", "auto", "vmap", "devices"), default="turns",
        help="train a model's seeds one after another, or at once; default: turns")  # fmt: skip
    add("--scan-blocks", action="store_true", help="compile equal blocks once")
    add("--remat", action="store_true", help="less memory, more time")
    add("--parallel", choices=("pmap", "jit"), default="pmap", help="default: pmap")
    add("--data-dir", type=Path, help="folder of tensorflow-datasets; default: TFDS_DATA_DIR")
    add("--runs", type=Path, default=Path("runs/table"), help="default: runs/table")
    add("--out", type=Path, default=Path("results"), help="default: results")
    add("--only-write", action="store_true", help="train nothing, write the table of what is there")
    return parser


def _plan(options: argparse.Namespace) -> Plan:
    """What the options ask for, checked as far as can be before anything runs."""
    names = options.models.split(",") if options.models else published_models(options.data)
    if not names:
        raise UserError(f"no error is published for {options.data}: name --models")
    models = {find_spec(name): name for name in names}  # one name for each network
    one = options.seed is not None
    seeds = (Config(seed=options.seed) if one else Config(seeds=options.seeds)).seed_list
    device = ("precision", "scan_blocks", "remat", "parallel")
    wish = Wish(
        data=options.data,
        protocol=options.protocol,
        recipe=options.recipe,
        epochs=options.epochs,
        max_steps=options.max_steps,
        data_dir=options.data_dir,
        fields={name: getattr(options, name) for name in device},
    )
    for name in models.values():
        configure(name, wish)
    return Plan(wish, list(models.values()), seeds, options.seeds_mode, options.runs)
