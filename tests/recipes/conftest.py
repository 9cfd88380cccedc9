"""What the tests of the recipes share: recipes are folders of scripts, not a package."""

import importlib.util
import os
import runpy
import sys
from pathlib import Path

import pytest
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


@pytest.fixture(scope="session")
def load_prepare():
    """Import a preparation script: ``load_prepare("IEMOCAP", "iemocap_prepare")``."""

    def load(recipe, module):
        path = RECIPES / recipe / f"{module}.py"
        spec = importlib.util.spec_from_file_location(f"recipes_{recipe}_{module}", path)
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return loaded

    return load
