"""``python cross_validate.py`` as a user runs it."""

import re
import statistics
import subprocess
import sys

import pytest
from recipe_runs import RECIPES

from ent_brain.files import read_json

SCRIPT = RECIPES / "IEMOCAP" / "cross_validate.py"
DEMO = RECIPES / "IEMOCAP" / "hparams" / "ent_demo.yaml"
SMALL = {"number_of_epochs": 1, "warmup_epochs": 0, "encoder_dim": 32, "max_symbols": 2}
SMALL |= {"predictor_dim": 16, "joint_dim": 16}


def call(folder, *flags, script=SCRIPT, **options):
    """Run the script; return (status, output)."""
    options = {**SMALL, "output_folder": folder, **options}
    pairs = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    command = [sys.executable, script, DEMO, *flags, *pairs]
    # Not from the recipe's folder: paths are the user's.
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def test_two_folds_are_run_once_and_summarized(iemocap, tmp_path):
    folder = tmp_path / "folds"
    options = {"data_folder": iemocap, "sessions": "2,4", "devices": "cpu,cpu"}
    status, said = call(folder, "--noprogressbar", **options)
    assert status == 0, said
    assert {path.name for path in folder.glob("session_*")} == {"session_2", "session_4"}
    for session in (2, 4):
        tested = read_json(folder / f"session_{session}" / "save" / "test.json")
        assert {entry["speaker"][:5] for entry in tested.values()} == {f"Ses0{session}"}

    folds = [read_json(folder / f"session_{k}" / "results.json") for k in (2, 4)]
    summary = read_json(folder / "cross_validation.json")["summary"]
    assert [each["protocol"] for each in summary] == ["valid", "paper"]
    for each in summary:
        for metric in ("WER", "CER", "WA", "UA"):
            values = [r[metric] for f in folds for r in f if r["protocol"] == each["protocol"]]
            assert each["mean"][metric] == pytest.approx(statistics.mean(values))
            assert each["deviation"][metric] == pytest.approx(statistics.stdev(values))
    text = (folder / "cross_validation.md").read_text()
    assert re.search(r"\| mean +\| valid ", text)
    assert re.search(r"\| deviation \| paper ", text)
    for protocol in ("valid", "paper"):
        about = rf"\| [\d.]+ \| ent_demo.yaml \| {protocol}, folds: 2 "
        metrics = r"\| [\d.]+ ± [\d.]+ " * 4 + r"\| - "  # no EDER
        assert re.search(rf"{about}{metrics}\| CPU of \d+ cores \| \d+ min \|", text)
    assert text.splitlines()[0] in said

    written = (folder / "session_2" / "results.json").stat().st_mtime_ns
    for name in ("finished.json", "results.json"):  # as if stopped before its end
        (folder / "session_4" / name).unlink()
    status, said = call(folder, "--noprogressbar", **options)
    assert status == 0, said
    assert "session 2: already finished" in said
    assert "session 4: training" in said
    assert (folder / "session_2" / "results.json").stat().st_mtime_ns == written
    assert "Going into epoch" not in said
    assert re.search(r"\| CPU of \d+ cores \| - \|", said)

    status, said = call(folder, "--noprogressbar", **options, lr=0.1)
    assert status == 1
    assert said.startswith(f"error: {folder}/session_2: was run with other settings")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--sessions", "1,6"], "--sessions: '6': name some of 1 to 5, each once, as 1,2,3"),
        (["--sessions", "1,1"], "--sessions: 1 twice: name some of 1 to 5, each once, as 1,2,3"),
        (["--test_session", "3"], "--test_session: cross-validation sets it: use --sessions"),
    ],
)
def test_wrong_options_are_refused(tmp_path, flags, line):
    assert call(tmp_path / "folds", *flags) == (1, f"error: {line}\n")


def test_a_fold_that_fails_is_told(tmp_path):
    status, said = call(tmp_path / "folds", "--noprogressbar", sessions=1, data_folder="nowhere")
    assert status == 1
    assert "nowhere: neither it nor IEMOCAP_full_release in it has" in said
    assert said.endswith(
        "error: session 1: status 1: see the errors above, then start again; finished runs are "
        "kept\n"
    )
