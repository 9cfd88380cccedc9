"""The versions that CI tries are the bounds of what is installed."""

import ast
import re
import shlex
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
TRIED = ("torch", "torchaudio", "speechbrain", "transformers")


def bounds():
    """Lowest version and limit that ``setup.py`` names of each package, as texts."""
    found = {}
    for node in ast.walk(ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))):
        named = isinstance(node, ast.Constant) and isinstance(node.value, str)
        match = named and re.fullmatch(r"(\w+)>=([\d.]+),<([\d.]+)", node.value)
        if match:
            found[match[1]] = match[2], match[3]
    return {package: found[package] for package in TRIED}


def test_ci_tries_the_oldest_and_the_newest_versions():
    text = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]["tests"]["strategy"]["matrix"]["include"]
    # As a shell reads them: one that is not quoted would redirect at "<".
    oldest, newest = (shlex.split(job["versions"]) for job in jobs)
    assert oldest == [f"{package}=={low}.0" for package, (low, _) in bounds().items()]
    assert newest == [f"{package}<{limit}" for package, (_, limit) in bounds().items()]
    assert all(f"'{requirement}'" in jobs[1]["versions"] for requirement in newest)
