"""The recipes: one row each, with its source, the reason of its numbers and what was published."""

from train.config.recipes.cifar import CIFAR
from train.config.recipes.imagenet import IMAGENET
from train.config.recipes.own import OWN
from train.config.recipes.recipe import Recipe

__all__ = ["DEFAULT", "RECIPES", "Recipe"]

RECIPES: dict[str, Recipe] = {**OWN, **CIFAR, **IMAGENET}
DEFAULT = "digits"
