"""``python ablations.py`` as a user runs it."""

import subprocess
import sys

from recipe_runs import RECIPES

from ent_brain.files import read_json

SMALL = {"number_of_epochs": 1, "warmup_epochs": 0, "encoder_dim": 32, "max_symbols": 2}
SMALL |= {"predictor_dim": 16, "joint_dim": 16, "beam_size": 1}


def test_modes_are_compared_on_corpora_spoken_for_it(tmp_path):
    pairs = [text for key, value in SMALL.items() for text in (f"--{key}", str(value))]
    own = ["--utterances", "60", "--zed_utterances", "3", "--models", "ent"]
    own += ["--modes", "none", "aligned_event", "--devices", "cpu,cpu"]
    script = RECIPES / "ZED" / "ablations.py"
    command = [sys.executable, script, "--output_folder", tmp_path / "out", *own, *pairs]
    done = subprocess.run(
        [*map(str, command), "--noprogressbar"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    rows = read_json(tmp_path / "out" / "comparison.json")
    tested = [(row["model"], row["test set"]) for row in rows]
    assert tested == [
        (f"ent_{mode}", test_set)
        for mode in ("none", "aligned_event")
        for test_set in ("IEMOCAP session 5", "ZED")
    ]
    for row in rows:
        assert row["mean"].keys() >= {"WER", "UA", "minutes"}
        assert ("EDER" in row["mean"]) == (row["test set"] == "ZED")
    kept = (tmp_path / "out" / "ent_none" / "seed_42" / "hyperparams.yaml").read_text()
    assert "\nlattice_weight: 0\n" in kept
    assert (tmp_path / "out" / "comparison.md").read_text() in done.stdout
