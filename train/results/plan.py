"""The configuration of each row: a recipe as it stands, or with its schedule scaled."""

import dataclasses
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_spec import count_multiplications, find_spec
from train.config import Config, computed_fields
from train.config.recipes import RECIPES
from train.errors import UserError
from train.results.collect import Run
from train.results.protocol import HELD_OUT, PART, train_images, validation_size
from train.results.published import DATA

# Where and in which numbers a recipe is trained, and how often tested, is not its own.
_NOT_OF_A_RECIPE = ("precision", "parallel", "scan_blocks", "remat", "eval_every_epochs")


@dataclass(frozen=True)
class Wish:
    """What is asked of every row.

    Attributes:
        recipe: None for the data set's own, for Wide ResNets that of their paper.
        epochs, max_steps: the length, by one of them; None for the recipe's.
        fields: further fields of the configuration, such as the precision.
    """

    data: str
    protocol: str
    recipe: str | None = None
    epochs: int | None = None
    max_steps: int | None = None
    data_dir: Path | None = None
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)


def configure(model: str, wish: Wish) -> Config:
    """The configuration of a model's runs, but for seed and folder.

    Raises:
        UserError: the recipe is not for these data.
    """
    name = recipe_of(model, wish)
    config = RECIPES[name].config
    if config.data != wish.data:
        raise UserError(f"--recipe {name} is for {config.data}, the table is of {wish.data}")
    held_out = validation_size(wish.protocol, wish.data)
    config = dataclasses.replace(
        config, model=model, validation_size=held_out, data_dir=wish.data_dir, **wish.fields
    )
    images = train_images(wish.protocol, wish.data)
    return scaled(config, images, epochs=wish.epochs, max_steps=wish.max_steps)


def recipe_of(model: str, wish: Wish) -> str:
    """The name of a model's recipe; with images held out its twin of as many steps, if any."""
    name = wish.recipe or wish.data
    if wish.recipe is None and "Wide" in model and f"{wish.data}-wide" in RECIPES:
        name = f"{wish.data}-wide"
    is_held_out = validation_size(wish.protocol, wish.data) is not None
    return f"{name}-45k" if is_held_out and f"{name}-45k" in RECIPES else name


def scaled(
    config: Config, images: int, *, epochs: int | None = None, max_steps: int | None = None
) -> Config:
    """A configuration of another length on `images` images: warm-up and drops in proportion."""
    if any(number is not None and number < 1 for number in (epochs, max_steps)):
        raise UserError("--epochs and --max-steps must be at least 1")
    if max_steps is not None:
        length = max_steps * config.global_batch_size / images
    elif epochs is not None:
        length = float(epochs)
    else:
        return config
    share = length / whole_epochs(config, images)
    changes: dict[str, Any] = {
        "epochs": epochs or max(config.epochs, math.ceil(length)),
        "max_steps": max_steps,
        "warmup_steps": round(config.warmup_steps * share),
    }
    if config.warmup_epochs is not None:
        changes["warmup_epochs"] = config.warmup_epochs * share
    if config.schedule == "drops" and config.drop_epochs is not None:
        changes["drop_epochs"] = tuple(epoch * share for epoch in config.drop_epochs)
    elif config.schedule == "drops":
        drops = tuple(round(step * share) for step in config.drop_steps)
        if len(set(drops)) < len(drops):
            raise UserError(
                f"of {length:.3g} epochs the drops of the learning rate at {config.drop_steps} "
                f"steps become {drops}, two of them one: give more --epochs or --max-steps"
            )
        changes["drop_steps"] = drops
    return dataclasses.replace(config, **changes)


def whole_epochs(config: Config, images: int) -> float:
    """Passes over `images` images to the end of a run."""
    if config.max_steps is None:
        return float(config.epochs)
    return min(float(config.epochs), config.max_steps * config.global_batch_size / images)


@dataclass(frozen=True)
class Origin:
    """What a run was made by: a wish, and the recipe's own number of epochs."""

    wish: Wish
    recipe: str
    epochs: float


def find_origin(run: Run) -> Origin | None:
    """The wish that makes a run's configuration; None where none does."""
    config = run.config
    fields = {name: getattr(config, name) for name in _NOT_OF_A_RECIPE}
    protocol = PART if run.test_name == "test" else HELD_OUT
    recipes = [name for name, recipe in RECIPES.items() if recipe.config.data == config.data]
    lengths: list[dict[str, Any]] = [{}, {"epochs": config.epochs}, {"max_steps": config.max_steps}]
    for recipe, length in itertools.product([None, *recipes], lengths):
        wish = Wish(config.data, protocol, recipe, fields=fields)
        try:
            made = configure(config.model, dataclasses.replace(wish, **length))
        except UserError:  # too short for this recipe's drops
            continue
        if computed_fields(made) == computed_fields(config):
            images = train_images(protocol, config.data)
            epochs = whole_epochs(configure(config.model, wish), images)
            name = recipe_of(config.model, wish)
            return Origin(dataclasses.replace(wish, **length), name, epochs)
    return None


def row_name(config: Config, label: str) -> str:
    """What the folder of a row's runs is called; `label` says by which protocol they are tested."""
    steps, epochs = config.max_steps, config.epochs
    length = f"{epochs}epochs" if steps is None else f"{steps}steps"
    return f"{config.model}-{label}-{config.precision}-{length}"


def is_usual(run: Run) -> bool:
    """Whether a command makes it that says no more than what `row_name` does."""
    origin = find_origin(run)
    if origin is None:
        return False
    wish = dataclasses.replace(origin.wish, recipe=None, fields={"precision": run.config.precision})
    try:
        usual = configure(run.config.model, wish)
    except UserError:  # too short for this recipe's drops
        return False
    return computed_fields(usual) == computed_fields(run.config)


def cheapest_first(models: Iterable[str], data: str) -> list[str]:
    """Models by the multiply-adds of one image."""
    return sorted(models, key=lambda model: image_cost(model, data))


def image_cost(model: str, data: str) -> int:
    """Multiply-adds of the forward pass of one image."""
    known = DATA[data]
    spec = dataclasses.replace(find_spec(model), in_planes=known.channels)
    return count_multiplications(spec, known.image_size, known.classes)
