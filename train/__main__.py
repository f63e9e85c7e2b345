"""The command line of the trainer: `resnet-train`, or `python -m train`."""

import dataclasses
import importlib
import io
import json
import os
import sys
from typing import Any

from resnet_spec import UnknownNameError
from train.config import FOLDER, OF_ONE_START, Config, unused_fields
from train.config.recipes import DEFAULT, RECIPES
from train.errors import (
    DeviceError,
    DivergedError,
    StoppedError,
    UserError,
    device_errors,
    exit_code,
)
from train.run.run_folder import saved_config

_PRINT = "--print-config"
_USAGE = f"usage: resnet-train [RECIPE] [--field value ...] [{_PRINT}]"
COMMANDS = {  # beside the recipes: a module with `main(arguments) -> exit code`
    "prepare": "train.data.prepare",
    "results": "train.results.results_command",
    "table": "train.results.table_command",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one recipe or command.

    Returns:
        0; 2 for a user's mistake, 1 for a run that failed, 75 for one that a signal stopped and
        that has saved all it did, 130 for one that a second SIGINT broke off: each with one
        sentence on stderr.
    """
    _say_any_name()
    arguments = sys.argv[1:] if arguments is None else arguments
    trains = not (arguments and arguments[0] in COMMANDS) and "--eval-only" not in arguments
    try:
        try:
            code = _carry_out(arguments)
        except SystemExit:  # of --help
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # a reader that has left is noticed here, and not as the process ends
        return code
    except ModuleNotFoundError as error:
        extra = "torch" if error.name == "torch" else "train"
        return _fail(error, f"this needs the package {error.name}: install flax-resnet[{extra}]")
    except KeyboardInterrupt as error:
        way_on = "; --resume --run-dir FOLDER goes on from a checkpoint" if trains else ""
        return _fail(error, f"interrupted{way_on}")
    except BrokenPipeError as error:  # `| head`: what was asked for was read, or a run is not
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left has no end
        is_said = _PRINT in arguments or {"-h", "--help"} & {*arguments} or not trains
        return 0 if is_said else _fail(error, "standard output was closed")
    except (
        *(UserError, UnknownNameError, StoppedError, DivergedError, DeviceError),
        OSError,
    ) as error:
        return _fail(error, str(error))


def _carry_out(arguments: list[str]) -> int:
    if arguments and arguments[0] in COMMANDS:
        return importlib.import_module(COMMANDS[arguments[0]]).main(arguments[1:])
    if _PRINT in arguments:
        config = parse([argument for argument in arguments if argument != _PRINT])
        print(json.dumps(config.to_json(), indent=2))
    else:
        _run(parse(arguments))
    return 0


def _say_any_name() -> None:
    """No run ends over the name of a file that the terminal's encoding has not."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _run(config: Config) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from train.run.loop import evaluate, train  # JAX starts here: help and mistakes need not wait
    from train.step.parallel import enable_float64

    if config.precision == "f64":
        enable_float64()
    with device_errors():
        (evaluate if config.eval_only else train)(config)


def _fail(error: BaseException, sentence: str) -> int:
    print(f"resnet-train: {sentence}", file=sys.stderr)
    return exit_code(error)


def parse(arguments: list[str]) -> Config:
    """The configuration of a command line: a recipe's row, and the fields named on top of it.

    A run that is resumed begins from its own saved configuration instead of the recipe's.

    Raises:
        ValueError: there is no such recipe, or a field is out of its range or of no use.
        SystemExit: help was asked for (0), or an option is unknown or of the wrong type (2).
    """
    has_recipe = bool(arguments) and not arguments[0].startswith("-")
    name, fields = (arguments[0], arguments[1:]) if has_recipe else (DEFAULT, arguments)
    if name not in RECIPES:
        raise UnknownNameError("recipe", name, RECIPES)
    default = RECIPES[name].config
    config = _parse_fields(name, default, fields)
    if config.resume and config.run_dir is not None:
        saved = saved_config(config.run_dir)
        if saved is not None:
            if has_recipe:
                _check_recipe(name, config, saved)
            default = dataclasses.replace(saved, **OF_ONE_START)
            config = _parse_fields(name, default, fields)
    if problems := [*unused_fields(config, default), *_too_warm(config, default)]:
        raise UserError("; ".join(problems))
    return config


def _check_recipe(name: str, config: Config, saved: Config) -> None:
    """A recipe that is named beside a run must be that of the run."""
    nearest = _nearest_recipe(name, config, saved)
    if _kind(config.data) != _kind(saved.data):
        reason = f"is a run on {saved.data}, not {name}"
    elif nearest != name:
        reason = f"is nearer to the recipe {nearest} than to {name}"
    else:
        return
    raise UserError(f"--run-dir {config.run_dir} {reason}: leave the recipe out to go on with it")


def _nearest_recipe(name: str, config: Config, saved: Config) -> str:
    """The recipe with the fewest fields unlike a run's; of several the one that is named.

    A field that the command changes as it did when the run began is none of them.
    """
    own, now, then = (vars(c) for c in (RECIPES[name].config, config, saved))
    compared = [field for field in then if own[field] == then[field] or now[field] != then[field]]

    def distance(other: str) -> tuple[int, bool]:
        fields = vars(RECIPES[other].config)
        return sum(fields[field] != then[field] for field in compared), other != name

    return min(RECIPES, key=distance)


def _too_warm(config: Config, usual: Config) -> list[str]:
    """A warm-up that is asked for must not begin above the peak, as a recipe's never does."""
    rate = config.warmup_learning_rate
    most = max(config.learning_rate, config.peak_learning_rate)  # a small batch lowers both
    if not config.has_warmup or rate <= most or rate == usual.warmup_learning_rate:
        return []
    return [
        f"--warmup-learning-rate {config.warmup_learning_rate} is above the peak, {most}: give no "
        "more than that, or --warmup-steps 0"
    ]


def _kind(data: str) -> str:
    """A folder of images may have moved."""
    return FOLDER if data.startswith(FOLDER) else data


def _parse_fields(name: str, default: Config, fields: list[str]) -> Config:
    """Fields on top of a default; steps that are named take the place of the default's epochs."""
    import tyro

    options = {field.partition("=")[0].replace("_", "-") for field in fields}
    in_steps = [kind for kind in ("drop", "warmup") if f"--{kind}-steps" in options]
    no_epochs: dict[str, Any] = {f"{kind}_epochs": None for kind in in_steps}
    config = tyro.cli(
        Config,
        prog=f"resnet-train {name}",
        description=_describe(name),
        default=dataclasses.replace(default, **no_epochs),
        args=fields,
    )
    both = [kind for kind in in_steps if getattr(config, f"{kind}_epochs") is not None]
    if both:
        pairs = (f"--{kind}-steps and --{kind}-epochs exclude each other" for kind in both)
        raise UserError("; ".join(pairs))
    return config


def _describe(name: str) -> str:
    recipe = RECIPES[name]
    return (
        f"{_USAGE}\nRecipes: {', '.join(RECIPES)} (default {DEFAULT}); any field can be changed, "
        f"{_PRINT} shows the result.\nCommands: {', '.join(COMMANDS)}; COMMAND --help.\n"
        f"{name}: {recipe.source}.\nWhy: {recipe.reason}.\nPublished error (%): {recipe.published}."
    )


if __name__ == "__main__":
    sys.exit(main())
