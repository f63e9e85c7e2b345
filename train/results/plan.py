"""The configuration of a row of the table: a recipe as it is, or with its schedule scaled."""

import contextlib
import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from resnet_spec import count_multiplications
from train.config import Config, computed_fields
from train.config.recipes import RECIPES
from train.errors import UserError
from train.results.protocol import HELD_OUT, WHOLE, train_images, validation_size
from train.results.published import DATA

# How a run is computed and how often it is tested is not part of a recipe.
_NOT_OF_A_RECIPE = ("precision", "parallel", "scan_blocks", "remat", "eval_every_epochs")


@dataclass(frozen=True)
class Asked:
    """The options of `resnet-train table` that determine its rows.

    Attributes:
        recipe: None for the data set's own; for Wide ResNets that of their paper.
        epochs, max_steps: the length, set by at most one of them; None for the recipe's.
    """

    data: str
    protocol: str
    recipe: str | None = None
    epochs: int | None = None
    max_steps: int | None = None

    def recipe_of(self, model: str) -> str:
        """The name of a model's recipe; with held-out images its variant of as many steps."""
        name = self.recipe or self.data
        if self.recipe is None and "Wide" in model and f"{self.data}-wide" in RECIPES:
            name = f"{self.data}-wide"
        is_held_out = self.protocol == HELD_OUT
        return f"{name}-45k" if is_held_out and f"{name}-45k" in RECIPES else name

    def epochs_of(self, model: str) -> float:
        """How many epochs the recipe of a model has, whatever length is asked for."""
        config = RECIPES[self.recipe_of(model)].config
        if config.max_steps is None:
            return float(config.epochs)
        images = train_images(self.protocol, self.data)
        return min(float(config.epochs), config.max_steps * config.global_batch_size / images)


def configure(model: str, asked: Asked, **fields: Any) -> Config:
    """The configuration of a model's runs, without seed and folder; `fields` are set in addition.

    Raises:
        UserError: the recipe is for other data, or its schedule cannot be that short.
    """
    name = asked.recipe_of(model)
    config = RECIPES[name].config
    if config.data != asked.data:
        raise UserError(f"--recipe {name} is for {config.data}, the table is of {asked.data}")
    held_out = validation_size(asked.protocol, asked.data)
    config = dataclasses.replace(config, model=model, validation_size=held_out, **fields)
    lengths = (asked.epochs, asked.max_steps)
    if any(length is not None and length < 1 for length in lengths):
        raise UserError("--epochs and --max-steps must be at least 1")
    return config if lengths == (None, None) else _scaled(config, model, asked)


def _scaled(config: Config, model: str, asked: Asked) -> Config:
    """Scales warm-up and drops of the learning rate in proportion to the length asked for."""
    steps_per_epoch = train_images(asked.protocol, asked.data) / config.global_batch_size
    length = asked.epochs or (asked.max_steps or 0) / steps_per_epoch
    share = length / asked.epochs_of(model)
    changes: dict[str, Any] = {
        "epochs": asked.epochs or max(config.epochs, math.ceil(length)),
        "max_steps": asked.max_steps,
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
                f"in {length:.3g} epochs the drops of the learning rate at {config.drop_steps} "
                f"steps become {drops}, and two of them coincide: give more --epochs or --max-steps"
            )
        changes["drop_steps"] = drops
    return dataclasses.replace(config, **changes)


def confirm(asked: Asked, config: Config) -> Asked | None:
    """The same in as few options as possible; None if it does not make a configuration."""
    usual = dataclasses.replace(asked, recipe=None)
    if usual.recipe_of(config.model) == asked.recipe_of(config.model):
        asked = usual
    fields = {name: getattr(config, name) for name in _NOT_OF_A_RECIPE}
    for known in (dataclasses.replace(asked, epochs=None, max_steps=None), asked):
        # An error: too short for the drops of the recipe, or a recipe of another version.
        with contextlib.suppress(UserError, KeyError):
            if computed_fields(configure(config.model, known, **fields)) == computed_fields(config):
                return known
    return None


def asked_by_length(config: Config, recipe: str | None = None) -> Asked:
    """What makes a configuration if it is a recipe, perhaps of another length."""
    protocol = WHOLE if config.validation_size is None else HELD_OUT
    epochs = config.epochs if config.max_steps is None else None
    return Asked(config.data, protocol, recipe, epochs, config.max_steps)


def is_usual(config: Config) -> bool:
    """Whether no option makes a configuration but those that `row_name` shows."""
    options = (name for name in _NOT_OF_A_RECIPE if name != "precision")
    has_defaults = all(getattr(config, name) == getattr(Config, name) for name in options)
    return has_defaults and confirm(asked_by_length(config), config) is not None


def row_name(config: Config, protocol: str) -> str:
    """The name of the folder of a row's runs."""
    steps, epochs = config.max_steps, config.epochs
    length = f"{epochs}epochs" if steps is None else f"{steps}steps"
    return f"{config.model}-{protocol}-{config.precision}-{length}"


def image_cost(model: str, data: str) -> int:
    """Multiply-adds of the forward pass of one image."""
    known = DATA[data]
    network = Config(model=model).network(known.channels)
    return count_multiplications(network, known.image_size, known.classes)
