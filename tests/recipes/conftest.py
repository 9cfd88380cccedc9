"""Fixtures for tests of the recipes, which are folders of scripts and not a package."""

import importlib.util

import pytest
from recipe_runs import RECIPES


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
