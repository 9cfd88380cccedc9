"""Every recipe as a user runs it: ``python train.py hparams/X.yaml --data_folder ...``."""

import json
import multiprocessing
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import sentencepiece
import soundfile

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SMALL = (
    "--noprogressbar --number_of_epochs 1 --warmup_epochs 0 --max_symbols 2 "
    "--encoder_dim 32 --predictor_dim 16 --joint_dim 16"
).split()
# The encoder has the paper's size, so two batches must do.
FEW_BATCHES = "--noprogressbar --max_symbols 1 --debug --debug_batches 2 --debug_epochs 1".split()
PAPER_TERMS = {"rnnt", "head", "lattice"}


class Run(NamedTuple):
    """What a run left: exit status, what it said, and its output folder."""

    status: int
    stdout: str
    stderr: str
    folder: Path

    def results(self):
        return json.loads((self.folder / "results.json").read_text())

    def history(self):
        return json.loads((self.folder / "history.json").read_text())


def _program(recipe, arguments, folder):
    """``python train.py ARGUMENTS`` in the recipe's folder; output goes to files in ``folder``."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), descriptor)
    os.chdir(RECIPES / recipe)
    sys.path.insert(0, os.getcwd())
    sys.argv = ["train.py", *arguments]
    runpy.run_path("train.py", run_name="__main__")


@pytest.fixture(scope="session")
def processes():
    """Makes processes whose imports are done, as those take longer than a small training."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "pytest",
            "ent_brain.recipe",
            "ent_brain.frontend",
            "speechbrain.augment.freq_domain",
            "speechbrain.utils.train_logger",
            "transformers.optimization",
        ]
    )
    return context


@pytest.fixture
def run(processes, tmp_path):
    """``run("IEMOCAP", "ent.yaml", "--data_folder", ...)`` trains in a process of its own."""

    def start(recipe, yaml, *arguments):
        folder = tmp_path / "out"
        options = [f"hparams/{yaml}", "--output_folder", folder, *arguments]
        process = processes.Process(target=_program, args=(recipe, map(str, options), tmp_path))
        process.start()
        process.join()
        said = ((tmp_path / name).read_text() for name in ("stdout", "stderr"))
        return Run(process.exitcode, *said, folder)

    return start


# --- every YAML trains


def assert_trained(outcome, test_sets, terms):
    """A run that ended well left figures, a table, pictures and the model."""
    assert outcome.status == 0, outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert {row["test set"] for row in outcome.results()} == set(test_sets)
    table = (outcome.folder / "results.md").read_text()
    assert table in outcome.stdout
    assert all(f"| {name} " in table for name in test_sets)

    [epoch] = outcome.history()
    losses = {key.removeprefix("train ") for key in epoch if key.startswith("train ")}
    assert losses == {"loss", *terms}

    pictures = {path.name: path.read_bytes() for path in outcome.folder.glob("*.png")}
    labels = [name.replace(" ", "_") for name in test_sets]
    assert {"learning_curves.png", *(f"confusion_{label}.png" for label in labels)} <= set(pictures)
    assert all(content.startswith(b"\x89PNG") for content in pictures.values())
    if "ZED" in test_sets:
        assert any(name.startswith("timeline_ZED_") for name in pictures)
    for statistic in ("words", "emotions"):
        assert all((outcome.folder / f"{statistic}_{label}.txt").stat().st_size for label in labels)
    assert (outcome.folder / "pretrained" / "hyperparams.yaml").is_file()


def test_iemocap_ent_demo_with_pieces_and_a_language_model(run, iemocap):
    options = "--tokens bpe --vocab_size 80 --lm_weight 0.3".split()
    outcome = run("IEMOCAP", "ent_demo.yaml", *SMALL, "--data_folder", iemocap, *options)
    assert_trained(outcome, ["session 5"], PAPER_TERMS | {"lm"})
    # Pieces never saw the test session.
    [model] = (outcome.folder / "save").glob("bpe80_*.model")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    train = json.loads((outcome.folder / "save" / "train.json").read_text())
    retrained = re.compile("|".join(re.escape(entry["transcript"]) for entry in train.values()))
    assert pieces.vocab_size() == 79
    assert len(retrained.pattern) > 0


def test_iemocap_fent_demo_by_multiple_instances(run, iemocap):
    options = "--lattice_mode mil --test_session 2".split()
    # The folder that the release lies in will do, too.
    outcome = run("IEMOCAP", "fent_demo.yaml", *SMALL, "--data_folder", iemocap.parent, *options)
    assert_trained(outcome, ["session 2"], PAPER_TERMS)
    test = json.loads((outcome.folder / "save" / "test.json").read_text())
    assert {entry["speaker"] for entry in test.values()} <= {"Ses02F", "Ses02M"}


def corpora(iemocap, zed):
    return "--data_folder", iemocap, "--zed_folder", zed


def test_zed_ent_demo_without_lattice_loss(run, iemocap, zed):
    outcome = run("ZED", "ent_demo.yaml", *SMALL, *corpora(iemocap, zed), "--lattice_weight", 0)
    assert_trained(outcome, ["IEMOCAP session 5", "ZED"], PAPER_TERMS - {"lattice"})
    rows = {(row["test set"], row["protocol"]): row for row in outcome.results()}
    assert set(rows) == {
        ("IEMOCAP session 5", "valid"),
        ("ZED", "valid"),
        ("ZED", "all neutral"),
        ("ZED", "utterance emotion everywhere"),
    }
    assert all(0 <= row["EDER"] <= 100 for (name, _), row in rows.items() if name == "ZED")


def test_zed_fent_demo_without_head_by_the_paper_s_protocol(run, iemocap, zed):
    options = "--head_weight 0 --paper_protocol True".split()
    outcome = run("ZED", "fent_demo.yaml", *SMALL, *corpora(iemocap, zed), *options)
    assert_trained(outcome, ["IEMOCAP session 5", "ZED"], PAPER_TERMS - {"head"})
    of_zed = {row["protocol"]: row for row in outcome.results() if row["test set"] == "ZED"}
    # After one epoch the best of each metric is that epoch's.
    assert of_zed["paper"] == {**of_zed["valid"], "protocol": "paper"}


@pytest.fixture
def small_ravdess(ravdess, tmp_path):
    """Of each actor of the real sample one recording of each emotion."""
    for actor in ravdess.glob("Actor_*"):
        folder = tmp_path / "RAVDESS" / actor.name
        folder.mkdir(parents=True)
        for code in ("01", "03", "04", "05"):
            recording = min(actor.glob(f"03-01-{code}-*"))
            (folder / recording.name).symlink_to(recording)
    return tmp_path / "RAVDESS"


def test_ravdess_ent_fbank(run, small_ravdess):
    outcome = run("RAVDESS", "ent_fbank.yaml", *SMALL, "--data_folder", small_ravdess)
    assert_trained(outcome, ["test actors"], PAPER_TERMS)
    sizes = {
        split: len(json.loads((outcome.folder / "save" / f"{split}.json").read_text()))
        for split in ("train", "valid", "test")
    }
    assert sizes == {"train": 64, "valid": 8, "test": 24}


@pytest.mark.parametrize(
    ("recipe", "yaml", "kind"),
    [
        ("IEMOCAP", "ent.yaml", "wav2vec2"),
        ("IEMOCAP", "fent.yaml", "hubert"),
        ("ZED", "ent.yaml", "wavlm"),
        ("ZED", "fent.yaml", "wav2vec2"),
    ],
)
def test_self_supervised_front_ends(run, iemocap, zed, tiny_ssl, recipe, yaml, kind):
    folders = corpora(iemocap, zed) if recipe == "ZED" else ("--data_folder", iemocap)
    options = "--frontend", kind, "--ssl_hub", tiny_ssl(kind)
    outcome = run(recipe, yaml, *FEW_BATCHES, *folders, *options)
    assert_trained(outcome, ["ZED" if recipe == "ZED" else "session 5"], PAPER_TERMS)


# --- killed and started again


def test_a_killed_training_goes_on_where_it_stopped(iemocap, tmp_path):
    folder = tmp_path / "out"
    arguments = "--noprogressbar --number_of_epochs 4 --max_symbols 2 --encoder_dim 32".split()
    command = [sys.executable, "train.py", "hparams/ent_demo.yaml", *arguments]
    command += ["--data_folder", iemocap, "--output_folder", folder]
    log = folder / "log.txt"
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(command, cwd=RECIPES / "IEMOCAP", stderr=stderr)
        try:
            while not log.exists() or "Saved an end-of-epoch checkpoint" not in log.read_text():
                assert process.poll() is None, (tmp_path / "stderr").read_text()
                time.sleep(0.05)
        finally:
            process.kill()
        assert process.wait() == -signal.SIGKILL
    before = json.loads((folder / "history.json").read_text())
    assert 1 <= len(before) < 4
    assert not (folder / "results.json").exists()

    outcome = subprocess.run(
        command, cwd=RECIPES / "IEMOCAP", capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr
    begun = [int(epoch) for epoch in re.findall(r"Going into epoch (\d+)", outcome.stderr)]
    assert begun == list(range(len(before) + 1, 5))
    history = json.loads((folder / "history.json").read_text())
    assert history[: len(before)] == before
    assert [epoch["epoch"] for epoch in history] == [1, 2, 3, 4]
    assert (folder / "results.md").read_text() in outcome.stdout


# --- what a user gets wrong


def assert_refused(outcome, *parts):
    """One line that says what is wrong, and no manifest."""
    lines = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert (outcome.status, outcome.stdout) == (1, "")
    for part in parts:
        assert part in lines[0]
    assert list(outcome.folder.glob("save/*")) == []


@pytest.fixture
def own_iemocap(iemocap, tmp_path):
    """A copy that a test may spoil, and the ids of some utterances of its first dialog."""
    copy = shutil.copytree(iemocap, tmp_path / "corpus" / iemocap.name)
    evaluation = min((copy / "Session1" / "dialog" / "EmoEvaluation").glob("Ses*.txt"))
    return copy, re.findall(r"\t(Ses01\S+)\t(?:neu|ang|sad|hap|exc)\t", evaluation.read_text())


def edit_transcript(corpus, name, change):
    """Replace an utterance's line, ``<id> [times]: <text>``, by what ``change`` makes of it."""
    path = corpus / "Session1" / "dialog" / "transcriptions" / f"{name.rpartition('_')[0]}.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(change(ln) if ln.startswith(f"{name} ") else ln for ln in lines))


def test_a_missing_corpus_is_refused(run, tmp_path):
    outcome = run("IEMOCAP", "ent_demo.yaml", "--data_folder", tmp_path / "nowhere")
    assert_refused(outcome, f"{tmp_path}/nowhere: neither it nor IEMOCAP_full_release in it has")


def test_another_corpus_is_refused(run, zed, iemocap):
    outcome = run("ZED", "ent_demo.yaml", *corpora(iemocap=zed, zed=iemocap))
    assert_refused(outcome, f"{zed}: neither it nor IEMOCAP_full_release in it has", "data_folder")


def test_what_is_wrong_with_a_corpus_is_told_in_one_line(run, own_iemocap):
    corpus, (empty, unreadable, untold, silent, *_) = own_iemocap
    wavs = corpus / "Session1" / "sentences" / "wav" / empty.rpartition("_")[0]
    soundfile.write(wavs / f"{empty}.wav", np.zeros(0), 16000)
    (wavs / f"{unreadable}.wav").write_bytes(b"no audio")
    edit_transcript(corpus, untold, lambda line: "")
    edit_transcript(corpus, silent, lambda line: line.partition(": ")[0] + ": ...")
    assert_refused(
        run("IEMOCAP", "ent_demo.yaml", "--data_folder", corpus),
        "4 problems: ",
        f"{empty}: no samples in ",
        f"{unreadable}: unreadable audio ",
        f"{untold}: no transcript",
        f"{silent}: no word in the transcript ' ...'",
        f": correct {corpus}, nothing was written",
    )


def test_a_transcript_longer_than_its_audio_is_refused(run, own_iemocap):
    corpus, (name, *_) = own_iemocap
    edit_transcript(corpus, name, lambda line: line + " and so on" * 100)
    outcome = run("IEMOCAP", "ent_demo.yaml", "--data_folder", corpus, "--test_session", 1)
    written = sorted(path.name for path in (outcome.folder / "save").iterdir())
    assert written == ["test.json", "train.json", "valid.json"]
    for manifest in (outcome.folder / "save").iterdir():
        assert json.loads(manifest.read_text())
        manifest.unlink()
    assert_refused(outcome, f"error: {name}: 1", " tokens in ", "or raise max_tokens_per_frame")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--learning_rate", "3"], "learning_rate"),
        (
            ["--lattice_mode", "two"],
            "lattice_mode: 'two': choose one, full_t, full_u, mil, aligned",
        ),
        (["--rnnt_weight", "-1"], "none below 0, one above 0"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_done(run, iemocap, options, part):
    outcome = run("IEMOCAP", "ent_demo.yaml", "--data_folder", iemocap, *options)
    assert_refused(outcome, part)
    assert not outcome.folder.exists()
