import hashlib
import json
import logging
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ent_brain.emotions import PUBLISHED, EmotionSet
from ent_brain.errors import InputError
from ent_brain.tokens import normalize_transcript

LABELS = ["hap", "exc", "ang", "sad", "neu", "neu", "fru", "xxx"]
KEPT = {"hap": "happy", "exc": "happy", "ang": "angry", "sad": "sad", "neu": "neutral"}

HEADER = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
EVALUATORS = "C-E2:\tNeutral;\t()\nC-E3:\tNeutral; Anger;\t()\nA-E3:\tval 3; act 2; dom  2;\t()\n\n"


def write_dialog(session_folder, dialog):
    """Write a dialog in the release's layout; return {usable utterance id: label}."""
    evaluations, transcripts = [HEADER], ["M: Uh-huh.\n"]
    kept = {}
    start = 6.29
    for letter in "FM":
        for number, label in enumerate(LABELS):
            name = f"{dialog}_{letter}{number:03}"
            end = start + 0.5 * (1 + number)
            evaluations.append(f"[{start:.4f} - {end:.4f}]\t{name}\t{label}\t[2.5000, 2.5, 2.5]\n")
            evaluations.append(EVALUATORS)
            transcripts.append(f"{name} [{start:08.4f}-{end:08.4f}]: Well, number {number}.\n")
            wav = session_folder / "sentences" / "wav" / dialog / f"{name}.wav"
            wav.parent.mkdir(parents=True, exist_ok=True)
            # 0.5 s, 1.0 s, ... so that the length tells the utterances apart.
            soundfile.write(wav, np.zeros(8000 * (1 + number)), 16000)
            if label in KEPT:
                kept[name] = KEPT[label]
            start = end
        transcripts.append(f"{dialog}_{letter}XX001 [{start:08.4f}-{start + 1:08.4f}]: Hm.\n")
    evaluation = session_folder / "dialog" / "EmoEvaluation" / f"{dialog}.txt"
    evaluation.parent.mkdir(parents=True, exist_ok=True)
    evaluation.write_text("".join(evaluations))
    transcription = session_folder / "dialog" / "transcriptions" / f"{dialog}.txt"
    transcription.parent.mkdir(parents=True, exist_ok=True)
    # Windows line ends in some copies.
    transcription.write_text("".join(transcripts), newline="\r\n")
    # What real copies hold besides, and must be passed over.
    for part in (evaluation, transcription):
        part.with_name(f"._{part.name}").write_bytes(b"\x00\x05\x16\x07\xff\xfe" * 20)
    for opinion in ("Attribute", "Categorical", "Self-evaluation"):
        decoy = evaluation.parent / opinion / f"{dialog}_e1_cat.txt"
        decoy.parent.mkdir(exist_ok=True)
        decoy.write_text(f"{dialog}_F000 :Anger; ()\n")
    return kept


def write_corpus(release):
    kept = {}
    for k in range(1, 6):
        for dialog in (f"Ses0{k}F_impro01", f"Ses0{k}M_script01_1"):
            kept |= write_dialog(release / f"Session{k}", dialog)
    return kept


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The release's folder and its {usable utterance id: label}; tests must not change it."""
    release = tmp_path_factory.mktemp("corpora") / "IEMOCAP_full_release"
    return release, write_corpus(release)


@pytest.fixture
def own_release(corpus, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(corpus[0], tmp_path / "corpora" / corpus[0].name)


@pytest.fixture(scope="module")
def script(load_prepare):
    return load_prepare("IEMOCAP", "iemocap_prepare")


@pytest.fixture(scope="module")
def prepare(script):
    """``prepare_iemocap`` with the published labels, unless a test gives others."""

    def call(release, save, *args, emotions=PUBLISHED, label_map=KEPT, **kwargs):
        return script.prepare_iemocap(
            release, save, emotions, label_map, normalize_transcript, *args, **kwargs
        )

    return call


def read(paths):
    return {split: json.loads(path.read_text()) for split, path in paths.items()}


def refused(prepare, release, **arguments):
    save = release.parent / "save"
    with pytest.raises(InputError) as error:
        prepare(release, save, **arguments)
    assert not save.exists(), "nothing may be written when there is a problem"
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("test_session", [1, 2, 3, 4, 5])
def test_a_fold_keeps_its_test_session_apart(prepare, corpus, tmp_path, test_session):
    release, kept = corpus
    paths = prepare(release, tmp_path / "save", test_session, valid_share=0.25)
    assert list(paths) == ["train", "valid", "test"]
    train, valid, test = read(paths).values()

    assert set(test) == {name for name in kept if name.startswith(f"Ses0{test_session}")}
    speakers = {entry["speaker"] for entry in test.values()}
    assert speakers == {f"Ses0{test_session}F", f"Ses0{test_session}M"}
    for split in (train, valid):
        assert not speakers & {entry["speaker"] for entry in split.values()}
    assert not train.keys() & valid.keys()
    everything = train | valid | test
    assert {name: entry["emotion"] for name, entry in everything.items()} == kept

    # Of each speaker's 4 happy, 2 angry, 2 sad, 4 neutral utterances.
    groups = Counter((entry["speaker"], entry["emotion"]) for entry in valid.values())
    assert len(valid) == 24
    for (_, emotion), count in groups.items():
        assert count in ({1} if emotion in ("happy", "neutral") else {0, 1})


def test_an_entry_says_what_the_corpus_says(prepare, corpus, tmp_path):
    release, _ = corpus
    paths = prepare(release, tmp_path / "save", test_session=3)
    # The dialog's name says F, its speaker here is the man.
    assert read(paths)["test"]["Ses03F_impro01_M002"] == {
        "wav": "{data_root}/Session3/sentences/wav/Ses03F_impro01/Ses03F_impro01_M002.wav",
        "duration": 1.5,
        "transcript": "WELL NUMBER 2",
        "emotion": "angry",
        "speaker": "Ses03M",
    }


def test_all_sessions_without_a_test_session(prepare, corpus, tmp_path):
    release, kept = corpus
    paths = prepare(release, tmp_path / "save")
    assert list(paths) == ["train", "valid"]
    train, valid = read(paths).values()
    assert (train | valid).keys() == kept.keys()
    assert len(valid) == len(kept) // 10


def test_the_folder_above_the_release_is_accepted(prepare, corpus, tmp_path):
    release, _ = corpus
    paths = prepare(release.parent, tmp_path / "save", test_session=1)
    for entry in read(paths)["test"].values():
        assert entry["wav"].startswith("{data_root}/IEMOCAP_full_release/Session1/")
        assert Path(entry["wav"].format(data_root=release.parent)).is_file()


def test_long_utterances_are_left_out_of_training_only(prepare, corpus, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    release, _ = corpus
    whole = read(prepare(release, tmp_path / "whole", 5))
    short = read(prepare(release, tmp_path / "short", 5, max_train_seconds=2.5))
    assert (short["valid"], short["test"]) == (whole["valid"], whole["test"])
    expected = {name: e for name, e in whole["train"].items() if e["duration"] < 2.5}
    assert 0 < len(expected) < len(whole["train"])
    assert short["train"] == expected
    left_out = len(whole["train"]) - len(expected)
    assert f"{left_out} utterances of 2.5 s or more left out of train" in caplog.messages


def test_the_seed_chooses_what_is_held_out(prepare, corpus, tmp_path):
    release, _ = corpus
    chosen = [
        set(read(prepare(release, tmp_path / str(i), 2, seed=seed))["valid"])
        for i, seed in enumerate((42, 42, 43))
    ]
    assert chosen[0] == chosen[1] != chosen[2]


def test_a_changed_corpus_is_noticed(prepare, own_release, tmp_path, caplog):
    release = own_release
    save = tmp_path / "save"
    prepare(release, save, test_session=1)
    caplog.set_level(logging.INFO)
    prepare(release, save, test_session=1)
    assert caplog.messages[-1] == f"manifests in {save} are up to date"

    transcript = release / "Session1/dialog/transcriptions/Ses01F_impro01.txt"
    transcript.write_text(transcript.read_text().replace("number 0", "nothing"))
    caplog.clear()
    paths = prepare(release, save, test_session=1)
    assert caplog.messages[-1] == f"{save}/test.json: 24 utterances (2 changed)"
    assert read(paths)["test"]["Ses01F_impro01_F000"]["transcript"] == "WELL NOTHING"


def test_another_fold_in_the_same_folder_is_never_taken_for_this_one(prepare, corpus, tmp_path):
    release, _ = corpus
    prepare(release, tmp_path / "save", test_session=1)
    paths = prepare(release, tmp_path / "save", test_session=2)
    assert {entry["speaker"] for entry in read(paths)["test"].values()} == {"Ses02F", "Ses02M"}


def test_counts_stand_beside_the_full_release(prepare, corpus, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    release, _ = corpus
    prepare(release, tmp_path / "save", test_session=1)
    assert caplog.messages[0] == (
        "IEMOCAP's labels: happy from hap, exc; angry from ang; sad from sad; neutral from neu; "
        "left out: 20 fru, 20 xxx"
    )
    table = next(message for message in caplog.messages if message.startswith("IEMOCAP at"))
    assert table.splitlines() == [
        f"IEMOCAP at {release}",
        "                happy    angry      sad  neutral      all  full release",
        "Session1            8        4        4        8       24         1,085",
        "Session2            8        4        4        8       24         1,023",
        "Session3            8        4        4        8       24         1,151",
        "Session4            8        4        4        8       24         1,031",
        "Session5            8        4        4        8       24         1,241",
        "all                40       20       20       40      120         5,531",
        "full release    1,636    1,103    1,084    1,708                  5,531",
        "this is not the full release (utterances of hap, exc, ang, sad, neu): "
        "Session1 24 of 1,085, Session2 24 of 1,023, Session3 24 of 1,151, Session4 24 of 1,031, "
        "Session5 24 of 1,241, all 120 of 5,531, hap and exc 40 of 1,636, ang 20 of 1,103, "
        "sad 20 of 1,084, neu 40 of 1,708",
    ]


SIX = ("happy", "angry", "sad", "neutral", "frustrated", "excited")
SIX_MAP = {"exc": "excited", "hap": "happy", "ang": "angry", "sad": "sad", "neu": "neutral"} | {
    "fru": "frustrated",
    "xxx": None,
}


def test_six_classes_are_a_label_map(prepare, corpus, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    six = EmotionSet(SIX, "neutral")
    paths = prepare(corpus[0], tmp_path / "save", test_session=1, emotions=six, label_map=SIX_MAP)
    test = read(paths)["test"]
    # By the place of each label in LABELS, which write_dialog repeats for each speaker.
    assert {name: entry["emotion"] for name, entry in test.items()} == {
        f"{dialog}_{letter}{number:03}": SIX_MAP[label]
        for dialog in ("Ses01F_impro01", "Ses01M_script01_1")
        for letter in "FM"
        for number, label in enumerate(LABELS)
        if label != "xxx"
    }
    assert caplog.messages[0] == (
        "IEMOCAP's labels: happy from hap; angry from ang; sad from sad; neutral from neu; "
        "frustrated from fru; excited from exc; left out: 20 xxx"
    )
    table = caplog.messages[1].splitlines()
    assert table[1:3] + table[7:9] == [
        "                  happy      angry        sad    neutral frustrated    excited"
        "        all  full release",
        "Session1              4          4          4          8          4          4"
        "         28             -",
        "all                  20         20         20         40         20         20"
        "        140             -",
        "full release          -      1,103      1,084      1,708          -          -"
        "                        -",
    ]
    # By the corpus's labels, so as with the published map.
    assert "all 120 of 5,531, hap and exc 40 of 1,636, ang 20 of 1,103" in table[-1]


@pytest.mark.parametrize(
    ("label_map", "problem"),
    [
        (
            {"joy": "happy"},
            "label_map: IEMOCAP has no label 'joy', its labels are hap, exc, ang, sad, neu, fru, "
            "dis, fea, sur, oth, xxx: correct label_map",
        ),
        (
            {"hap": "Happy"},
            "label_map: hap becomes 'Happy', which is not one of happy, angry, sad, neutral: "
            "correct label_map",
        ),
        ({"hap": None}, "label_map: it leaves out every label of IEMOCAP: map some"),
        ("hap", "label_map: 'hap': give a mapping, as {exc: happy, sad: sad}"),
    ],
)
def test_an_impossible_label_map_is_refused(prepare, corpus, label_map, problem):
    assert refused(prepare, corpus[0], label_map=label_map) == problem


def test_an_emotion_that_no_label_becomes_is_named(prepare, corpus, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    prepare(corpus[0], tmp_path / "save", label_map={"hap": "happy", "neu": "neutral"})
    assert caplog.messages[0].startswith(
        "IEMOCAP's labels: happy from hap; angry from nothing; sad from nothing; neutral from neu; "
    )


def test_the_full_release_is_recognised(script, prepare, corpus, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    release, _ = corpus
    monkeypatch.setattr(script, "FULL_SESSIONS", (24,) * 5)
    counts = dict(zip(script.FULL_LABELS, (40, 20, 20, 40), strict=True))
    monkeypatch.setattr(script, "FULL_LABELS", counts)
    prepare(release, tmp_path / "save", test_session=1)
    table = next(message for message in caplog.messages if message.startswith("IEMOCAP at"))
    assert table.splitlines()[-1] == "this is the full release"


def test_the_published_counts_agree_with_each_other(script):
    assert sum(script.FULL_SESSIONS) == sum(script.FULL_LABELS.values()) == 5531


REMEDY = "correct {release}, nothing was written"


def spoil_session(release):
    (release / "Session1").rename(release / "Session9")
    return (
        "no folder {release}/Session1, the test session. Restore it, or set test_session to an "
        "existing one (Session2, Session3, Session4, Session5)."
    )


def spoil_folders(release):
    (release / "Session2/dialog/transcriptions").rename(release / "t")
    (release / "Session2/sentences/wav").rename(release / "w")
    return (
        "2 problems: no folder {release}/Session2/dialog/transcriptions; "
        "no folder {release}/Session2/sentences/wav: " + REMEDY
    )


def spoil_evaluation(release):
    path = release / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    path.write_text(HEADER + EVALUATORS)
    return f"{path}: no utterance line: " + REMEDY


def spoil_evaluations(release):
    folder = release / "Session1/dialog/EmoEvaluation"
    for path in folder.glob("Ses*.txt"):
        path.unlink()
    return f"no Ses*.txt in {folder}: " + REMEDY


def spoil_line(release):
    path = release / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    path.write_text(path.read_text() + "[6.2901 - 8.2357]\tSes02F_impro01_F000\tneu\t[2.5, 2.5, 2]")
    number = len(path.read_text().splitlines())
    return f"{path} line {number}: not an utterance of Session1: " + REMEDY


def spoil_bytes(release):
    path = release / "Session4/dialog/transcriptions/Ses04F_impro01.txt"
    path.write_bytes(b"M: Caf\xe9\n")
    return f"{path}: byte 6 is not UTF-8 text: restore the file"


def spoil_transcript(release):
    path = release / "Session5/dialog/transcriptions/Ses05M_script01_1.txt"
    path.write_text(path.read_text().replace("Ses05M_script01_1_F000 [", "F: ["))
    return "Ses05M_script01_1_F000: no transcript: " + REMEDY


def spoil_words(release):
    path = release / "Session5/dialog/transcriptions/Ses05M_script01_1.txt"
    text = path.read_text().replace("Well, number 0.", "...", 1)
    path.write_text(text)
    return "Ses05M_script01_1_F000: no word in the transcript ' ...': " + REMEDY


def spoil_wav(release):
    path = release / "Session5/sentences/wav/Ses05M_script01_1/Ses05M_script01_1_F000.wav"
    path.unlink()
    return f"Ses05M_script01_1_F000: no audio file {path}: " + REMEDY


def spoil_samples(release):
    path = release / "Session5/sentences/wav/Ses05M_script01_1/Ses05M_script01_1_F000.wav"
    soundfile.write(path, np.zeros(0), 16000)
    return f"Ses05M_script01_1_F000: no samples in {path}: " + REMEDY


def spoil_audio(release):
    path = release / "Session5/sentences/wav/Ses05M_script01_1/Ses05M_script01_1_F000.wav"
    path.write_bytes(path.read_bytes()[:20])
    return f"Ses05M_script01_1_F000: unreadable audio {path} ("


def spoil_id(release):
    path = release / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    path.write_text(path.read_text().replace("Ses01F_impro01_F001", "Ses01F_impro01_F000"))
    return "Ses01F_impro01_F000: 2 utterances of this id: " + REMEDY


@pytest.mark.parametrize(
    "spoil", [value for name, value in sorted(globals().items()) if name.startswith("spoil_")]
)
def test_a_spoilt_corpus_is_refused_in_one_line(prepare, own_release, spoil):
    expected = spoil(own_release).format(release=own_release)
    assert refused(prepare, own_release, test_session=1).startswith(expected)


def test_problems_of_all_kinds_are_reported_together(prepare, own_release):
    for spoil in (spoil_folders, spoil_evaluation, spoil_transcript):
        spoil(own_release)
    line = refused(prepare, own_release)
    assert line.startswith("4 problems: ")
    wavs = f"no folder {own_release}/Session2/sentences/wav"
    for part in ("no utterance line", wavs, "F000: no transcript"):
        assert part in line


def test_an_utterance_of_no_class_here_needs_neither_text_nor_audio(prepare, own_release, tmp_path):
    (own_release / "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F006.wav").unlink()
    paths = prepare(own_release, tmp_path / "save", test_session=1)
    assert len(read(paths)["test"]) == 24


def test_a_folder_without_the_release_is_refused(prepare, tmp_path):
    assert refused(prepare, tmp_path / "elsewhere") == (
        f"{tmp_path}/elsewhere: neither it nor IEMOCAP_full_release in it has folders Session1 "
        "to Session5. Set data_folder to IEMOCAP_full_release or to its parent folder."
    )


@pytest.mark.parametrize("test_session", [0, 6, "5"])
def test_an_impossible_session_is_refused(prepare, corpus, test_session):
    assert refused(prepare, corpus[0], test_session=test_session) == (
        f"test_session {test_session}: choose 1 to 5, or none for no test session"
    )


def test_an_impossible_share_is_refused(prepare, corpus):
    assert refused(prepare, corpus[0], valid_share=1.0).startswith("valid_share 1.0: ")


def test_a_limit_that_leaves_nothing_to_train_on_is_refused(prepare, corpus):
    assert refused(prepare, corpus[0], max_train_seconds=0.1).startswith("train: no utterance: ")


def test_zed_recipe_shares_the_script(load_prepare):
    shared = load_prepare("ZED", "iemocap_prepare")
    assert Path(shared.__file__).readlink() == Path("../IEMOCAP/iemocap_prepare.py")
    assert callable(shared.prepare_iemocap)


def convert(release, ending, **arguments):
    """Convert all recordings to another format, as people do to save disk space."""
    for wav in release.glob("Session*/sentences/wav/*/*.wav"):
        samples, rate = soundfile.read(wav)
        soundfile.write(wav.with_suffix(ending), samples, rate, **arguments)
        wav.unlink()


@pytest.mark.parametrize("ending", [".flac", ".WAV"])
def test_recordings_in_another_format_are_found(prepare, own_release, corpus, tmp_path, ending):
    convert(own_release, ending)
    found = read(prepare(own_release, tmp_path / "save", test_session=1))
    expected = read(prepare(corpus[0], tmp_path / "wav", test_session=1))
    for manifest in expected.values():
        for entry in manifest.values():
            entry["wav"] = entry["wav"].removesuffix(".wav") + ending
    assert found == expected


def test_wav_is_preferred(prepare, own_release, corpus, tmp_path):
    for wav in own_release.glob("Session1/sentences/wav/*/*.wav"):
        shutil.copy(wav, wav.with_suffix(".flac"))
    found = read(prepare(own_release, tmp_path / "save", test_session=1))
    assert found == read(prepare(corpus[0], tmp_path / "wav", test_session=1))


def test_a_format_that_cannot_be_read_is_named(prepare, own_release):
    path = own_release / "Session5/sentences/wav/Ses05M_script01_1/Ses05M_script01_1_F000.wav"
    path.rename(path.with_suffix(".zip"))
    assert refused(prepare, own_release, test_session=1) == (
        f"Ses05M_script01_1_F000: no audio file {path}, only Ses05M_script01_1_F000.zip: "
        f"correct {own_release}, nothing was written"
    )


def test_missing_sessions_are_named_and_training_goes_without(
    prepare, own_release, tmp_path, caplog
):
    for k in (2, 3, 4):
        shutil.rmtree(own_release / f"Session{k}")
    train, valid, test = read(prepare(own_release, tmp_path / "save", test_session=1)).values()
    assert {entry["speaker"] for entry in (train | valid).values()} == {"Ses05F", "Ses05M"}
    assert {entry["speaker"] for entry in test.values()} == {"Ses01F", "Ses01M"}
    assert caplog.record_tuples[0][1:] == (
        logging.WARNING,
        f"{own_release}: no Session2, Session3, Session4. Training continues without.",
    )


def test_one_session_trains_without_a_test_session(prepare, own_release, tmp_path):
    for k in (2, 3, 4, 5):
        shutil.rmtree(own_release / f"Session{k}")
    paths = prepare(own_release, tmp_path / "save")
    assert list(paths) == ["train", "valid"]
    assert sum(map(len, read(paths).values())) == 24
    assert refused(prepare, own_release, test_session=1) == (
        f"{own_release}: only has Session1, the test session, and no session to train on. Restore "
        "other sessions, or train without a test session (test_session: null)."
    )


def test_whole_dialogs_are_refused(prepare, own_release):
    folder = own_release / "Session1/sentences/wav/Ses01F_impro01"
    for wav in folder.glob("*.wav"):
        soundfile.write(wav, np.zeros(16000 * 40), 16000)
    line = refused(prepare, own_release, test_session=1)
    # Of 16 utterances of the dialog, 12 have one of the four classes.
    assert line.startswith(
        "12 problems: Ses01F_impro01_F000: 40.00 s of audio, 0.50 s in the evaluation; "
    )
    assert line.endswith("put one utterance, no whole dialog, into each file of sentences/wav")


@pytest.mark.parametrize(("seconds", "accepted"), [(1.4, True), (1.6, False)])
def test_small_differences_from_the_evaluation_are_counted(
    prepare, own_release, tmp_path, caplog, seconds, accepted
):
    name = "Ses05M_script01_1_F000"  # 0.5 s
    path = own_release / f"Session5/sentences/wav/Ses05M_script01_1/{name}.wav"
    soundfile.write(path, np.zeros(round(16000 * seconds)), 16000)
    if accepted:
        prepare(own_release, tmp_path / "save", test_session=1)
        assert caplog.messages[0] == (
            "1 of 120 recordings differ from the length in their evaluation by more than 0.1 s"
        )
    else:
        assert refused(prepare, own_release, test_session=1).startswith(
            f"{name}: 1.60 s of audio, 0.50 s in the evaluation: "
        )


def test_published_manifests_are_what_they_were(prepare, iemocap, tmp_path, caplog):
    """The reference predates the setting of labels; the corpus is the synthetic look-alike."""
    paths = prepare(iemocap, tmp_path, test_session=5, valid_share=0.1, seed=42)
    recorded = json.loads(Path(__file__).with_name("published.json").read_text())["IEMOCAP ent"]
    assert recorded["manifests"] == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in paths.values()
    }
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
