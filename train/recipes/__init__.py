"""The recipes: one row each, with its source, the reason of its numbers and what was published."""

from train.recipes.cifar import CIFAR
from train.recipes.imagenet import IMAGENET
from train.recipes.own import OWN
from train.recipes.recipe import Recipe

__all__ = ["DEFAULT", "RECIPES", "Recipe"]

RECIPES: dict[str, Recipe] = {**OWN, **CIFAR, **IMAGENET}
DEFAULT = "digits"
