"""The quick benchmark runs, and what it says of memory holds; its times are the machine's mood."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Folder and printed text of ``benchmarks/lattice.py --quick``."""
    folder = tmp_path_factory.mktemp("benchmarks")
    script = str(ROOT / "benchmarks" / "lattice.py")
    done = subprocess.run(
        [sys.executable, script, str(folder), "--quick", "--threads", "1"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return folder, done.stdout


def test_the_lattice_takes_a_fraction_of_the_memory_of_the_other_forms(results):
    folder, _ = results
    rows = json.loads((folder / "lattice.json").read_text())["shapes"]
    [small] = [{row["form"]: row["bytes"] for row in rows if row["shape"] == [2, 225, 51, 31]}]
    assert list(small) == ["ours", "ours, aligned", "dense", "published"]
    assert small["published"] > 8 * small["ours"]
    assert small["published"] > 8 * small["ours, aligned"]
    assert small["published"] > small["dense"]


def test_memory_grows_no_faster_than_the_utterance(results):
    folder, _ = results
    measured = json.loads((folder / "lattice.json").read_text())
    assert measured["growth_exponent"] <= 1.1
    longest = {
        row["form"]: row["bytes"] for row in measured["over_length"] if row["shape"][1] == 1000
    }
    assert longest["published"] > 40 * longest["ours"]


def test_the_need_of_a_form_that_does_not_fit_is_what_it_would_take(results):
    folder, _ = results
    measured = json.loads((folder / "lattice.json").read_text())
    rows = [row for row in measured["over_length"] + measured["shapes"] if "needs" in row]
    assert rows
    for row in rows:
        assert row["bytes"] == pytest.approx(row["needs"], rel=0.25), row


def test_the_table_and_the_picture_are_written(results):
    folder, printed = results
    assert (folder / "lattice.md").read_text() in printed
    assert "| 2, 225, 51, 31 | ours |" in printed
    assert (folder / "lattice.png").stat().st_size > 10_000
