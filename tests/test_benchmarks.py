"""The quick benchmarks run, and their figures of memory hold; times depend on the machine."""

import importlib
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from test_live import speech

from ent_brain.annotation import Annotation, Word
from ent_brain.audio import load_audio
from ent_brain.emotions import PUBLISHED
from ent_brain.export import export
from ent_brain.files import read_json, write_json
from ent_brain.frontend import SSLFrontend
from ent_brain.inference import EmotionTransducer
from ent_brain.segments import TimedWord

ROOT = Path(__file__).parents[1]


def run_quickly(name, *options):
    """Return the output of ``benchmarks/<name>.py --quick`` with one thread."""
    return run(name, "--quick", *options)


def run(name, *options):
    """Return the output of ``benchmarks/<name>.py`` with one thread."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *map(str, options)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Folder and output of ``benchmarks/lattice.py``."""
    folder = tmp_path_factory.mktemp("benchmarks")
    return folder, run_quickly("lattice", folder, "--threads", 1)


def test_the_lattice_takes_a_fraction_of_the_memory_of_the_other_forms(results):
    folder, _ = results
    found = read_json(folder / "lattice.json")
    assert found["machine"].endswith("threads: 1")
    rows = found["shapes"]
    [small] = [{row["form"]: row["bytes"] for row in rows if row["shape"] == [2, 225, 51, 31]}]
    assert list(small) == ["ours", "ours, aligned", "dense", "published"]
    assert small["published"] > 8 * small["ours"]
    assert small["published"] > 8 * small["ours, aligned"]
    assert small["published"] > small["dense"]


def test_memory_grows_no_faster_than_the_utterance(results):
    folder, _ = results
    measured = read_json(folder / "lattice.json")
    assert measured["growth_exponent"] <= 1.1
    longest = {
        row["form"]: row["bytes"] for row in measured["over_length"] if row["shape"][1] == 1000
    }
    assert longest["published"] > 40 * longest["ours"]


def test_the_need_of_a_form_that_does_not_fit_is_what_it_would_take(results):
    folder, _ = results
    measured = read_json(folder / "lattice.json")
    rows = measured["over_length"] + measured["shapes"]
    # Of some ten megabytes a large part is what the allocator keeps between two passes.
    large = [row for row in rows if row.get("needs", 0) > 150e6]
    assert {row["form"] for row in large} == {"dense", "published"}
    for row in large:
        assert row["bytes"] == pytest.approx(row["needs"], rel=0.1), row


def test_the_table_and_the_picture_are_written(results):
    folder, printed = results
    assert (folder / "lattice.md").read_text() in printed
    assert "| 2, 225, 51, 31 | ours |" in printed
    assert (folder / "lattice.png").stat().st_size > 10_000


@pytest.fixture
def lattice(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("lattice")


def test_a_loss_that_does_not_import_has_a_row_with_the_reason(lattice, monkeypatch, tmp_path):
    (tmp_path / "broken_peer.py").write_text("raise OSError('undefined symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    peer = lattice.transducers.Loss
    absent = {
        "absent": peer(None, "no_such_peer", "not installable here: no wheel"),
        "broken": peer(None, "broken_peer", "not installed"),
        "for a GPU": peer(None, "json", "not installed", needs_cuda=True),
    }
    monkeypatch.setattr(lattice.transducers, "LOSSES", absent)
    rows = lattice.measure_peers([(2, 225, 51, 31)], "cpu", 1)
    assert rows == [
        {"form": "absent", "reason": "not installable here: no wheel"},
        {"form": "broken", "reason": "does not import: undefined symbol"},
        {"form": "for a GPU", "reason": "runs only on CUDA"},
    ]
    assert "| any | absent | not installable here: no wheel |" in lattice.peer_table(rows)


def test_the_table_of_losses_has_costs_and_errors(lattice):
    batch = lattice.make_batch((2, 6, 4, 5), "cpu", torch.float32)
    errors = lattice.peer_errors("torchaudio", batch)
    assert max(errors.values()) < 1e-4
    row = {"form": "torchaudio", "shape": [2, 6, 4, 5], "seconds": 1.5, "cpu_seconds": 1.0}
    row |= {"bytes": 3_000_000, "value_error": 0.0, "gradient_error": 1e-6}
    row["fitted"] = {"value_error": 0.25, "gradient_error": 0.5}
    *_, measured, fitted = lattice.peer_table([row]).splitlines()
    assert measured == (
        "| 2, 6, 4, 5 | torchaudio | 1,500 ms | 1,000 ms | 3 MB | 0.0e+00 | 1.0e-06 |"
    )
    assert fitted == "| | on fitted tensors | | | | 2.5e-01 | 5.0e-01 |"


def test_a_whole_batch_is_compared_with_the_sum_of_its_utterances(lattice):
    row = lattice.measure_huge((3, 7, 4, 5), joint_dim=4)
    assert row["loss"] == pytest.approx(row["sum_of_single_losses"])
    assert row["largest_value_error"] < 1e-5
    assert max(row["gradient_errors"].values()) < 1e-4
    assert "torchaudio, whole batch | not run" in lattice.huge_table(row)
    assert math.prod(lattice.HUGE_SHAPE) > 2**31


def test_an_epoch_needs_less_memory_than_the_published_way(long_mode, tmp_path):
    pytest.importorskip("espeakng_loader")
    printed = run_quickly("epoch", "--threads", 1, "--output", tmp_path / "epoch.json")
    found = read_json(tmp_path / "epoch.json")
    assert f"{found['made with']}\n" in printed
    rows = found["rows"]
    assert all(f"| {name} |" in printed for name in rows)
    needed = {name: row["training"] for name, row in rows.items()}
    assert min(needed.values()) > 0
    assert needed["published"] > 3 * needed["uncached"]
    assert needed["published"] > 3 * needed["cached"]
    assert needed["published"] > 2 * needed["bucketed 16"], "with three times the utterances"
    assert (
        rows["cached"]["batch"] == 2 < rows["bucketed 16"]["batch"] < rows["bucketed 48"]["batch"]
    )


def test_the_demo_is_timed_in_a_clone_of_the_last_commit(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    demo = importlib.import_module("demo")
    repository, rows = tmp_path / "repository", [{"test set": "ZED", "WER": 12.5}]
    repository.mkdir()
    makefile = repository / "Makefile"
    makefile.write_text("demo:\n\tsleep 0.2\n\tmkdir -p demo/ent\n\tcp results.json demo/ent\n")
    write_json(rows, repository / "results.json")
    git = ["git", "-C", repository, "-c", "user.name=A", "-c", "user.email=a@example.org"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "Add"]):
        subprocess.run([*git, *command], check=True)
    makefile.write_text("demo:\n\tfalse\n")
    seconds, measured = demo.measure(repository, tmp_path / "clone")
    assert measured == rows
    assert 0.2 < seconds < 60


def test_features_cost_as_much_as_their_seconds_say(long_mode, tmp_path):
    for name in ("one", "two"):
        soundfile.write(tmp_path / f"{name}.wav", speech(1.0).numpy(), 16000)
    printed = run("features", tmp_path, "--files", 2, "--output", tmp_path / "features.json")
    found = read_json(tmp_path / "features.json")
    assert found["made with"].startswith("2 files, 2.0 s, mean 1.00 s; float32; ")
    assert f"{found['made with']}\n" in printed
    for name, row in found["rows"].items():
        assert row["ms a second of audio"] == pytest.approx(1000 * row["seconds"] / 2.0)
        assert f"| {name} | {row['seconds']:.2f} |" in printed
    padded, fbank = found["rows"]["whisper, padded to 30 s"], found["rows"]["fbank"]
    assert padded["times faster than padded Whisper"] == 1
    assert fbank["times faster than padded Whisper"] > 1


def test_every_way_to_search_finds_the_same(tmp_path):
    printed = run_quickly("decoding", "--repetitions", 1, "--output", tmp_path / "decoding.json")
    found = read_json(tmp_path / "decoding.json")
    assert f"{found['made with']}\n" in printed
    rows = found["rows"]
    assert [row["search"] for row in rows] == ["greedy"] * 3 + ["beam of 4"] * 2
    assert all(row["the same"] for row in rows)
    assert "NO" not in printed


def test_a_long_run_leaves_no_process_and_many_entries_take_their_share(long_mode, tmp_path):
    pytest.importorskip("espeakng_loader")
    printed = run_quickly("soak", "--output", tmp_path / "soak.json")
    found = read_json(tmp_path / "soak.json")
    assert found["made with"] in printed
    assert found["seconds"] > sum(row["seconds"] for row in found["steps"])
    steps = {row["step"]: row for row in found["steps"]}
    assert {"preparation", "start", "first epoch", "search, report"} <= steps.keys()
    assert steps["first epoch"]["children"] >= 2, "the loader's workers"
    assert all(row["left"] == 0 for row in steps.values())
    most = max(row["peak"] for row in steps.values())
    assert 100 < most < 2500, "MB"
    assert -0.5 < found["after_warm_up"] < 0.5
    assert [row["entries"] for row in found["entries"]] == [500, 1000, 2000, 4000]
    assert found["exponents"]["preparation peak"] < 1.2
    assert found["exponents"]["reading peak"] < 1.2


@pytest.fixture
def field(monkeypatch):
    """``benchmarks/field.py``, imported."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("field")


def test_states_of_padded_silence_are_dropped(monkeypatch, tiny_ssl, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    padding = importlib.import_module("padding")
    frontend = SSLFrontend("whisper", tiny_ssl("whisper"), tmp_path / "hub")
    wavs = torch.randn(1, 5000)
    alone, behind = frontend.encode(wavs), padding.padded(frontend)(wavs)
    whole = frontend.encode(torch.nn.functional.pad(wavs, (0, 480000 - 5000)))
    assert behind.shape == alone.shape
    torch.testing.assert_close(behind, whole[:, : behind.size(1)])
    assert not torch.allclose(behind, alone, atol=1e-3)


def test_every_altered_copy_lasts_as_long_as_the_original(field, tmp_path):
    time = np.arange(2 * field.RATE) / field.RATE
    wav = (0.2 * np.sin(2 * np.pi * 440 * time) * np.sin(4 * np.pi * time)).astype(np.float32)
    copies = {}
    for name, write in field.ROWS.items():
        audio, copies[name] = load_audio(write(tmp_path, wav))
        assert audio.seconds == pytest.approx(2.0, abs=0.1), name
    np.testing.assert_array_equal(copies["original"], wav)
    np.testing.assert_allclose(copies["+20 dB"], 10 * wav, rtol=1e-5)
    assert np.abs(copies["+12 dB, clipped"]).max() <= 0.8001
    noise = copies["white noise, SNR 10 dB"] - wav
    assert 10 * np.log10(np.square(wav).mean() / np.square(noise).mean()) == pytest.approx(
        10, abs=0.1
    )
    assert len(field.sounds(field.RATE)) == 10


def test_figures_of_altered_copies(field):
    parts = [
        field.Part("LibriSpeech", Path("a"), "A B C D", None),
        field.Part("RAVDESS", Path("b"), "E F", "sad"),
        field.Part("RAVDESS", Path("c"), "E F", "angry"),
    ]
    original = [("A B C D", "neutral"), ("E F", "sad"), ("E F", "angry")]
    results = [("A B C", "neutral"), ("E F", "sad"), ("", None)]
    assert field.score(PUBLISHED, parts, results, original) == {
        "WER, LibriSpeech": 25.0,
        "WER, RAVDESS": 50.0,
        "UA, RAVDESS": 50.0,
        "same text": pytest.approx(100 / 3),
        "same emotion": pytest.approx(200 / 3),
    }


@pytest.fixture
def live(monkeypatch):
    """``benchmarks/live.py``, imported."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("live")


def test_only_correct_words_that_a_listener_settles_have_a_delay(live, monkeypatch):
    known = [("A", 0.0, 1.0), ("B", 1.0, 2.0), ("C", 2.0, 3.5), ("D", 4.0, 5.0)]
    monkeypatch.setattr(live, "known_words", lambda alignments, path: known)
    settled = [("A", 2.0), ("X", 2.5), ("C", 5.0), ("D", math.nan)]
    words = [Word(text, 0.0, time, None, None) for text, time in settled]
    heard = {Path("a"): (words, 1.0, 5.0), Path("b"): (words[:1], 2.0, 5.0)}
    assert live.score(heard, dict.fromkeys(heard, "A B C D"), None) == {
        "WER": 50.0,
        "delay, median": 1.0,
        "delay, 90th percentile": pytest.approx(1.4),
        "delay, maximum": 1.5,
        "words with a delay": 3,
        "CPU s per s": 0.3,
    }


def test_a_stream_has_the_words_of_its_chunks(live, trained, tmp_path, monkeypatch):
    export(trained(), tmp_path / "model", longest_window=5.0)
    model = EmotionTransducer.from_hparams(source=tmp_path / "model")
    wav = speech(12)
    soundfile.write(tmp_path / "a.wav", wav.numpy(), live.RATE, subtype="FLOAT")
    with monkeypatch.context() as patch:
        ticks = itertools.count(0.0, 0.5)
        patch.setattr(live.time, "perf_counter", lambda: next(ticks))
        words, took, seconds = live.listen(model, wav, 0.7)
    text, thirds = live.measure_stream(model, tmp_path / "a.wav")
    assert text.split() == [word.text for word in words] and len(words) > 2
    assert took > 0 and seconds == pytest.approx(12.0)
    times = [word.end for word in words]
    assert math.isnan(times[-1])
    chunks = [(time - 0.5) / 0.7 for time in times[:-1]]  # it takes 0.5 s to process one
    assert chunks == pytest.approx([round(chunk) for chunk in chunks])
    assert [row["MB"] > 50 and row["CPU s per minute"] > 0 for row in thirds.values()] == 3 * [True]


def test_the_app_leaves_no_file_of_its_sessions(trained, tmp_path):
    pytest.importorskip("gradio")
    export(trained(), tmp_path / "model", longest_window=2.0)
    (tmp_path / "recordings").mkdir()
    for name in ("one", "two"):
        soundfile.write(tmp_path / "recordings" / f"{name}.wav", speech(1.5).numpy(), 16000)
    arguments = [tmp_path / "recordings", "--model", tmp_path / "model", "--sessions", 2]
    arguments += ["--minutes", 0.03, "--output", tmp_path / "soak.json"]
    printed = run("app_soak", *arguments)
    found = read_json(tmp_path / "soak.json")
    assert found["errors"] == {} and found["requests"] >= 2
    assert found["files after the sessions"] == found["files after the app"] == 0
    assert f"| requests | {found['requests']} |" in printed
    assert 100 < found["memory"]["late"] < 2500, "MB"


def test_a_wrong_or_incomplete_result_of_the_app_is_an_error(monkeypatch, tmp_path):
    pytest.importorskip("gradio")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    app_soak = importlib.import_module("app_soak")
    annotation = Annotation("one", 1.0, "", (), None, None, (), (), (), 0.04, ())

    def results():
        (tmp_path / "one.html").write_text("page")
        return [tmp_path / "one.html", *map(Path, annotation.write(tmp_path, app_soak.FORMATS))]

    assert app_soak.check(results(), Path("one.wav")) is None
    assert list(tmp_path.iterdir()) == []
    assert app_soak.check(results(), Path("two.wav")) == "another's result"
    assert app_soak.check(results()[:3], Path("one.wav")) == "missing files"


def test_wrong_words_are_counted_where_they_were_put(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    wrong_words = importlib.import_module("wrong_words")
    names = {3: "CATS SLEEP", 4: "DOGS BARK"}

    def align_batch(wavs, texts):
        words = [
            SimpleNamespace(text=word, start=0.1 * index)
            for index, word in enumerate(texts[0].split())
        ]
        said = names[len(wavs[0])].split()
        strange = [f"{w.text} at {w.start:.2f} s" for w in words if w.text not in said]
        notes = [f"the recording may not have {len(strange)}: {', '.join(strange)}"]
        return [SimpleNamespace(words=words, notes=notes if strange else [])]

    speech = {torch.zeros(samples): text for samples, text in names.items()}
    found = wrong_words.measure(SimpleNamespace(align_batch=align_batch), speech)
    assert found["right"] == {"words": 4, "%": 0.0}
    assert found["replaced"] == found["inserted"] == {"words": 2, "%": 100.0}


def test_the_sound_of_a_word_before_a_pause_is_measured_to_its_end(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    word_tail = importlib.import_module("word_tail")
    generator = np.random.default_rng(0)
    wav = 1e-3 * generator.standard_normal(3 * word_tail.RATE)
    wav[: int(0.9 * word_tail.RATE)] += generator.standard_normal(int(0.9 * word_tail.RATE))
    wav[2 * word_tail.RATE :] += generator.standard_normal(word_tail.RATE)
    tail = word_tail.WORD_TAIL
    words = [
        TimedWord("FOLLOWED", 0.2, 0.5),
        TimedWord("LAST", 0.5, 0.7 + tail),
        TimedWord("TO THE END", 2.0, 2.9 + tail),
    ]
    [seconds] = word_tail.tails(wav, words)
    assert seconds == pytest.approx(0.2, abs=0.02)
