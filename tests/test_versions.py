"""Versions agree in all files, and CI tests the oldest and the newest."""

import ast
import re
import shlex
from pathlib import Path

import yaml

from ent_brain import __version__

ROOT = Path(__file__).resolve().parents[1]
TRIED = ("torch", "torchaudio", "speechbrain", "transformers")


def bounds():
    """Lowest version and upper limit of each package in ``setup.py``, as texts."""
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


def test_files_that_name_the_version_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == __version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"(?m)^## (.*)", changes)[0] == __version__
    forms = (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")
    for form in forms:
        fields = yaml.safe_load(form.read_text(encoding="utf-8"))["body"]
        [asked] = [field for field in fields if field.get("id") == "version"]
        assert "`ent-brain --version`" in asked["attributes"]["description"]


def test_what_contributing_names_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:recipes|ent_brain|tests|\.ci)/[\w/.]+)`", text))
    assert len(paths) > 8
    missing = {path for path in paths if not (ROOT / path).exists()}
    assert missing <= {"recipes/NAME/name_prepare.py", "tests/recipes/test_name_prepare.py"}
