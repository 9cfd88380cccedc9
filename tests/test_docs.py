"""The shell and the claims of the pages in ``docs``, run as they are written."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def shell_of(page):
    return re.search(r"```bash\n(.*?)```", (REPOSITORY / "docs" / page).read_text(), re.DOTALL)[1]


def test_own_data_from_a_table_to_an_annotated_recording(tmp_path):
    pytest.importorskip("espeakng_loader")
    for folder in ("recipes/Table", "hparams"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    script = shell_of("own_data.md")
    assert len([line for line in script.splitlines() if line]) <= 15
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
    }
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    annotation = json.loads((tmp_path / "annotated" / "de_00001.json").read_text())
    assert list(annotation["probabilities"]) == sorted(annotation["probabilities"])
    assert "überraschung" in annotation["probabilities"]
    assert annotation["neutral"] == "neutral"
    assert done.stdout.rstrip().startswith("ID,wav,transcript,emotion,speaker,split")
    assert "WEBVTT" in done.stdout
    assert "* Training: " in done.stdout
    [characters] = (tmp_path / "my_model" / "save").glob("characters_*.txt")
    assert "Ü\tLATIN CAPITAL LETTER U WITH DIAERESIS" in characters.read_text()
