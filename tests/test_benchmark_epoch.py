import subprocess
import sys
from pathlib import Path

import pytest

from ent_brain.files import read_json

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "epoch.py"


def test_an_epoch_needs_less_memory_than_the_published_way(tmp_path):
    """Memory alone: time is the machine's mood."""
    pytest.importorskip("espeakng_loader")
    command = [sys.executable, BENCHMARK, "--quick", "--threads", "1", "--output"]
    done = subprocess.run([*command, tmp_path / "epoch.json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = read_json(tmp_path / "epoch.json")
    assert all(f"| {name} |" in done.stdout for name in rows)
    needed = {name: row["training"] for name, row in rows.items()}
    assert min(needed.values()) > 0
    assert needed["published"] > 3 * needed["uncached"]
    assert needed["published"] > 3 * needed["cached"]
    assert needed["published"] > 2 * needed["bucketed 16"], "with three times the utterances"
    assert (
        rows["cached"]["batch"] == 2 < rows["bucketed 16"]["batch"] < rows["bucketed 48"]["batch"]
    )
