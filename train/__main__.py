"""The command line of the trainer: `resnet-train`, or `python -m train`."""

import dataclasses
import importlib
import io
import json
import os
import re
import sys
import textwrap
from collections.abc import Collection
from typing import Any

from resnet_spec import UnknownNameError
from train.config import FOLDER, OF_ONE_START, Config, flag, unused_fields
from train.config.fields import RESIZING, SECTIONS
from train.config.recipes import DEFAULT, RECIPES
from train.errors import (
    DeviceError,
    DivergedError,
    StoppedError,
    UserError,
    device_errors,
    exit_code,
)
from train.run.run_folder import saved_config, saved_origin

_PRINT = "--print-config"
_HELP = {"-h", "--help"}
COMMANDS = {  # beside the recipes: a module with `main(arguments) -> exit code`
    "prepare": "train.data.prepare",
    "results": "train.results.results_command",
    "table": "train.results.table_command",
}
_OVERVIEW = f"""\
usage: resnet-train [RECIPE] [--option value ...] [{_PRINT}]
       resnet-train COMMAND ...

Trains ResNets. A recipe is a configuration; options change it, and {_PRINT} only shows it.
A run writes checkpoints, metrics, its result and its weights into a folder of its own.

Commands (COMMAND --help says more)
  prepare  download a data set and make the folder that the trainer reads
  results  table and curves of the runs in a folder, beside what was published
  table    train the networks that the papers report, and write the table

Recipes (RECIPE --help shows source, reasons, published errors and all options; default {DEFAULT})
{{recipes}}

Options (RECIPE --help explains each)
{{options}}"""


def main(arguments: list[str] | None = None) -> int:
    """Runs one recipe or command.

    Returns:
        0; 2 for a user's mistake, 1 for a failed run, 75 for a run that a signal stopped and that
        is saved, 130 for one that a second SIGINT interrupted: each with one sentence on stderr.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # no run ends over a name that cannot be encoded
            stream.reconfigure(errors="backslashreplace")
    arguments = sys.argv[1:] if arguments is None else arguments
    others = {*COMMANDS} & {*arguments[:1]} or {"--eval-only", "--compile-for"} & {*arguments}
    trains = not others
    try:
        try:
            code = _carry_out(arguments)
        except SystemExit:  # after --help
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # fails here, not at exit, if nobody reads any more
        return code
    except ModuleNotFoundError as error:
        extra = "torch" if error.name == "torch" else "train"
        return _fail(error, f"this needs the package {error.name}: install flax-resnet[{extra}]")
    except KeyboardInterrupt as error:
        way_on = "; --resume --run-dir FOLDER goes on from a checkpoint" if trains else ""
        return _fail(error, f"interrupted{way_on}")
    except BrokenPipeError as error:  # `| head`: enough was read, unless it is a run
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still buffered
        is_read = _PRINT in arguments or _HELP & {*arguments} or not trains
        return 0 if is_read else _fail(error, "standard output was closed")
    except (
        *(UserError, UnknownNameError, StoppedError, DivergedError, DeviceError),
        OSError,
    ) as error:
        return _fail(error, str(error))


def _carry_out(arguments: list[str]) -> int:
    if arguments and arguments[0] in COMMANDS:
        return importlib.import_module(COMMANDS[arguments[0]]).main(arguments[1:])
    if arguments and arguments[0] in _HELP:
        print(_overview())
    elif _PRINT in arguments:
        config = parse([argument for argument in arguments if argument != _PRINT])
        print(json.dumps(config.to_json(), indent=2))
    else:
        given = [name for name in RESIZING if flag(name) in _options(arguments)]
        config = parse(arguments)
        if note := _of_digits(config, arguments):
            print(note, file=sys.stderr)
        _run(config, _recipe_name(arguments), given)
    return 0


def _run(config: Config, recipe: str, given: Collection[str]) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from train.ahead.compile_command import compile_for
    from train.run.loop import evaluate, train  # starts JAX: help and mistakes need not wait
    from train.step.parallel import enable_float64

    if config.precision == "f64":
        enable_float64()
    with device_errors():
        if config.compile_for is not None:
            compile_for(config, given=given)
        elif config.eval_only:
            evaluate(config, given=given)
        else:
            train(config, recipe=recipe, given=given)


def _fail(error: BaseException, sentence: str) -> int:
    print(f"resnet-train: {sentence}", file=sys.stderr)
    return exit_code(error)


def parse(arguments: list[str]) -> Config:
    """The configuration of a command line: a recipe, changed by the options.

    A resumed run starts from its own saved configuration instead of the recipe's.

    Raises:
        ValueError: there is no such recipe, or a value is out of range or has no effect.
        SystemExit: after help (0), or for an unknown option or a wrong type (2).
    """
    name = _recipe_name(arguments)
    has_recipe = arguments[:1] == [name]
    fields = arguments[1:] if has_recipe else arguments
    if name not in RECIPES:
        raise UnknownNameError("recipe", name, RECIPES)
    default = RECIPES[name].config
    config = _parse_fields(name, default, fields)
    if config.resume and config.run_dir is not None:
        saved = saved_config(config.run_dir)
        if saved is not None:
            if has_recipe:
                _check_recipe(name, config, saved, saved_origin(config.run_dir)["recipe"])
            default = dataclasses.replace(saved, **OF_ONE_START)
            config = _parse_fields(name, default, fields)
    if problems := [*unused_fields(config, default), *_too_warm(config, default)]:
        raise UserError("; ".join(problems))
    return config


def _recipe_name(arguments: list[str]) -> str:
    return arguments[0] if arguments and not arguments[0].startswith("-") else DEFAULT


def _of_digits(config: Config, arguments: list[str]) -> str:
    """What is said of other data by the numbers for digits: a recipe was not named."""
    has_recipe = arguments[:1] == [_recipe_name(arguments)]
    others = [n for n, r in RECIPES.items() if _kind(r.config.data) == _kind(config.data)]
    if has_recipe or config.resume or config.eval_only or DEFAULT in others:
        return ""
    return (
        f"resnet-train: no recipe is named, so that all other numbers are those of {DEFAULT} "
        f"(schedule, crops, no mirroring); recipes for {_kind(config.data).rstrip(':')}: "
        + ", ".join(others)
    )


def _check_recipe(name: str, config: Config, saved: Config, recorded: str | None) -> None:
    """A recipe that is named for a resumed run must be the run's own."""
    if _kind(config.data) != _kind(saved.data):
        reason = f"is a run on {saved.data}, not {name}"
    elif recorded not in (None, name):  # None: by an older version, or not by a recipe
        reason = f"began with the recipe {recorded}, not {name}"
    else:
        return
    raise UserError(f"--run-dir {config.run_dir} {reason}: leave the recipe out to go on with it")


def _too_warm(config: Config, usual: Config) -> list[str]:
    """A warm-up rate from the command line must not be above the peak."""
    rate = config.warmup_learning_rate
    most = max(config.learning_rate, config.peak_learning_rate)  # a small batch lowers the peak
    if not config.has_warmup or rate <= most or rate == usual.warmup_learning_rate:
        return []
    return [
        f"--warmup-learning-rate {config.warmup_learning_rate} is above the peak, {most}: give no "
        "more than that, or --warmup-steps 0"
    ]


def _kind(data: str) -> str:
    """The data set; folders of images count as one, because they may move."""
    return FOLDER if data.startswith(FOLDER) else data


def _options(arguments: list[str]) -> set[str]:
    """The options of a command line, among its other words."""
    return {argument.partition("=")[0].replace("_", "-") for argument in arguments}


def _parse_fields(name: str, default: Config, fields: list[str]) -> Config:
    """Fields on top of a default; steps that are given replace its epochs, and epochs its steps."""
    import tyro

    options = _options(fields)
    in_steps = [kind for kind in ("drop", "warmup") if f"--{kind}-steps" in options]
    replaced: dict[str, Any] = {f"{kind}_epochs": None for kind in in_steps}
    if "--epochs" in options:
        replaced["max_steps"] = None
    values = vars(dataclasses.replace(default, **replaced))
    form = dataclasses.make_dataclass("Form", SECTIONS.items())  # a group of options for each
    usual = {
        title: section(**{field.name: values[field.name] for field in dataclasses.fields(section)})
        for title, section in SECTIONS.items()
    }
    found = tyro.cli(
        form,
        prog=f"resnet-train {name}",
        description=_describe(name),
        default=form(**usual),
        args=fields,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    config = Config(**{k: v for section in vars(found).values() for k, v in vars(section).items()})
    both = [kind for kind in in_steps if getattr(config, f"{kind}_epochs") is not None]
    if both:
        pairs = (f"--{kind}-steps and --{kind}-epochs exclude each other" for kind in both)
        raise UserError("; ".join(pairs))
    return config


def _describe(name: str) -> str:
    """A recipe's source, reasons and published errors as a list, for its help."""
    recipe = RECIPES[name]
    lists = {"Why": recipe.reason, "Published error in percent": recipe.published}
    lines = [f"Recipe {name}: {recipe.source}."]
    for title, text in lists.items():
        items = re.split(r"; (?![^(]*\))", text)  # not within parentheses
        wrap = textwrap.TextWrapper(
            98, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False
        )
        lines += ["", f"{title}:", *map(wrap.fill, items)]
    return "\n".join(lines)


def _overview() -> str:
    """The help of all recipes and commands: two screens of a terminal."""
    recipes = [
        f"  {name:<19} {row.config.model:<22} {row.config.data:<13} {row.config.epochs:>3} epochs  "
        + re.split(r"[,:;(]", row.source)[0].strip()
        for name, row in RECIPES.items()
    ]
    options = []
    for title, section in SECTIONS.items():
        names = " ".join(flag(field.name) for field in dataclasses.fields(section))
        first, *others = textwrap.wrap(names, 85, break_on_hyphens=False)
        options += [f"  {title:<12} {first}", *(f"{'':<15}{line}" for line in others)]
    return _OVERVIEW.format(recipes="\n".join(recipes), options="\n".join(options))


if __name__ == "__main__":
    sys.exit(main())
