"""Path of the recipes, and a function that runs one in a forked process.

It is a module because processes import it by name, and there are two files ``conftest``.
"""

import os
import runpy
import sys
from pathlib import Path

import speechbrain

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def run_recipe(recipe, argv):
    """Run ``python train.py ...`` in a recipe's folder, in a forked process."""
    # A training's log lists what pip has installed, which takes longer than the smallest ones.
    speechbrain.utils.logger.get_environment_description = lambda: "not listed in tests\n"
    os.chdir(RECIPES / recipe)
    sys.path.insert(0, str(RECIPES / recipe))
    sys.argv = argv
    runpy.run_path(str(RECIPES / recipe / "train.py"), run_name="__main__")
