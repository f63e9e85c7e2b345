"""The command line of the trainer: `resnet-train`, or `python -m train`."""

import os
import sys

from resnet_spec import UnknownNameError
from train.config import Config
from train.errors import UserError
from train.recipes import DEFAULT, RECIPES

_USAGE = "usage: resnet-train [RECIPE] [--field value ...]"


def main(arguments: list[str] | None = None) -> int:
    """Runs one recipe; a mistake of the user's is one sentence on stderr and exit code 2."""
    try:
        config = parse(sys.argv[1:] if arguments is None else arguments)
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        from train.loop import train  # JAX starts here: help and mistakes need not wait for it

        train(config)
    except (UserError, UnknownNameError) as error:
        print(f"resnet-train: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(
            f"resnet-train: this needs the package {error.name}: install flax-resnet[train]",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("resnet-train: interrupted; go on with --resume --run-dir", file=sys.stderr)
        return 130
    return 0


def parse(arguments: list[str]) -> Config:
    """The configuration of a command line: a recipe's row, and the fields named on top of it.

    Raises:
        ValueError: there is no such recipe, or a field is out of its range.
        SystemExit: help was asked for (0), or an option is unknown or of the wrong type (2).
    """
    import tyro

    has_recipe = bool(arguments) and not arguments[0].startswith("-")
    name, rest = (arguments[0], arguments[1:]) if has_recipe else (DEFAULT, arguments)
    if name not in RECIPES:
        raise UnknownNameError("recipe", name, RECIPES)
    return tyro.cli(
        Config,
        prog=f"resnet-train {name}",
        description=_describe(name),
        default=RECIPES[name].config,
        args=rest,
    )


def _describe(name: str) -> str:
    recipe = RECIPES[name]
    return (
        f"{_USAGE}\nRecipes: {', '.join(RECIPES)} (default {DEFAULT}); any field can be changed.\n"
        f"{name}: {recipe.source}.\nWhy: {recipe.reason}.\nPublished error (%): {recipe.published}."
    )


if __name__ == "__main__":
    sys.exit(main())
