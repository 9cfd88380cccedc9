import json
import math
from collections import Counter

import numpy as np
import pytest
import soundfile

from ent_brain import mixing
from ent_brain.dataio import make_dataset
from ent_brain.emotions import PUBLISHED
from ent_brain.errors import InputError
from ent_brain.frontend import FbankFrontend
from ent_brain.manifest import read_manifest
from ent_brain.mixing import LOUDNESS, draw_mixtures, mix
from ent_brain.recipe import _add_whole_intervals
from ent_brain.speech import Speech
from ent_brain.tokens import CharTokens, normalize_transcript

TEXTS = {"neutral": "WELL THEN", "sad": "OH NO", "angry": "STOP IT NOW"}


def write_corpus(folder, counts=None, rate=16000, speakers=("Ann", "Bob")):
    """Write noise with a different length and level for each utterance, and its manifest."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    manifest = {}
    for speaker in speakers:
        for emotion, count in (counts or {"neutral": 3, "sad": 5, "angry": 4}).items():
            for index in range(count):
                name = f"{speaker}_{emotion}{index}"
                samples = rng.uniform(0.02, 0.4) * rng.normal(size=rng.integers(rate // 2, rate))
                soundfile.write(folder / f"{name}.wav", samples.clip(-1, 1), rate)
                manifest[name] = {
                    "wav": f"{{data_root}}/{name}.wav",
                    "duration": len(samples) / rate,
                    "transcript": TEXTS[emotion],
                    "emotion": emotion,
                    "speaker": speaker,
                }
    (folder / "train.json").write_text(json.dumps(manifest))
    return folder / "train.json"


def mixed_from(manifest, folder, seed=1, **options):
    path = mix(
        manifest,
        manifest.parent,
        folder / "audio",
        folder,
        PUBLISHED,
        normalize_transcript,
        seed,
        **options,
    )
    return path, read_manifest(path)


def test_nothing_is_written_outside_the_mixed_folder(tmp_path):
    manifest = write_corpus(tmp_path / "corpus", {"sad": 1}, speakers=["Ann"])
    [entry] = json.loads(manifest.read_text()).values()
    manifest.write_text(json.dumps({"../../evil": entry}))
    before = set(tmp_path.rglob("*"))
    mixed = tmp_path / "a" / "b"
    with pytest.raises(InputError) as error:
        mix(manifest, manifest.parent, mixed, mixed, PUBLISHED, normalize_transcript, seed=1)
    assert str(error.value) == (
        "../../evil: an id names files: no / \\ or NUL, not . or .., 1 to 200 bytes: "
        f"write {manifest} again with the recipe's preparation"
    )
    assert set(tmp_path.rglob("*")) == before


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus")


def test_every_emotional_utterance_is_used_once_with_its_speaker_s_neutral_ones(corpus):
    entries = read_manifest(corpus)
    mixtures = draw_mixtures(entries, seed=3, neutral_label="neutral")
    assert set(mixtures) == {name for name, e in entries.items() if e["emotion"] != "neutral"}
    for name, parts in mixtures.items():
        assert parts.count(name) == 1
        assert len({entries[part]["speaker"] for part in parts}) == 1
        emotions = [entries[part]["emotion"] for part in parts if part != name]
        assert set(emotions) <= {"neutral"}


def test_the_four_patterns_are_equally_probable_and_neutral_ones_come_in_turn():
    entries = {f"e{i:04}": {"speaker": "Ann", "emotion": "sad"} for i in range(4000)}
    entries |= {f"n{i}": {"speaker": "Ann", "emotion": "neutral"} for i in range(7)}
    mixtures = draw_mixtures(entries, seed=5, neutral_label="neutral")
    patterns = Counter(tuple(p[0] for p in parts) for parts in mixtures.values())
    assert set(patterns) == {("n", "e"), ("e", "n"), ("n", "e", "n"), ("e",)}
    # Four binomial deviations of 4,000 draws at 1/4.
    assert all(abs(count - 1000) < 4 * math.sqrt(4000 * 3 / 16) for count in patterns.values())
    used = Counter(part for parts in mixtures.values() for part in parts if part[0] == "n")
    assert max(used.values()) - min(used.values()) <= 1


def test_a_seed_draws_the_same_and_another_one_others(corpus):
    entries = read_manifest(corpus)
    assert draw_mixtures(entries, 1, neutral_label="neutral") == draw_mixtures(
        dict(reversed(entries.items())), 1, neutral_label="neutral"
    )
    assert draw_mixtures(entries, 1, neutral_label="neutral") != draw_mixtures(
        entries, 2, neutral_label="neutral"
    )
    of_ann = {name: e for name, e in entries.items() if e["speaker"] == "Ann"}
    assert (
        draw_mixtures(of_ann, 1, neutral_label="neutral").items()
        <= draw_mixtures(entries, 1, neutral_label="neutral").items()
    )


def test_the_audio_is_the_parts_at_equal_loudness_and_the_intervals_tell_where(corpus, tmp_path):
    entries = read_manifest(corpus)
    mixtures = draw_mixtures(entries, seed=1, neutral_label="neutral")
    path, mixed = mixed_from(corpus, tmp_path)
    assert path == tmp_path / "mixed_train.json"
    assert set(mixed) == set(mixtures)
    for name, entry in mixed.items():
        audio, rate = soundfile.read(entry["wav"].replace("{data_root}", f"{tmp_path}/audio"))
        assert rate == 16000
        assert len(audio) == round(entry["duration"] * 16000)
        assert (entry["emotion"], entry["speaker"]) == (
            entries[name]["emotion"],
            entries[name]["speaker"],
        )
        for interval, part in zip(entry["intervals"], mixtures[name], strict=True):
            samples = audio[interval["start"] : interval["end"]]
            original, _ = soundfile.read(corpus.parent / f"{part}.wav")
            assert len(samples) == len(original)
            assert 20 * np.log10(np.sqrt(np.mean(samples**2))) == pytest.approx(LOUDNESS, abs=0.05)
            assert np.corrcoef(samples, original)[0, 1] > 0.999
            assert interval["emotion"] == entries[part]["emotion"]
            assert interval["transcript"] == entries[part]["transcript"]


def test_the_same_is_written_again_and_nothing_that_is_there(corpus, tmp_path):
    first, _ = mixed_from(corpus, tmp_path)
    files = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path / "audio").iterdir()}
    manifest = first.read_bytes()
    mixed_from(corpus, tmp_path)
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in files} == files
    again, _ = mixed_from(corpus, tmp_path / "elsewhere")
    assert again.read_bytes() == manifest
    assert {p.name for p in (tmp_path / "elsewhere/audio").iterdir()} == {p.name for p in files}


def test_audio_that_changes_is_mixed_anew(corpus, tmp_path):
    _, before = mixed_from(corpus, tmp_path)
    samples, rate = soundfile.read(corpus.parent / "Ann_sad0.wav")
    soundfile.write(corpus.parent / "Ann_sad0.wav", samples[::-1], rate)
    _, after = mixed_from(corpus, tmp_path)
    assert [name for name in after if after[name]["wav"] != before[name]["wav"]] == ["Ann_sad0"]


def test_neutral_utterances_are_joined_as_emotional_ones_are_where_asked(corpus, tmp_path):
    _, without = mixed_from(corpus, tmp_path / "without")
    _, mixed = mixed_from(corpus, tmp_path, keep_neutral=True, speeds=[100] * 20)
    assert without.items() <= mixed.items()
    neutral = {name: entry for name, entry in mixed.items() if entry["emotion"] == "neutral"}
    assert len(neutral) == 20 * 6
    assert {len(entry["intervals"]) for entry in neutral.values()} == {1, 2, 3}
    for entry in neutral.values():
        assert {interval["emotion"] for interval in entry["intervals"]} == {"neutral"}
        lengths = [interval["end"] - interval["start"] for interval in entry["intervals"]]
        assert len(set(lengths[:2])) == len(lengths[:2])  # never beside itself


def test_a_speaker_without_neutral_speech_is_not_mixed(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", counts={"sad": 3})
    _, mixed = mixed_from(corpus, tmp_path)
    assert {len(entry["intervals"]) for entry in mixed.values()} == {1}


def test_audio_of_another_rate_is_mixed_at_16_khz(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", rate=8000, speakers=("Ann",))
    _, mixed = mixed_from(corpus, tmp_path)
    entries = read_manifest(corpus)
    for name, parts in draw_mixtures(entries, 1, neutral_label="neutral").items():
        seconds = sum(entries[part]["duration"] for part in parts)
        assert mixed[name]["duration"] == pytest.approx(seconds, abs=1e-3)


def test_silence_is_refused(corpus, tmp_path):
    soundfile.write(corpus.parent / "Bob_sad1.wav", np.zeros(8000), 16000)
    with pytest.raises(InputError, match=r"Bob_sad1: .*Bob_sad1.wav is silent: correct"):
        mixed_from(corpus, tmp_path)


def test_a_mixed_corpus_makes_a_dataset(corpus, tmp_path):
    path, _ = mixed_from(corpus, tmp_path)
    dataset = make_dataset(
        {"corpus": (path, tmp_path / "audio")}, CharTokens(), PUBLISHED, FbankFrontend(0.04), 1.0
    )
    for item in dataset:
        spans = item["entry"]["intervals"]
        assert spans[0][1] == spans[0][3] == 0
        assert all(a[2] == b[1] and a[4] == b[3] for a, b in zip(spans, spans[1:], strict=False))
        assert spans[-1][4] == len(item["tokens"]) + 1


def test_every_speed_is_a_draw_of_its_own_at_that_speed(corpus, tmp_path):
    _, mixed = mixed_from(corpus, tmp_path, speeds=[100, 80])
    _, first = mixed_from(corpus, tmp_path / "first")
    entries = read_manifest(corpus)
    assert {name: mixed[name] for name in first} == first
    assert set(mixed) == {*first, *(f"{name}_2" for name in first)}
    again = {name.removesuffix("_2"): mixed[name] for name in set(mixed) - set(first)}
    assert any(len(again[n]["intervals"]) != len(first[n]["intervals"]) for n in first)
    seconds = [entry["duration"] for entry in entries.values()]
    for name, entry in again.items():
        emotional = [i for i in entry["intervals"] if i["emotion"] != "neutral"]
        assert len(emotional) == 1
        length = emotional[0]["end"] - emotional[0]["start"]
        assert length == pytest.approx(16000 * entries[name]["duration"] / 0.8, abs=1)
        assert entry["duration"] >= length / 16000 >= min(seconds)


def test_parts_of_a_close_draw_are_cut_to_their_speech(corpus, tmp_path, monkeypatch):
    def find(wavs):
        [wav] = wavs
        return Speech([(len(wav) // 4, len(wav) // 3), (len(wav) // 2, len(wav) - 8)], 1.0, 0, None)

    monkeypatch.setattr(mixing, "find_speech", find)
    monkeypatch.setattr(mixing, "SILENCE", 0.02)
    folder, mixed = mixed_from(corpus, tmp_path, close_draws=1)
    _, first = mixed_from(corpus, tmp_path / "first")
    assert {name: mixed[name] for name in first} == first
    close = {name: mixed[name] for name in set(mixed) - set(first)}
    assert set(close) == {f"{name}_2" for name in first}
    assert any(len(entry["intervals"]) > 1 for entry in close.values())
    entries, kept = read_manifest(corpus), set()
    for name, parts in draw_mixtures(entries, "1 2", neutral_label="neutral").items():
        intervals = close[f"{name}_2"]["intervals"]
        for part, interval in zip(parts, intervals, strict=True):
            whole = round(16000 * entries[part]["duration"])
            around = interval["end"] - interval["start"] - (whole - 8 - whole // 4)
            assert 0 <= around <= 320 + 8  # only 8 samples are left after the speech
            kept.add(around)
    assert len(kept) > 3


def test_a_close_draw_keeps_what_is_not_speech_to_the_detector(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(mixing, "find_speech", lambda wavs: Speech([], 0.0, 0, None))
    _, mixed = mixed_from(corpus, tmp_path, close_draws=1)
    entries = read_manifest(corpus)
    for name, parts in draw_mixtures(entries, "1 2", neutral_label="neutral").items():
        samples = sum(round(16000 * entries[part]["duration"]) for part in parts)
        assert round(16000 * mixed[f"{name}_2"]["duration"]) == samples


def test_impossible_speeds_are_refused(corpus, tmp_path):
    with pytest.raises(InputError, match=r"mixed_speeds: \[100, 0\]: give one or more whole"):
        mixed_from(corpus, tmp_path, speeds=[100, 0])


def test_mixtures_beside_single_utterances_have_names_of_their_own(tmp_path):
    manifest = write_corpus(tmp_path / "corpus")
    _, plain = mixed_from(manifest, tmp_path)
    _, named = mixed_from(manifest, tmp_path, prefix="mixed_")
    assert [f"mixed_{name}" for name in plain] == list(named)
    assert [each["intervals"] for each in plain.values()] == [
        each["intervals"] for each in named.values()
    ]
    corpora = {
        "single": (manifest, manifest.parent),
        "mixed": (tmp_path / "mixed_train.json", tmp_path / "audio"),
    }
    dataset = make_dataset(corpora, CharTokens(), PUBLISHED, FbankFrontend(0.02), 1.0)
    _add_whole_intervals([dataset], ["single"], PUBLISHED)
    for name, item in dataset.data.items():
        intervals, frames = item["entry"]["intervals"], item["nodes"] // item["positions"]
        if item["corpus"] == "mixed":
            assert len(intervals) == len(named[name]["intervals"])
        else:
            index = PUBLISHED.index(item["entry"]["emotion"])
            assert intervals == [(index, 0, frames, 0, item["positions"])]
            assert item["entry"]["segments"] is None, "an EDER would compare with a guess"
