"""Every recipe as a user runs it: ``python train.py hparams/X.yaml --data_folder ...``."""

import itertools
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
import torch
from recipe_runs import RECIPES, run_recipe
from speechbrain.utils.checkpoints import Checkpointer

from ent_brain.cache import FeatureCache
from ent_brain.checkpoints import WholeCheckpointer
from ent_brain.files import read_json
from ent_brain.inference import EmotionTransducer
from ent_brain.page import read_utterances
from ent_brain.synth import write_iemocap, write_table
from ent_brain.tokens import load_sentencepiece, train_sentencepiece

SMALL = {
    "number_of_epochs": 1,
    "warmup_epochs": 0,
    "encoder_dim": 32,
    "predictor_dim": 16,
    "joint_dim": 16,
    "max_symbols": 2,
}
SPLITS = ("train", "valid", "test")
PAPER_TERMS = {"rnnt", "head", "lattice"}


class Run(NamedTuple):
    """Result of a run: exit status, output, and output folder."""

    status: int
    stdout: str
    stderr: str
    folder: Path

    def read(self, name):
        return read_json(self.folder / name)


def command_line(yaml, folder, flags, options):
    options = {"output_folder": folder, **options}
    pairs = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    return ["train.py", str(Path("hparams") / yaml), "--noprogressbar", *flags, *pairs]


def own_hparams(folder, yaml):
    """A copy of IEMOCAP's YAML with its includes that a test may change."""
    shutil.copytree(RECIPES / "IEMOCAP" / "hparams", folder / "recipes" / "IEMOCAP" / "hparams")
    shutil.copytree(RECIPES.parent / "hparams", folder / "hparams")
    return folder / "recipes" / "IEMOCAP" / "hparams" / yaml


def _program(recipe, argv, folder):
    """``python train.py ...`` in the recipe's folder; what it says goes to files in ``folder``.

    Warnings of what is deprecated are errors, as in other tests.
    """
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.simplefilter("error", category)
    # SpeechBrain's call, not ours.
    warnings.filterwarnings("ignore", ".gradient_checkpointing_disable. is deprecated")
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), descriptor)
    run_recipe(recipe, argv)


@pytest.fixture
def run(processes, tmp_path):
    """``run("IEMOCAP", "ent.yaml", "--debug", data_folder=...)`` trains in its own process."""

    def start(recipe, yaml, *flags, **options):
        argv = command_line(yaml, tmp_path / "out", flags, options)
        process = processes.Process(target=_program, args=(recipe, argv, tmp_path))
        process.start()
        process.join()
        said = ((tmp_path / name).read_text() for name in ("stdout", "stderr"))
        return Run(process.exitcode, *said, tmp_path / "out")

    return start


# --- every YAML trains


def assert_trained(outcome, test_sets, terms):
    """Check that a run has written figures, a table, pictures and the model."""
    assert outcome.status == 0, outcome.stderr
    assert "Traceback" not in outcome.stdout + outcome.stderr
    assert {row["test set"] for row in outcome.read("results.json")} == set(test_sets)
    table = (outcome.folder / "results.md").read_text()
    assert table in outcome.stdout
    assert all(f"| {name} " in table for name in test_sets)

    [epoch] = outcome.read("history.json")
    losses = {key.removeprefix("train ") for key in epoch if key.startswith("train ")}
    assert losses == {"loss", *terms}

    labels = [name.replace(" ", "_") for name in test_sets]
    pictures = {path.name: path.read_bytes() for path in outcome.folder.glob("*.png")}
    assert {"learning_curves.png", *(f"confusion_{label}.png" for label in labels)} <= set(pictures)
    assert "ZED" not in test_sets or any(name.startswith("timeline_ZED_") for name in pictures)
    assert all(content.startswith(b"\x89PNG") for content in pictures.values())
    by_utterance = [f"{kind}_{label}.txt" for kind in ("words", "emotions") for label in labels]
    assert all((outcome.folder / name).stat().st_size for name in by_utterance)
    if "ZED" in test_sets:
        diarization = (outcome.folder / "diarization_ZED.txt").read_text()
        ids = re.findall(r"(?m)^(\S+): \d+\.\d\d %$", diarization)
        assert set(ids) == set(outcome.read("save/zed.json"))
    assert (outcome.folder / "pretrained" / "hyperparams.yaml").is_file()
    assert str(outcome.folder / "report.html") in outcome.stdout
    heard = read_utterances(outcome.folder / "utterances.jsonl")
    assert {utterance.test_set for utterance in heard} == set(test_sets)
    assert (outcome.folder / "report.html").stat().st_size


def test_iemocap_ent_demo_with_pieces_and_a_language_model(run, iemocap, tmp_path):
    pieces = {"tokens": "bpe", "vocab_size": 80}
    outcome = run("IEMOCAP", "ent_demo.yaml", **SMALL, **pieces, data_folder=iemocap, lm_weight=0.3)
    assert_trained(outcome, ["session 5"], PAPER_TERMS | {"lm"})
    [model] = (outcome.folder / "save").glob("bpe80_*.model")
    transcripts = [entry["transcript"] for entry in outcome.read("save/train.json").values()]
    of_training_alone = train_sentencepiece(transcripts, tmp_path / "again.model", 80)
    assert load_sentencepiece(model).processor.serialized_model_proto() == (
        of_training_alone.processor.serialized_model_proto()
    )


def test_iemocap_fent_demo_by_multiple_instances(run, iemocap):
    # The folder that the release lies in will do, too.
    options = {"data_folder": iemocap.parent, "test_session": 2, "lattice_mode": "mil"}
    options["max_batch_nodes"] = 20_000
    outcome = run("IEMOCAP", "fent_demo.yaml", **SMALL, **options)
    assert_trained(outcome, ["session 2"], PAPER_TERMS)
    tested = {entry["speaker"] for entry in outcome.read("save/test.json").values()}
    trained = {entry["speaker"] for entry in outcome.read("save/train.json").values()}
    assert tested == {"Ses02F", "Ses02M"}
    assert not tested & trained


def test_zed_ent_demo_without_lattice_loss(run, iemocap, zed):
    corpora = {"data_folder": iemocap, "zed_folder": zed}
    outcome = run("ZED", "ent_demo.yaml", **SMALL, **corpora, lattice_weight=0)
    assert_trained(outcome, ["IEMOCAP session 5", "ZED"], PAPER_TERMS - {"lattice"})
    rows = {(row["test set"], row["protocol"]): row for row in outcome.read("results.json")}
    assert set(rows) == {
        ("IEMOCAP session 5", "valid"),
        ("ZED", "valid"),
        ("ZED", "all neutral"),
        ("ZED", "utterance emotion everywhere"),
        ("ZED", "each frame by itself"),
    }
    assert all(0 <= row["EDER"] <= 100 for (name, _), row in rows.items() if name == "ZED")


def test_zed_fent_demo_without_head_by_the_paper_s_protocol(run, iemocap, zed):
    corpora = {"data_folder": iemocap, "zed_folder": zed}
    options = {"head_weight": 0, "paper_protocol": True}
    outcome = run("ZED", "fent_demo.yaml", **SMALL, **corpora, **options)
    assert_trained(outcome, ["IEMOCAP session 5", "ZED"], PAPER_TERMS - {"head"})
    of_zed = {
        row["protocol"]: row for row in outcome.read("results.json") if row["test set"] == "ZED"
    }
    # After one epoch the best of each metric is that epoch's.
    assert of_zed["paper"] == {**of_zed["valid"], "protocol": "paper"}


@pytest.fixture
def small_ravdess(ravdess, tmp_path):
    """One recording of each emotion from each actor of the real sample."""
    for actor in ravdess.glob("Actor_*"):
        folder = tmp_path / "RAVDESS" / actor.name
        folder.mkdir(parents=True)
        for code in ("01", "03", "04", "05"):
            recording = min(actor.glob(f"03-01-{code}-*"))
            (folder / recording.name).symlink_to(recording)
    return tmp_path / "RAVDESS"


def test_ravdess_ent_fbank(run, small_ravdess):
    outcome = run("RAVDESS", "ent_fbank.yaml", **SMALL, data_folder=small_ravdess)
    assert_trained(outcome, ["test actors"], PAPER_TERMS)
    sizes = [len(outcome.read(f"save/{split}.json")) for split in ("train", "valid", "test")]
    assert sizes == [64, 8, 24]


@pytest.fixture(scope="session")
def few_of_iemocap(tmp_path_factory):
    """The smallest possible corpus: one utterance of each emotion per session."""
    pytest.importorskip("espeakng_loader")
    folder = tmp_path_factory.mktemp("few") / "IEMOCAP_full_release"
    write_iemocap(folder, 20, seed=1)
    return folder


@pytest.fixture(scope="session")
def librispeech(few_of_iemocap, tmp_path_factory):
    """A look-alike of LibriSpeech: parts, speakers and chapters of sessions, voices and dialogs."""
    folder = tmp_path_factory.mktemp("librispeech") / "LibriSpeech"
    parts = ("train-clean-100",) * 3 + ("dev-clean", "test-clean")
    for path in sorted(few_of_iemocap.glob("Session*/dialog/transcriptions/Ses*.txt")):
        session = int(path.name[4])
        wavs = path.parents[2] / "sentences" / "wav"
        for line in path.read_text().splitlines():
            said = re.fullmatch(r"((Ses0\d\w+)_([FM])\d+) \[.*\]: (.*)", line)
            if not said:  # a line of no utterance, as of breathing
                continue
            name, dialog, sex, text = said.groups()
            chapter = f"{2 * session + (sex == 'M')}-{len(dialog)}"
            inside = folder / parts[session - 1] / Path(*chapter.split("-"))
            inside.mkdir(parents=True, exist_ok=True)
            number = len(list(inside.glob("*.flac")))
            recording = soundfile.read(wavs / dialog / f"{name}.wav")
            soundfile.write(inside / f"{chapter}-{number:04}.flac", *recording)
            with (inside / f"{chapter}.trans.txt").open("a") as file:
                file.write(f"{chapter}-{number:04} {text.upper()}\n")
    return folder


GERMAN = ("angst", "freude", "neutral", "trauer", "wut", "überraschung")


@pytest.fixture(scope="session")
def german_table(tmp_path_factory):
    """A German corpus of 60 utterances and its table, which lacks some words and emotions."""
    pytest.importorskip("espeakng_loader")
    folder = tmp_path_factory.mktemp("table") / "corpus"
    write_table(folder, 60, seed=1, language="de")
    return folder / "data.csv"


YAMLS = sorted(RECIPES.glob("*/hparams/*.yaml"))
KINDS = dict(zip(YAMLS, itertools.cycle(("wav2vec2", "hubert", "wavlm")), strict=False))
"""SSL model with which each YAML is tested."""

CORPORA = {
    "IEMOCAP": {"data_folder": "few_of_iemocap"},
    "LibriSpeech": {"data_folder": "librispeech"},
    "Open": {"data_folder": "small_ravdess"},
    "RAVDESS": {"data_folder": "small_ravdess"},
    "Table": {"table": "german_table"},
    "ZED": {"data_folder": "few_of_iemocap", "zed_folder": "zed"},
}
"""Fixture for each option of a recipe."""

TEST_SETS = {
    "IEMOCAP": "session 3",
    "LibriSpeech": "test-clean",
    "Open": "test actors",
    "RAVDESS": "test actors",
    "Table": "test",
    "ZED": "IEMOCAP session 3",
}

GOING_ON = {
    RECIPES / recipe / "hparams" / f"{stem}.yaml"
    for recipe, stem in (
        *(("IEMOCAP", "ent"), ("IEMOCAP", "ent_finetune"), ("IEMOCAP", "ent_mix")),
        *(("Open", "ent"), ("RAVDESS", "fent_fbank"), ("ZED", "ent_demo"), ("Table", "ent_fbank")),
    )
}


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_every_yaml_trains_goes_on_and_scores(run, tiny_ssl, tmp_path, path, request):
    recipe, stem, text = path.parts[-3], path.stem, path.read_text()
    options = {
        option: request.getfixturevalue(corpus) for option, corpus in CORPORA[recipe].items()
    }
    if "\nlibrispeech_folder:" in text:
        options["librispeech_folder"] = request.getfixturevalue("librispeech")
        if "\ncorpus_weights:" in text:
            options["corpus_weights"] = "{RAVDESS: 0.1, LibriSpeech: 1.0}"
    if "\ntrain_parts:" in text:
        options |= {"train_parts": "[train-clean-100]", "valid_parts": "[dev-clean]"}
        options["test_parts"] = "[test-clean]"
    options |= {key: value for key, value in SMALL.items() if f"\n{key}:" in text}
    options |= {"max_symbols": 1, "beam_size": 1, "batch_size": 8}
    if "\nssl_hub:" in text:
        kind = "whisper" if "\nfrontend: whisper" in text else KINDS[path]
        options |= {"frontend": kind, "ssl_hub": tiny_ssl(kind)}
    if "\nssl_layers: [" in text:
        options["ssl_layers"] = "[1, 2]"
    if recipe == "Open":
        options["mixed_speeds"] = "[100]"
    if "\nfeature_cache:" in text:
        options["feature_cache"] = tmp_path / "kept"
    if "\ntokens: bpe" in text:
        options["vocab_size"] = 60
    if "\nmixed_speeds:" in text and path not in GOING_ON:
        options["mixed_speeds"] = "[100]"  # of as many mixtures as there are speeds
    if "\ntest_session:" in text and "\ntest_session: null" not in text:
        options["test_session"] = 3
    if "_finetune" in stem:
        options["mask_feature_length"] = 8  # of the small model's 24 channels
    # One YAML of each kind goes on, and all in the long mode: a process takes longer than its
    # training.
    goes_on = path in GOING_ON or request.config.getoption("--long")
    last = 2 if goes_on else 1
    for epochs in range(1, last + 1):
        outcome = run(recipe, path.name, **options | {"number_of_epochs": epochs})
        assert outcome.status == 0, outcome.stderr
        assert f"Going into epoch {epochs}" in outcome.stdout
        assert "Going into epoch 1" not in outcome.stdout or epochs == 1
    assert "empty state_dict" not in outcome.stdout  # a frozen model has none, as it should be
    assert [epoch["epoch"] for epoch in outcome.read("history.json")] == [*range(1, last + 1)]

    valid = [row for row in outcome.read("results.json") if row["protocol"] == "valid"]
    words, emotions = stem != "ser", "_asr" not in stem
    is_mixed = "_mix" in stem
    known = recipe == "ZED" or is_mixed
    for row in valid:
        assert ("WER" in row) == words
        assert ("UA" in row) == (emotions and row["test set"] != "test-clean")
        assert ("EDER" in row) >= (known and row["test set"] != "IEMOCAP session 3")
    names = {row["test set"] for row in valid}
    own = f"mixed {TEST_SETS[recipe]}" if is_mixed else TEST_SETS[recipe]
    expected = {own} if "\ntest_session: null" not in text else set()
    expected |= {"test-clean"} if "\nlibrispeech_folder:" in text else set()
    expected |= {"mixed test actors"} if recipe == "Open" else set()
    assert names == expected | ({"ZED"} if recipe == "ZED" else set())


def test_a_german_table_trains_a_model_of_its_own_labels(run, german_table):
    options = {**SMALL, "max_symbols": 1, "beam_size": 1, "batch_size": 8, "table": german_table}
    outcome = run("Table", "ent_fbank.yaml", **options)
    assert_trained(outcome, ["test"], PAPER_TERMS)
    entries = outcome.read("save/train.json").values()
    known = {(e["transcript"] is not None, e["emotion"] is not None) for e in entries}
    assert known == {(True, True), (True, False), (False, True)}
    [test] = [row for row in outcome.read("results.json") if row["protocol"] == "valid"]
    assert {"WER", "UA"} <= test.keys()

    loaded = EmotionTransducer.from_hparams(source=outcome.folder / "pretrained")
    assert loaded.emotions.names == GERMAN
    assert loaded.emotions.neutral == "neutral"
    transcripts = [e["transcript"] for e in entries if e["transcript"] is not None]
    assert set("ÄÖÜ") & set("".join(transcripts).upper())
    assert [
        loaded.hparams.tokens.decode(loaded.hparams.tokens.encode(t)) for t in transcripts
    ] == transcripts

    results = outcome.read("results.json")
    again = options | {"number_of_epochs": 2, "emotions": f"[{', '.join(reversed(GERMAN))}]"}
    other = run("Table", "ent_fbank.yaml", **again)
    assert_refused(
        other,
        f"error: {outcome.folder}/save: this training was started with other ",
        "emotions",
        ": name another output_folder, or remove this one\n",
    )
    assert outcome.read("results.json") == results


# --- features computed once


def test_features_are_kept_for_all_folds_and_both_models(run, iemocap, tiny_ssl, tmp_path):
    kept = tmp_path / "kept"
    front_end = {"ssl_hub": tiny_ssl("wav2vec2"), "feature_cache": kept}
    options = {"data_folder": iemocap, **front_end}
    few = {"debug_batches": 1, "debug_epochs": 1, "test_dataloader_opts": "{batch_size: 2}"}

    def contents():
        return {path: path.stat().st_mtime_ns for path in kept.rglob("*.safetensors")}

    filled = run("IEMOCAP", "ent.yaml", only_fill_cache=True, test_session=1, **options)
    assert filled.status == 0, filled.stderr
    said = filled.stdout + filled.stderr
    assert "features of 60 utterances, " in said
    assert "4 layers of 24: 0.0" in said
    assert "All features are cached. Run this command" in said
    assert "Going into epoch" not in said
    written = contents()
    assert len(written) == 60
    for yaml, session in (("ent.yaml", 1), ("fent.yaml", 2)):
        options["test_session"] = session
        outcome = run("IEMOCAP", yaml, "--debug", **few, max_symbols=1, **options)
        assert_trained(outcome, [f"session {session}"], PAPER_TERMS)
        shutil.rmtree(outcome.folder)
        assert contents() == written, "something was encoded again"

    for path in written:
        os.truncate(path, path.stat().st_size - 1)
    damaged = contents()
    outcome = run("IEMOCAP", "fent.yaml", "--debug", **few, max_symbols=1, **options)
    assert_trained(outcome, ["session 2"], PAPER_TERMS)
    again = {str(path) for path, time in contents().items() if time != damaged[path]}
    said = re.findall(r"(\S+\.safetensors): damaged", outcome.stdout + outcome.stderr)
    assert again == set(said) != set()


def test_a_cache_must_be_there_to_be_filled(run, iemocap, tiny_ssl):
    front_end = {"ssl_hub": tiny_ssl("wav2vec2"), "feature_cache": "null"}
    outcome = run("IEMOCAP", "ent.yaml", only_fill_cache=True, data_folder=iemocap, **front_end)
    assert outcome.status == 1
    last = outcome.stderr.splitlines()[-1]
    assert last == "error: only_fill_cache: there is no cache: name a folder in feature_cache"


# --- what a fold may know


def test_nothing_of_the_test_session_reaches_training_tokens_or_selection(run, iemocap, tmp_path):
    """A test session with other words, voices and labels gives the same model."""
    other = shutil.copytree(iemocap, tmp_path / "other" / iemocap.name)
    session = other / "Session5"
    for path in (session / "dialog" / "transcriptions").glob("Ses*.txt"):
        path.write_text(
            re.sub(r"\]: .*", "]: Quizzical zebras vex jinxed wizards", path.read_text())
        )
    wavs = sorted(session.glob("sentences/wav/*/*.wav"))
    contents = [wav.read_bytes() for wav in wavs]
    longest = max(contents, key=len)
    for wav in wavs:
        wav.write_bytes(longest)
    times = f"[0.0000 - {soundfile.info(wavs[0]).duration:.4f}]\tSes05"
    for path in (session / "dialog" / "EmoEvaluation").glob("Ses*.txt"):
        text = re.sub(r"\t(neu|ang|sad|hap)\t", "\tsad\t", path.read_text())
        path.write_text(re.sub(r"\[[\d. -]+\]\tSes05", times, text))

    traces = []
    options = {**SMALL, "number_of_epochs": 2, "tokens": "bpe", "vocab_size": 80}
    options["max_unknown_share"] = 1.0  # the other words have letters that training never sees
    options["paper_protocol"] = True  # which scores the test session after each epoch
    for corpus in (iemocap, other):
        outcome = run("IEMOCAP", "ent_demo.yaml", **options, data_folder=corpus)
        assert outcome.status == 0, outcome.stderr
        history = outcome.read("history.json")
        of_test = [key for key in history[0] if key.startswith("session 5 ")]
        assert of_test
        checkpointer = WholeCheckpointer(outcome.folder / "save")
        best = checkpointer.find_checkpoint(min_key="error")
        [pieces] = (outcome.folder / "save").glob("*.model")
        traces.append(
            {
                "train": outcome.read("save/train.json"),
                "valid": outcome.read("save/valid.json"),
                "pieces": (pieces.name, pieces.read_bytes()),
                "history": [
                    {key: epoch[key] for key in epoch if key not in of_test} for epoch in history
                ],
                "chosen": best.meta["epoch"],
                "weights": torch.load(best.paramfiles["model"]),
                "test": outcome.read("save/test.json"),
            }
        )
        shutil.rmtree(outcome.folder)
    one, two = traces
    weights, others = one.pop("weights"), two.pop("weights")
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    tested, changed = one.pop("test"), two.pop("test")
    assert tested != changed
    assert not tested.keys() & (one["train"].keys() | one["valid"].keys())
    assert one == two


# --- started again


OTHER_SETTINGS = "loss settings (lattice_mode was aligned), other training settings (lr was 0.004)"


def test_a_finished_training_is_reported_again_but_not_as_another(run, iemocap):
    options = {**SMALL, "data_folder": iemocap, "test_session": 1}
    first = run("IEMOCAP", "ent_demo.yaml", **options)
    assert_trained(first, ["session 1"], PAPER_TERMS)
    results = first.read("results.json")
    again = run("IEMOCAP", "ent_demo.yaml", **options)
    assert_trained(again, ["session 1"], PAPER_TERMS)
    assert "Going into epoch" not in again.stdout
    assert again.read("results.json") == results
    for changed, what in (
        ({"valid_share": 0.3}, "data (train.json, valid.json)"),
        ({"lattice_mode": "mil", "lr": 0.5}, OTHER_SETTINGS),
        ({"paper_protocol": True}, "protocol (paper_protocol was False)"),
    ):
        other = run("IEMOCAP", "ent_demo.yaml", **options | changed)
        assert_refused(
            other,
            f"error: {first.folder}/save: this training was started with other {what}: "
            "name another output_folder, or remove this one\n",
        )
        assert first.read("results.json") == results


def test_a_killed_training_goes_on_where_it_stopped(iemocap, tmp_path):
    folder = tmp_path / "out"
    options = {**SMALL, "number_of_epochs": 4, "data_folder": iemocap}
    command = [sys.executable, *command_line("ent_demo.yaml", folder, [], options)]
    said = tmp_path / "said"
    with said.open("w") as stream:
        where = {"cwd": RECIPES / "IEMOCAP", "stdout": stream, "stderr": stream}
        process = subprocess.Popen(command, **where)
        try:
            while "Saved an end-of-epoch checkpoint" not in said.read_text():
                assert process.poll() is None, said.read_text()
                time.sleep(0.02)
        finally:
            process.kill()
        assert process.wait() == -signal.SIGKILL
        before = read_json(folder / "history.json")
        assert 1 <= len(before) < 4
        assert not (folder / "results.json").exists()

        stream.seek(0)
        stream.truncate()
        assert subprocess.call(command, **where) == 0, said.read_text()
    begun = re.findall(r"Going into epoch (\d)", said.read_text())
    assert begun == [str(epoch) for epoch in range(len(before) + 1, 5)]
    history = read_json(folder / "history.json")
    assert history[: len(before)] == before
    assert [epoch["epoch"] for epoch in history] == [1, 2, 3, 4]
    assert (folder / "results.md").read_text() in said.read_text()
    assert "torchvision" not in said.read_text()  # nor anything else that nobody can act upon


def _killing(function, count):
    """Wrap a function so that its ``count``-th call kills this process."""
    calls = itertools.count(1)

    def wrapped(*args, **kwargs):
        result = function(*args, **kwargs)
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return wrapped


def _delete_one_file(folder):
    (folder / "model.ckpt").unlink()


MOMENTS = {
    "after CKPT.yaml": (Checkpointer, "_save_checkpoint_metafile", 6),
    # A checkpoint has five files that PyTorch writes.
    "after a parameter file": (torch, "save", 5 * 5 + 1),
    "within a parameter file": (torch.serialization, "_save", 5 * 5 + 2),
    "during deletions": (shutil, "rmtree", 4),
}


def _program_killed(moment, *args):
    module, name, count = MOMENTS[moment]
    function = _delete_one_file if name == "rmtree" else getattr(module, name)
    setattr(module, name, _killing(function, count))
    _program(*args)


@pytest.fixture(scope="module")
def undisturbed(processes, iemocap, tmp_path_factory):
    """Options of a training with every random part, and its results without interruption."""
    options = {**SMALL, "number_of_epochs": 3, "data_folder": iemocap, "time_masks": 2}
    folder = tmp_path_factory.mktemp("undisturbed")
    argv = command_line("ent_demo.yaml", folder / "out", [], options)
    process = processes.Process(target=_program, args=("IEMOCAP", argv, folder))
    process.start()
    process.join()
    assert process.exitcode == 0, (folder / "stderr").read_text()
    return options, folder / "out"


def last_weights(folder):
    last = WholeCheckpointer(folder / "save").find_checkpoint()
    return torch.load(last.paramfiles["model"])


def test_the_seed_alone_decides_what_is_learnt(processes, few_of_iemocap, tmp_path):
    """Weights and statistics are bit-identical for any number of workers."""
    runs = {"once": {"seed": 1}, "again": {"seed": 1, "num_workers": 2}, "other": {"seed": 2}}
    options = {**SMALL, "data_folder": few_of_iemocap, "number_of_epochs": 2, "batch_size": 4}
    started = []
    for name, given in runs.items():
        folder = tmp_path / name
        folder.mkdir()
        argv = command_line("ent_demo.yaml", folder / "out", [], {**options, **given})
        started.append(processes.Process(target=_program, args=("IEMOCAP", argv, folder)))
        started[-1].start()
    for name, process in zip(runs, started, strict=True):
        process.join()
        assert process.exitcode == 0, (tmp_path / name / "stderr").read_text()
    once, again, other = (left_by_training(tmp_path / name / "out") for name in runs)
    assert once == again
    assert once["weights"] != other["weights"]
    assert once["history.json"] != other["history.json"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_while_a_checkpoint_is_kept_changes_nothing(
    run, processes, undisturbed, tmp_path, moment
):
    options, expected = undisturbed
    options = {**options, "ckpt_interval_steps": 1}
    argv = command_line("ent_demo.yaml", tmp_path / "out", [], options)
    process = processes.Process(target=_program_killed, args=(moment, "IEMOCAP", argv, tmp_path))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "stderr").read_text()
    assert not (tmp_path / "out" / "results.json").exists()

    outcome = run("IEMOCAP", "ent_demo.yaml", **options)
    assert outcome.status == 0, outcome.stderr
    assert outcome.read("history.json") == read_json(expected / "history.json")
    weights, expected_weights = last_weights(outcome.folder), last_weights(expected)
    assert all(torch.equal(weights[name], value) for name, value in expected_weights.items())
    whole = WholeCheckpointer(outcome.folder / "save").list_checkpoints()
    folders = {path for path in (outcome.folder / "save").iterdir() if path.is_dir()}
    assert folders == {checkpoint.path for checkpoint in whole}


def left_by_training(folder):
    """Lasting results of a training: figures, statistics by utterance, weights."""
    checkpointer = WholeCheckpointer(folder / "save")
    best = checkpointer.find_checkpoint(min_key="error")
    chosen = torch.load(best.paramfiles["model"]), torch.load(folder / "pretrained/model.ckpt")
    weights = (last_weights(folder), *chosen)
    names = ("history.json", "results.json", "utterances.jsonl", *statistics_of(folder))
    return {
        "best": best.meta["epoch"],
        "weights": [{key: value.numpy().tobytes() for key, value in w.items()} for w in weights],
        "pages": sorted(path.name for path in folder.iterdir() if path.is_file()),
        **{name: (folder / name).read_text() for name in names},
    }


def statistics_of(folder):
    return [path.name for kind in ("words", "emotions") for path in folder.glob(f"{kind}_*.txt")]


def test_a_kill_at_any_moment_changes_nothing(
    processes, few_of_iemocap, tiny_ssl, tmp_path, request
):
    """Kills during preparation, caching, steps, checkpoints, decoding, pictures and export."""
    options = {"warmup_epochs": 0, "max_symbols": 1, "number_of_epochs": 2, "batch_size": 4}
    options |= {"data_folder": few_of_iemocap, "ssl_hub": tiny_ssl("wav2vec2")}
    options |= {"ckpt_interval_steps": 1}
    yaml = own_hparams(tmp_path, "ent.yaml")
    sizes = "encoder_dim: 32\n    embedding_dim: 16\n    predictor_dim: 16\n    joint_dim: 16\n"
    key = "    feature_dim:"
    yaml.write_text(yaml.read_text().replace(key, f"    {sizes}{key}"))

    def start(folder):
        folder.mkdir(exist_ok=True)
        own = {**options, "feature_cache": folder / "kept"}
        argv = command_line(yaml, folder / "out", [], own)
        process = processes.Process(target=_program, args=("IEMOCAP", argv, folder))
        process.start()
        return process

    begun = time.monotonic()
    process = start(tmp_path / "undisturbed")
    process.join()
    seconds = time.monotonic() - begun
    assert process.exitcode == 0, (tmp_path / "undisturbed" / "stderr").read_text()
    expected = left_by_training(tmp_path / "undisturbed" / "out")
    moments, kills = random.Random(1), 30 if request.config.getoption("--long") else 3
    while kills > 0:
        folder = tmp_path / f"{kills}_left"
        process = start(folder)
        for _ in range(3):
            process.join(moments.uniform(0, seconds))
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            kills -= 1
            process = start(folder)
        process.join()
        assert process.exitcode == 0, (folder / "stderr").read_text()
        assert left_by_training(folder / "out") == expected


@pytest.mark.parametrize(("count", "killed"), [(2, 1), (4, 0)])
def test_processes_train_together_and_go_on_when_one_is_killed(
    iemocap, tmp_path, count, killed, request
):
    if count > 2 and not request.config.getoption("--long"):
        pytest.skip("in the long mode")
    torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={count}", "--standalone"]
    options = {**SMALL, "number_of_epochs": 4, "data_folder": iemocap, "device": "cpu"}
    options |= {"ckpt_interval_steps": 1, "tokens": "bpe", "vocab_size": 80}
    folder, said = tmp_path / "out", tmp_path / "said"
    command = [sys.executable, *torchrun, *command_line("ent_demo.yaml", folder, [], options)]
    with said.open("w") as stream:
        where = {"cwd": RECIPES / "IEMOCAP", "stdout": stream, "stderr": stream}
        launcher = subprocess.Popen(command, **where)
        try:
            while "Saved an end-of-epoch checkpoint" not in said.read_text():
                assert launcher.poll() is None, said.read_text()
                time.sleep(0.02)
            of_launcher = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
            [process] = [
                int(child)
                for child in of_launcher.read_text().split()
                if f"\0RANK={killed}\0".encode() in Path(f"/proc/{child}/environ").read_bytes()
            ]
            os.kill(process, signal.SIGKILL)
            assert launcher.wait(timeout=100) == 1
        finally:
            launcher.terminate()
        assert "\nerror: a process of this training has stopped" in said.read_text()
        assert not (folder / "results.json").exists()

        stream.seek(0)
        stream.truncate()
        assert subprocess.call(command, **where) == 0, said.read_text()
    begun = [int(epoch) for epoch in re.findall(r"Going into epoch (\d)", said.read_text())]
    assert begun == list(range(begun[0], 5))
    assert begun[0] > 1
    assert [epoch["epoch"] for epoch in read_json(folder / "history.json")] == list(range(1, 5))
    heard = [each.annotation.name for each in read_utterances(folder / "utterances.jsonl")]
    assert sorted(heard) == sorted(read_json(folder / "save" / "test.json"))


def _program_of_two(rank, port, *args):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    folder, keep = args[-1], FeatureCache.keep

    def noted(cache, name, features):
        with (folder / "kept").open("a") as file:
            file.write(f"{name}\n")
        return keep(cache, name, features)

    FeatureCache.keep = noted
    _program(*args)


@pytest.mark.parametrize(
    ("yaml", "flags", "options"),
    [
        # LayerDrop leaves parameters without a gradient, in each process others.
        ("ent_finetune.yaml", [], {"number_of_epochs": 2, "mask_feature_length": 8}),
        # They fill one cache.
        ("ent.yaml", [], {"number_of_epochs": 1, "feature_cache": "kept"}),
        # Each process would have checkpoints of its own.
        (
            "ent_demo.yaml",
            ["--debug"],
            {**SMALL, "number_of_epochs": 3, "debug_epochs": 3, "max_batch_nodes": 20_000},
        ),
    ],
)
def test_two_processes_train_by_every_way(
    processes, few_of_iemocap, tiny_ssl, tmp_path, yaml, flags, options
):
    options = {**options, "data_folder": few_of_iemocap, "warmup_epochs": 0, "max_symbols": 1}
    if yaml != "ent_demo.yaml":
        options["ssl_hub"] = tiny_ssl("wav2vec2")
    if "feature_cache" in options:
        options["feature_cache"] = tmp_path / "kept"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(2):
        folder = tmp_path / str(rank)
        folder.mkdir()
        argv = command_line(yaml, tmp_path / "out", flags, {**options, "device": "cpu"})
        args = (rank, port, "IEMOCAP", argv, folder)
        ranks.append(processes.Process(target=_program_of_two, args=args))
        ranks[-1].start()
    for rank, process in enumerate(ranks):
        process.join(timeout=100)
        process.kill()
        assert process.exitcode == 0, (tmp_path / str(rank) / "stderr").read_text()
    epochs = [epoch["epoch"] for epoch in read_json(tmp_path / "out" / "history.json")]
    assert epochs == list(range(1, options["number_of_epochs"] + 1))
    assert (tmp_path / "out" / "report.html").is_file()
    if "feature_cache" in options:
        kept = [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
        manifests = (tmp_path / "out" / "save").glob("*.json")
        heard = [name for path in manifests if path.stem in SPLITS for name in read_json(path)]
        assert {path.suffix for path in kept} == {".safetensors", ".json"}
        assert len(kept) == len(heard) + 1
        by_rank = [(tmp_path / str(rank) / "kept").read_text().split() for rank in range(2)]
        assert all(by_rank)
        assert sorted(sum(by_rank, [])) == sorted(p.stem for p in kept if p.suffix != ".json")


# --- what a user gets wrong


def assert_refused(outcome, *parts):
    """Check that the output is one line with the error, and that there is no table."""
    assert outcome.status == 1
    assert outcome.stderr.startswith("error: ")
    assert outcome.stderr.count("\n") == 1
    assert outcome.stderr.endswith("\n")
    assert "Traceback" not in outcome.stdout
    assert "| test set" not in outcome.stdout
    for part in parts:
        assert part in outcome.stderr


@pytest.fixture
def own_iemocap(iemocap, tmp_path):
    """A copy that a test may change, and the ids of some utterances in its first dialog."""
    copy = shutil.copytree(iemocap, tmp_path / "corpus" / iemocap.name)
    evaluation = min((copy / "Session1" / "dialog" / "EmoEvaluation").glob("Ses*.txt"))
    return copy, re.findall(r"\t(Ses01\S+)\t(?:neu|ang|sad|hap|exc)\t", evaluation.read_text())


def edit_transcript(corpus, name, change):
    """Replace an utterance's line, ``<id> [times]: <text>``, by the result of ``change``."""
    path = corpus / "Session1" / "dialog" / "transcriptions" / f"{name.rpartition('_')[0]}.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(change(ln) if ln.startswith(f"{name} ") else ln for ln in lines))


def test_a_missing_corpus_is_refused(run, tmp_path):
    outcome = run("IEMOCAP", "ent_demo.yaml", data_folder=tmp_path / "nowhere")
    assert_refused(outcome, f"{tmp_path}/nowhere: neither it nor IEMOCAP_full_release in it has")
    assert not list(outcome.folder.glob("save/*"))


def test_a_model_of_other_tokens_or_options_for_another_device_are_refused(run, iemocap):
    given = {"data_folder": iemocap, "device": "cpu"}
    outcome = run("IEMOCAP", "ent_demo.yaml", model="{vocab_size: 20}", **given)
    assert_refused(outcome, "error: model: vocab_size 20: the recipe has 31: refer to the ")
    outcome = run("IEMOCAP", "ent_demo.yaml", precision="fp16", **given)
    assert_refused(outcome, "run options: ", "fp16")


def test_another_corpus_is_refused(run, zed, iemocap):
    outcome = run("ZED", "ent_demo.yaml", data_folder=zed, zed_folder=iemocap)
    assert_refused(outcome, f"{zed}: neither it nor IEMOCAP_full_release in it has", "data_folder")
    assert not list(outcome.folder.glob("save/*"))


def test_all_that_is_wrong_with_a_corpus_is_told_in_one_line(run, own_iemocap):
    corpus, (empty, unreadable, untold, silent, *_) = own_iemocap
    wavs = corpus / "Session1" / "sentences" / "wav" / empty.rpartition("_")[0]
    soundfile.write(wavs / f"{empty}.wav", np.zeros(0), 16000)
    (wavs / f"{unreadable}.wav").write_bytes(b"no audio")
    edit_transcript(corpus, untold, lambda line: "")
    edit_transcript(corpus, silent, lambda line: line.partition(": ")[0] + ": ...")
    outcome = run("IEMOCAP", "ent_demo.yaml", data_folder=corpus)
    assert_refused(
        outcome,
        "error: 4 problems: ",
        f"{empty}: no samples in ",
        f"{unreadable}: unreadable audio ",
        f"{untold}: no transcript",
        f"{silent}: no word in the transcript ' ...'",
        f": correct {corpus}, nothing was written",
    )
    assert not list(outcome.folder.glob("save/*"))


def test_a_transcript_longer_than_its_audio_is_refused(run, own_iemocap):
    corpus, (name, *_) = own_iemocap
    edit_transcript(corpus, name, lambda line: line + " and so on" * 100)
    outcome = run("IEMOCAP", "ent_demo.yaml", data_folder=corpus, test_session=1)
    assert_refused(outcome, f"error: {name}: 10", " tokens in ", "or raise max_tokens_per_frame")
    # The manifests are whole: nothing is wrong with them but that utterance.
    assert [len(outcome.read(f"save/{split}.json")) for split in ("train", "test")] == [43, 12]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"batchsize": 3}, "--batchsize: no such option (did you mean --batch_size?)"),
        ({"lattice_mode": "two"}, "lattice_mode: two: choose one, full_t, full_u, mil, aligned, a"),
        ({"rnnt_weight": -1}, "rnnt_weight: -1: give a number from 0"),
        ({"test_session": 7}, "test_session: 7: choose 1, 2, 3, 4, 5, null"),
        ({"lr": "abc"}, "lr: abc: give a number above 0"),
        ({"device": "cuda:99"}, "device: 'cuda:99': "),
        ({"output_folder": "/proc/out"}, "/proc/out"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_read(run, options, part):
    outcome = run("IEMOCAP", "ent_demo.yaml", data_folder="nowhere", **options)
    assert_refused(outcome, part)


@pytest.mark.parametrize(
    ("factor", "reason"),
    [
        (0, "give a whole number above 0"),
        (100, "an epoch has 11 batches, so no step is taken. Give at most 11."),
    ],
)
def test_an_epoch_without_a_step_is_refused(run, iemocap, factor, reason):
    options = {**SMALL, "data_folder": iemocap, "grad_accumulation_factor": factor}
    outcome = run("IEMOCAP", "ent_demo.yaml", **options, batch_size=4)
    assert_refused(outcome, f"error: grad_accumulation_factor: {factor}: {reason}\n")


def test_a_corpus_in_a_folder_of_any_name_is_found(run, tmp_path, iemocap):
    corpus = tmp_path / "my corpora #2: old=1"
    corpus.symlink_to(iemocap)
    outcome = run("IEMOCAP", "ent_demo.yaml", data_folder=corpus, vocab_size=5)
    assert_refused(outcome, "error: vocab_size: 5: char tokens are 31: correct it\n")
    assert outcome.read("save/train.json")
    noted = (outcome.folder / "hyperparams.yaml").read_text()
    assert f"data_folder: '{corpus}'" in " ".join(noted.split())  # a long line is folded


def test_a_misspelt_key_of_a_yaml_is_refused(run, tmp_path):
    own = own_hparams(tmp_path, "ent_demo.yaml")
    own.write_text(own.read_text().replace("\nmax_symbols:", "\nmax_symbol: 3\nmax_symbols:"))
    outcome = run("IEMOCAP", own, data_folder="nowhere")
    assert_refused(outcome, f"{own}: nothing uses the key 'max_symbol': correct the key or remove")
