import json
import logging
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ent_brain.errors import InputError

LABELS = ["hap", "exc", "ang", "sad", "neu", "neu", "fru", "xxx"]
KEPT = {"hap": "happy", "exc": "happy", "ang": "angry", "sad": "sad", "neu": "neutral"}

HEADER = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
EVALUATORS = "C-E2:\tNeutral;\t()\nC-E3:\tNeutral; Anger;\t()\nA-E3:\tval 3; act 2; dom  2;\t()\n\n"


def write_dialog(session_folder, dialog):
    """One dialog in the release's layout; returns {kept utterance id: label}."""
    evaluations, transcripts = [HEADER], ["M: Uh-huh.\n"]
    kept = {}
    start = 6.29
    for letter in "FM":
        for number, label in enumerate(LABELS):
            name = f"{dialog}_{letter}{number:03}"
            end = start + 0.5
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
    """The release's folder and its {kept utterance id: label}, not to be changed."""
    release = tmp_path_factory.mktemp("corpora") / "IEMOCAP_full_release"
    return release, write_corpus(release)


@pytest.fixture
def own_release(corpus, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(corpus[0], tmp_path / "corpora" / corpus[0].name)


@pytest.fixture(scope="module")
def iemocap(load_prepare):
    return load_prepare("IEMOCAP", "iemocap_prepare")


def read(paths):
    return {split: json.loads(path.read_text()) for split, path in paths.items()}


def refused(iemocap, release, **arguments):
    save = release.parent / "save"
    with pytest.raises(InputError) as error:
        iemocap.prepare_iemocap(release, save, **arguments)
    assert not save.exists(), "nothing may be written when there is a problem"
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("test_session", [1, 2, 3, 4, 5])
def test_a_fold_keeps_its_test_session_apart(iemocap, corpus, tmp_path, test_session):
    release, kept = corpus
    paths = iemocap.prepare_iemocap(release, tmp_path / "save", test_session, valid_share=0.25)
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


def test_an_entry_says_what_the_corpus_says(iemocap, corpus, tmp_path):
    release, _ = corpus
    paths = iemocap.prepare_iemocap(release, tmp_path / "save", test_session=3)
    # The dialog's name says F, its speaker here is the man.
    assert read(paths)["test"]["Ses03F_impro01_M002"] == {
        "wav": "{data_root}/Session3/sentences/wav/Ses03F_impro01/Ses03F_impro01_M002.wav",
        "duration": 1.5,
        "transcript": "WELL NUMBER 2",
        "emotion": "angry",
        "speaker": "Ses03M",
    }


def test_all_sessions_without_a_test_session(iemocap, corpus, tmp_path):
    release, kept = corpus
    paths = iemocap.prepare_iemocap(release, tmp_path / "save")
    assert list(paths) == ["train", "valid"]
    train, valid = read(paths).values()
    assert (train | valid).keys() == kept.keys()
    assert len(valid) == len(kept) // 10


def test_the_folder_above_the_release_is_accepted(iemocap, corpus, tmp_path):
    release, _ = corpus
    paths = iemocap.prepare_iemocap(release.parent, tmp_path / "save", test_session=1)
    for entry in read(paths)["test"].values():
        assert entry["wav"].startswith("{data_root}/IEMOCAP_full_release/Session1/")
        assert Path(entry["wav"].format(data_root=release.parent)).is_file()


def test_long_utterances_are_left_out_of_training_only(iemocap, corpus, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    release, _ = corpus
    whole = read(iemocap.prepare_iemocap(release, tmp_path / "whole", 5))
    short = read(iemocap.prepare_iemocap(release, tmp_path / "short", 5, max_train_seconds=2.5))
    assert (short["valid"], short["test"]) == (whole["valid"], whole["test"])
    expected = {name: e for name, e in whole["train"].items() if e["duration"] < 2.5}
    assert 0 < len(expected) < len(whole["train"])
    assert short["train"] == expected
    left_out = len(whole["train"]) - len(expected)
    assert f"{left_out} utterances of 2.5 s or more left out of train" in caplog.messages


def test_the_seed_chooses_what_is_held_out(iemocap, corpus, tmp_path):
    release, _ = corpus
    chosen = [
        set(read(iemocap.prepare_iemocap(release, tmp_path / str(i), 2, seed=seed))["valid"])
        for i, seed in enumerate((42, 42, 43))
    ]
    assert chosen[0] == chosen[1] != chosen[2]


def test_a_changed_corpus_is_noticed(iemocap, own_release, tmp_path, caplog):
    release = own_release
    save = tmp_path / "save"
    iemocap.prepare_iemocap(release, save, test_session=1)
    caplog.set_level(logging.INFO)
    iemocap.prepare_iemocap(release, save, test_session=1)
    assert caplog.messages[-1] == f"manifests in {save} are up to date"

    transcript = release / "Session1/dialog/transcriptions/Ses01F_impro01.txt"
    transcript.write_text(transcript.read_text().replace("number 0", "nothing"))
    caplog.clear()
    paths = iemocap.prepare_iemocap(release, save, test_session=1)
    assert caplog.messages[-1] == f"{save}/test.json: 24 utterances (2 changed)"
    assert read(paths)["test"]["Ses01F_impro01_F000"]["transcript"] == "WELL NOTHING"


def test_another_fold_in_the_same_folder_is_never_taken_for_this_one(iemocap, corpus, tmp_path):
    release, _ = corpus
    iemocap.prepare_iemocap(release, tmp_path / "save", test_session=1)
    paths = iemocap.prepare_iemocap(release, tmp_path / "save", test_session=2)
    assert {entry["speaker"] for entry in read(paths)["test"].values()} == {"Ses02F", "Ses02M"}


def test_counts_stand_beside_the_full_release(iemocap, corpus, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    release, _ = corpus
    iemocap.prepare_iemocap(release, tmp_path / "save", test_session=1)
    assert "Session4: other labels, left out: 4 fru, 4 xxx" in caplog.messages
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
        "this is not the full release: Session1 has 24 of 1,085 utterances, "
        "Session2 has 24 of 1,023 utterances, Session3 has 24 of 1,151 utterances, "
        "Session4 has 24 of 1,031 utterances, Session5 has 24 of 1,241 utterances, "
        "all has 120 of 5,531 utterances, happy has 40 of 1,636 utterances, "
        "angry has 20 of 1,103 utterances, sad has 20 of 1,084 utterances, "
        "neutral has 40 of 1,708 utterances",
    ]


def test_the_full_release_is_recognised(iemocap, corpus, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    release, _ = corpus
    monkeypatch.setattr(iemocap, "FULL_SESSIONS", (24,) * 5)
    monkeypatch.setattr(iemocap, "FULL_EMOTIONS", (40, 20, 20, 40))
    iemocap.prepare_iemocap(release, tmp_path / "save", test_session=1)
    table = next(message for message in caplog.messages if message.startswith("IEMOCAP at"))
    assert table.splitlines()[-1] == "this is the full release"


def test_the_published_counts_agree_with_each_other(iemocap):
    assert sum(iemocap.FULL_SESSIONS) == sum(iemocap.FULL_EMOTIONS) == 5531


REMEDY = "correct {release}, nothing was written"


def spoil_session(release):
    (release / "Session3").rename(release / "Session9")
    return "no folder {release}/Session3: " + REMEDY


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
def test_a_spoilt_corpus_is_refused_in_one_line(iemocap, own_release, spoil):
    expected = spoil(own_release).format(release=own_release)
    assert refused(iemocap, own_release, test_session=1).startswith(expected)


def test_problems_of_all_kinds_are_reported_together(iemocap, own_release):
    for spoil in (spoil_session, spoil_evaluation, spoil_transcript):
        spoil(own_release)
    line = refused(iemocap, own_release)
    assert line.startswith("3 problems: ")
    for part in ("no utterance line", f"no folder {own_release}/Session3", "F000: no transcript"):
        assert part in line


def test_an_utterance_of_no_class_here_needs_neither_text_nor_audio(iemocap, own_release, tmp_path):
    (own_release / "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F006.wav").unlink()
    paths = iemocap.prepare_iemocap(own_release, tmp_path / "save", test_session=1)
    assert len(read(paths)["test"]) == 24


def test_a_folder_without_the_release_is_refused(iemocap, tmp_path):
    assert refused(iemocap, tmp_path / "elsewhere") == (
        f"{tmp_path}/elsewhere: neither it nor IEMOCAP_full_release in it has folders Session1 "
        "to Session5: set data_folder to IEMOCAP_full_release or to the folder it lies in"
    )


@pytest.mark.parametrize("test_session", [0, 6, "5"])
def test_an_impossible_session_is_refused(iemocap, corpus, test_session):
    assert refused(iemocap, corpus[0], test_session=test_session) == (
        f"test_session {test_session}: choose 1 to 5, or none for no test session"
    )


def test_an_impossible_share_is_refused(iemocap, corpus):
    assert refused(iemocap, corpus[0], valid_share=1.0).startswith("valid_share 1.0: ")


def test_a_limit_that_leaves_nothing_to_train_on_is_refused(iemocap, corpus):
    assert refused(iemocap, corpus[0], max_train_seconds=0.1).startswith("train: no utterance: ")


def test_zed_recipe_shares_the_script(load_prepare):
    shared = load_prepare("ZED", "iemocap_prepare")
    assert Path(shared.__file__).readlink() == Path("../IEMOCAP/iemocap_prepare.py")
    assert callable(shared.prepare_iemocap)
