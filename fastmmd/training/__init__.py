"""Training programs: data sets, recipes, and the loop behind `fastmmd train` (`fastmmd.training.loop`)."""

from __future__ import annotations

from fastmmd.data import Dataset, Split, load_data
from fastmmd.errors import UserError
from fastmmd.training.config import Recipe, for_batch, load_recipe, recipe_names

__all__ = ["Dataset", "Recipe", "Split", "UserError", "for_batch", "load_data", "load_recipe", "recipe_names"]
