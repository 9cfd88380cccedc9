import csv
import json
import re
import subprocess
import sys
import wave
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("espeakng_loader")

from ent_brain import synth
from ent_brain.errors import InputError
from ent_brain.espeak import speak
from ent_brain.tokens import normalize_transcript

UTTERANCES = 80
EMOTIONS = ("happy", "angry", "sad", "neutral")
EVALUATED = re.compile(
    r"^\[(\d+\.\d{4}) - (\d+\.\d{4})\]\t(Ses0[1-5][FM]_\w+_[FM]\d{3})\t([a-z]{3})"
    r"\t\[\d\.\d{4}, \d\.\d{4}, \d\.\d{4}\]$"
)
EVALUATOR = re.compile(r"^(C-[EFM]\d:\t[A-Z]\w+;\t\(\)|A-E\d:\tval \d; act \d; dom  \d;\t\(\))$")
TRANSCRIBED = re.compile(
    r"^(Ses0[1-5][FM]_\w+_[FM](?:XX)?\d{3}) \[(\d{3}\.\d{4})-(\d{3}\.\d{4})\]: (\S.*)$"
)
KEPT = {"hap": "happy", "exc": "happy", "ang": "angry", "sad": "sad", "neu": "neutral"}


@pytest.fixture(scope="module")
def iemocap(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synth") / "IEMOCAP_full_release"
    synth.write_iemocap(folder, UTTERANCES, seed=1)
    return folder


@pytest.fixture(scope="module")
def zed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synth") / "ZED"
    synth.write_zed(folder, 45, seed=1)
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synth") / "table"
    synth.write_table(folder, 180, seed=1, language="de")
    return folder


def table_rows(folder):
    with (folder / "data.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_german(folder, utterances, seed):
    synth.write_table(folder, utterances, seed, "de")


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def evaluations(folder):
    """(session, dialog, id, label, start, end) of every evaluated utterance."""
    for path in sorted(folder.glob("Session*/dialog/EmoEvaluation/Ses*.txt")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if found := EVALUATED.match(line):
                start, end, utterance_id, label = found.groups()
                yield path.parts[-4], path.stem, utterance_id, label, float(start), float(end)
            else:
                assert line == "" or line.startswith("% [START_TIME") or EVALUATOR.match(line), line


def iemocap_wav(folder, utterance_id):
    dialog = utterance_id.rsplit("_", 1)[0]
    return folder / f"Session{dialog[4]}/sentences/wav/{dialog}/{utterance_id}.wav"


def read_wav(path):
    with wave.open(str(path)) as reader:
        assert reader.getparams()[:3] == (1, 2, 16000)
        return np.frombuffer(reader.readframes(reader.getnframes()), "<i2") / 2**15


def word_share(truth):
    """Share of the words in the emotional segment."""
    [segment] = truth["segments"]
    inside = [
        segment["start"] <= start and end <= segment["end"] for _, start, end in truth["words"]
    ]
    return sum(inside) / len(inside)


def test_iemocap_folders_hold_what_the_release_holds(iemocap):
    for session in range(1, 6):
        dialog = iemocap / f"Session{session}/dialog"
        names = {path.stem for path in (dialog / "EmoEvaluation").glob("Ses*.txt")}
        assert len(names) >= 2
        assert names == {path.stem for path in (dialog / "transcriptions").iterdir()}
        for kind in ("Attribute", "Categorical", "Self-evaluation"):
            assert any((dialog / "EmoEvaluation" / kind).iterdir())
        for name in names:
            with pytest.raises(UnicodeDecodeError):
                (dialog / "EmoEvaluation" / f"._{name}.txt").read_text(encoding="utf-8")


def test_iemocap_evaluations_transcriptions_and_wavs_agree(iemocap):
    truth = json.loads((iemocap / "ground_truth.json").read_text())
    evaluated = {entry[2]: entry for entry in evaluations(iemocap)}
    transcribed, without_id = {}, 0
    for path in iemocap.glob("Session*/dialog/transcriptions/*.txt"):
        for line in path.read_text().splitlines():
            if found := TRANSCRIBED.match(line):
                transcribed[found[1]] = found
            else:
                assert re.match("^[FM]: ", line)
                without_id += 1
    assert without_id
    spoken = {utterance_id for utterance_id in transcribed if "XX" not in utterance_id}
    assert spoken == set(evaluated) == set(truth)
    assert len(transcribed) > len(spoken)
    assert {path.stem for path in iemocap.rglob("*.wav")} == spoken
    for utterance_id, (_, dialog, _, _, start, end) in evaluated.items():
        assert utterance_id.startswith(f"{dialog}_")
        assert (float(transcribed[utterance_id][2]), float(transcribed[utterance_id][3])) == (
            start,
            end,
        )
        duration = len(read_wav(iemocap_wav(iemocap, utterance_id))) / 16000
        assert end - start == pytest.approx(duration, abs=2e-4)
        words = [word for word, _, _ in truth[utterance_id]["words"]]
        assert normalize_transcript(transcribed[utterance_id][4]).split() == words


def test_iemocap_classes_sessions_and_speakers_are_spread(iemocap):
    entries = list(evaluations(iemocap))
    kept = [entry for entry in entries if entry[3] in KEPT]
    assert len(kept) == UTTERANCES
    assert 0.1 <= len(entries) / len(kept) - 1 <= 0.15
    assert set(Counter(entry[0] for entry in kept).values()) == {UTTERANCES // 5}
    per_session = Counter((entry[0], KEPT[entry[3]]) for entry in kept)
    assert len(per_session) == 5 * 4
    assert len({(entry[0], entry[2].rsplit("_", 1)[1][0]) for entry in kept}) == 10
    assert len({(entry[1], entry[2].rsplit("_", 1)[1][0]) for entry in entries}) == 2 * len(
        {entry[1] for entry in entries}
    )


@pytest.mark.parametrize("count", range(4, 30))
def test_every_session_has_every_emotion_in_the_release_s_proportions(count):
    labels = Counter(synth._session_labels(np.random.default_rng(0), count))
    emotions = Counter(dict.fromkeys(EMOTIONS, 0))
    for label, emotion in KEPT.items():
        emotions[emotion] += labels[label]
    assert sum(emotions.values()) == count
    release = {"happy": 1636, "angry": 1103, "sad": 1084, "neutral": 1708}
    for emotion, number in emotions.items():
        assert number >= 1
        assert abs(number - count * release[emotion] / 5531) < 2


def test_zed_entries(zed):
    entries = json.loads((zed / "ZED.json").read_text())
    truth = json.loads((zed / "ground_truth.json").read_text())
    assert Counter(entry["emotion"][0]["emo"] for entry in entries.values()) == {
        "happy": 15,
        "angry": 15,
        "sad": 15,
    }
    assert len({Path(entry["wav"]).parent for entry in entries.values()}) >= 6
    for utterance_id, entry in entries.items():
        assert set(entry) == {"wav", "duration", "emotion", "transcription"}
        [interval] = entry["emotion"]
        assert set(interval) == {"emo", "start", "end"}
        assert re.match("^datafolder/.+/.+\\.wav$", entry["wav"])
        wav = read_wav(zed / entry["wav"].removeprefix("datafolder/"))
        assert entry["duration"] == pytest.approx(len(wav) / 16000, abs=1e-4)
        assert 0 < interval["start"] < interval["end"] < entry["duration"]
        [segment] = truth[utterance_id]["segments"]
        assert (segment["emotion"], segment["start"], segment["end"]) == tuple(interval.values())


def test_emotion_is_on_the_share_of_the_words_that_was_asked_for(iemocap, zed):
    labels = {entry[2]: entry[3] for entry in evaluations(iemocap)}
    for utterance_id, truth in json.loads((iemocap / "ground_truth.json").read_text()).items():
        if truth["segments"]:
            assert 0.4 <= word_share(truth) <= 1.0
        emotions = [segment["emotion"] for segment in truth["segments"]] or ["neutral"]
        assert labels[utterance_id] not in KEPT or emotions == [KEPT[labels[utterance_id]]]
    at = Counter()
    for truth in json.loads((zed / "ground_truth.json").read_text()).values():
        assert 0.25 <= word_share(truth) <= 0.7
        [segment], words = truth["segments"], truth["words"]
        at[segment["start"] == words[0][1], segment["end"] == words[-1][2]] += 1
    assert set(at) == {(True, False), (False, False), (False, True)}


def test_words_follow_each_other_inside_the_file_and_are_heard_there(iemocap):
    for utterance_id, truth in json.loads((iemocap / "ground_truth.json").read_text()).items():
        wav = read_wav(iemocap_wav(iemocap, utterance_id))
        times = [time for _, start, end in truth["words"] for time in (start, end)]
        assert times == sorted(times)
        assert times[0] > 0.09
        assert 0.09 < len(wav) / 16000 - times[-1] < 0.25
        silence = np.sqrt(np.mean(wav[:1500] ** 2))
        for _, start, end in truth["words"]:
            assert end - start > 0.02
            word = wav[int(start * 16000) : int(end * 16000)]
            assert np.sqrt(np.mean(word**2)) > 1.5 * silence


def test_emotional_stretches_sound_like_it(zed):
    entries = json.loads((zed / "ZED.json").read_text())
    truth = json.loads((zed / "ground_truth.json").read_text())
    louder, faster = {e: [] for e in EMOTIONS}, {e: [] for e in EMOTIONS}
    for utterance_id, entry in entries.items():
        wav = read_wav(zed / entry["wav"].removeprefix("datafolder/"))
        power, letters, seconds = ({True: 0.0, False: 0.0} for _ in range(3))
        [interval] = entry["emotion"]
        for word, start, end in truth[utterance_id]["words"]:
            inside = interval["start"] <= start < interval["end"]
            power[inside] += np.sum(wav[int(start * 16000) : int(end * 16000)] ** 2) / 16000
            letters[inside] += len(word)
            seconds[inside] += end - start
        louder[interval["emo"]].append(
            10 * np.log10(power[True] / seconds[True] / (power[False] / seconds[False]))
        )
        faster[interval["emo"]].append(
            letters[True] / seconds[True] / (letters[False] / seconds[False])
        )
    louder, faster = ({e: np.mean(d[e]) for e in EMOTIONS[:3]} for d in (louder, faster))
    assert louder["angry"] > louder["happy"] + 1 > 2
    assert louder["sad"] < -3
    assert faster["sad"] < 0.9 < 1.0 < min(faster["happy"], faster["angry"])


@pytest.mark.parametrize(
    ("language", "by_pitch"),
    [
        ("en", ["happy", "angry", "neutral", "sad"]),
        ("de", ["überraschung", "freude", "wut", "neutral", "trauer"]),
    ],
)
def test_emotions_change_the_pitch(language, by_pitch):
    speaker = synth.IEMOCAP_SPEAKERS["Ses01F"]
    pitch = {}
    for emotion in by_pitch:
        periods = []
        for seed in range(4):
            samples = synth.speak_emotionally(
                np.random.default_rng(seed), speaker, emotion, (1.0, 1.0), language
            ).samples.astype(float)
            for frame in np.lib.stride_tricks.sliding_window_view(samples, 640)[::160]:
                correlation = np.correlate(frame, frame, "full")[639:]
                lag = 40 + correlation[40:160].argmax()  # 100 to 400 Hz
                if correlation[lag] > 0.6 * correlation[0]:
                    periods.append(lag)
        pitch[emotion] = 16000 / np.median(periods)
    assert sorted(pitch, key=pitch.get, reverse=True) == by_pitch


def test_table_has_a_wav_for_every_row(table):
    rows = table_rows(table)
    truth = json.loads((table / "ground_truth.json").read_text())
    assert list(rows[0]) == ["ID", "wav", "transcript", "emotion", "speaker", "split"]
    assert len({row["ID"] for row in rows}) == len(rows) == 180
    assert {table / row["wav"] for row in rows} == set(table.rglob("*.wav"))
    for row in rows:
        wav = read_wav(table / row["wav"])
        assert 0.8 < len(wav) / 16000 < 7
        assert 0.01 < np.abs(wav).max() < 0.99
        words = truth[row["ID"]]["words"]
        assert min(words[0][1], len(wav) / 16000 - words[-1][2]) > 0.09  # nothing is cut off


def test_table_lacks_labels_in_training_alone_and_never_both(table):
    rows = table_rows(table)
    train = [row for row in rows if row["split"] == "train"]
    assert len(train) == 120
    for column in ("transcript", "emotion"):
        missing = [row for row in rows if not row[column]]
        assert len(missing) == 18
        assert all(row["split"] == "train" for row in missing)
    assert all(row["transcript"] or row["emotion"] for row in rows)


def test_table_splits_share_no_speaker_and_have_all_emotions_in_equal_shares(table):
    rows = table_rows(table)
    speakers = {split: set() for split in ("train", "valid", "test")}
    for row in rows:
        speakers[row["split"]].add(row["speaker"])
    assert [len(group) for group in speakers.values()] == [12, 2, 4]
    assert len(set.union(*speakers.values())) == 18
    for split, count in (("valid", 20), ("test", 40)):
        labels = Counter(row["emotion"] for row in rows if row["split"] == split)
        assert sorted(labels) == ["angst", "freude", "neutral", "trauer", "wut", "überraschung"]
        assert {*labels.values()} <= {count // 6, count // 6 + 1}
        voices = {*speakers[split]}
        assert voices & {"anika", "belinda", "grandma"}
        assert voices & {"m6", "Gene", "Nguyen"}


def test_table_is_written_as_germans_write(table):
    transcripts = [row["transcript"] for row in table_rows(table) if row["transcript"]]
    assert all(re.match("^„?[A-ZÄÖÜ]", text) for text in transcripts)
    assert all(re.search("[.!?]“?$", text) for text in transcripts)
    letters = set("".join(transcripts))
    assert letters >= set("äöüß„“,.!?:")
    assert not letters & set('"-')


def test_table_ground_truth_has_the_words_and_one_emotion_throughout(table):
    truth = json.loads((table / "ground_truth.json").read_text())
    rows = table_rows(table)
    assert list(truth) == [row["ID"] for row in rows]
    for row in rows:
        words, segments = truth[row["ID"]]["words"], truth[row["ID"]]["segments"]
        text = re.sub("[„“,.!?:]", "", row["transcript"]).upper().split()
        assert text in ([], [word for word, _, _ in words])
        if segments:
            assert row["emotion"] in ("", segments[0]["emotion"])
            assert [(s["start"], s["end"]) for s in segments] == [(words[0][1], words[-1][2])]
        else:
            assert row["emotion"] in ("", "neutral")


@pytest.mark.parametrize("language", ["de", "en"])
def test_table_from_the_command_line(tmp_path, language):
    synth.main(["table", str(tmp_path / "corpus"), "--language", language, "--utterances", "54"])
    rows = table_rows(tmp_path / "corpus")
    assert len(rows) == 54
    labels = {
        split: {r["emotion"] for r in rows if r["split"] == split} for split in ("train", "valid")
    }
    assert labels["valid"] == labels["train"] - {""}
    assert len(labels["valid"]) == {"de": 6, "en": 4}[language]


def test_table_in_an_unknown_language_is_refused_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        synth.main(["table", str(tmp_path / "c"), "--language", "fr", "--utterances", "54"])
    said = "error: fr: unknown language: use one of en, de\n"
    assert (ended.value.code, capsys.readouterr().err) == (1, said)
    assert not list(tmp_path.iterdir())


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path, iemocap):
    for name, seed in (("again", 1), ("other", 2)):
        synth.write_iemocap(tmp_path / name, 20, seed)
        synth.write_zed(tmp_path / f"zed {name}", 6, seed)
        synth.write_table(tmp_path / f"table {name}", 54, seed, "de")
    synth.write_iemocap(tmp_path / "first", 20, 1)
    synth.write_zed(tmp_path / "zed first", 6, 1)
    synth.write_table(tmp_path / "table first", 54, 1, "de")
    for prefix in ("", "zed ", "table "):
        first, again, other = (
            contents(tmp_path / f"{prefix}{name}") for name in ("first", "again", "other")
        )
        assert first == again
        wavs = [path for path in first if path.suffix == ".wav"]
        assert wavs
        assert all(first[path] != other.get(path) for path in wavs)


def test_what_was_said_before_does_not_change_what_is_said():
    first = speak("the lamp is here", "en-us+f1", seed=3)
    speak("something else altogether", "en+m1", rate=120, pitch=90, seed=4)
    again = speak("the lamp is here", "en-us+f1", seed=3)
    assert np.array_equal(first.samples, again.samples)
    assert first.word_starts == again.word_starts


@pytest.mark.parametrize(
    ("language", "shortest", "letters", "some"),
    [
        ("en", 3, "ABCDEFGHIJKLMNOPQRSTUVWXYZ'", {"DON'T", "IT'S", "WHERE'S"}),
        ("de", 4, "ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÜ", {"TÜR", "MÖCHTE", "FÄHRT", "GROSSEN"}),
    ],
)
def test_sentences_are_many_short_and_of_many_words(language, shortest, letters, some):
    rng = np.random.default_rng(0)
    sentences = {synth.draw_sentence(rng, language) for _ in range(3000)}
    assert len(sentences) > 2000
    assert {len(sentence.split()) for sentence in sentences} == set(range(shortest, 10))
    sentences = {sentence.translate({ord(quote): None for quote in "„“"}) for sentence in sentences}
    vocabulary = {word for s in sentences for word in normalize_transcript(s).split()}
    assert 120 <= len(vocabulary) <= {"en": 300, "de": 170}[language]
    assert set("".join(vocabulary)) <= set(letters)
    assert some <= vocabulary


def test_sentence_does_not_depend_on_the_emotion():
    speaker = synth.ZED_SPEAKERS["speaker01"]
    for seed in range(5):
        texts = {
            synth.speak_emotionally(np.random.default_rng(seed), speaker, e, (0.4, 1.0)).text
            for e in EMOTIONS
        }
        assert len(texts) == 1


def test_voices_of_the_corpora_are_different():
    iemocap, zed = (
        {speaker.variant for speaker in speakers.values()}
        for speakers in (synth.IEMOCAP_SPEAKERS, synth.ZED_SPEAKERS)
    )
    assert len(iemocap) == 10
    assert len(zed) >= 6
    assert not iemocap & zed


def test_folder_with_content_is_refused_in_one_line(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    command = [sys.executable, "-m", "ent_brain.synth", "zed", tmp_path, "--utterances", "6"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path}: exists and is not empty")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "precious.txt"]


@pytest.mark.parametrize(
    ("write", "utterances"), [(synth.write_iemocap, 19), (synth.write_zed, 2), (write_german, 53)]
)
def test_too_few_utterances_are_refused(tmp_path, write, utterances):
    with pytest.raises(InputError, match="too few"):
        write(tmp_path / "corpus", utterances, 1)
    assert not list(tmp_path.iterdir())


def test_a_seed_or_a_folder_that_cannot_be_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    for folder, seed, said in (
        ("corpus", "-1", "--seed: -1: give one from 0"),
        (
            "file/corpus",
            "1",
            f"{tmp_path}/file/corpus.partial: Not a directory. Restore it, or name another path.",
        ),
    ):
        with pytest.raises(SystemExit) as ended:
            synth.main(["zed", str(tmp_path / folder), "--utterances", "3", "--seed", seed])
        assert (ended.value.code, capsys.readouterr().err) == (1, f"error: {said}\n")


@pytest.mark.parametrize("write", [synth.write_iemocap, synth.write_zed])
def test_failure_leaves_nothing_and_a_killed_run_is_written_over(tmp_path, write, monkeypatch):
    (tmp_path / "corpus.partial").mkdir()
    (tmp_path / "corpus.partial" / "rest of a killed run").touch()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "espeakng_loader", None)
        with pytest.raises(InputError, match=r"pip install ent_brain\[demo\]"):
            write(tmp_path / "corpus", 20, 1)
    assert not list(tmp_path.iterdir())
    (tmp_path / "corpus").mkdir()
    write(tmp_path / "corpus", 20, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
    assert "rest of a killed run" not in {path.name for path in (tmp_path / "corpus").iterdir()}


def test_unknown_voice_is_named():
    with pytest.raises(InputError, match="en-nowhere"):
        speak("hello", "en-nowhere")
