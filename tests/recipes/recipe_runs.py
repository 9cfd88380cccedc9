"""Where the recipes are, and how a forked process runs one.

Processes import this by its name, which ``conftest`` has twice.
"""

import os
import runpy
import sys
from pathlib import Path

import speechbrain

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def run_recipe(recipe, argv):
    """``python train.py ...`` in a recipe's folder, for a process that is forked for it."""
    # A training's log lists what pip has installed, which takes longer than the smallest ones.
    speechbrain.utils.logger.get_environment_description = lambda: "not listed in tests\n"
    os.chdir(RECIPES / recipe)
    sys.path.insert(0, str(RECIPES / recipe))
    sys.argv = argv
    runpy.run_path(str(RECIPES / recipe / "train.py"), run_name="__main__")
