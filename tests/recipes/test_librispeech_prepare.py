import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ent_brain.emotions import PUBLISHED
from ent_brain.errors import InputError
from ent_brain.tokens import normalize_transcript

# Lent beside the repository, never part of it.
REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "librispeech"

WOMEN, MEN = range(101, 111), range(201, 206)
TEST_SPEAKER, TEST_CHAPTER = 300, 7
UTTERANCES = 2

SPEAKERS = """; comment | with | bars
;ID  |SEX| SUBSET           |MINUTES| NAME
{rows}
60   | M | train-clean-100  | 20.18 | |CBW|Simon
"""


def write_chapter(part, speaker, chapter, suffix="flac"):
    folder = part / str(speaker) / str(chapter)
    folder.mkdir(parents=True)
    lines = []
    for number in range(UTTERANCES):
        name = f"{speaker}-{chapter}-{number:04}"
        soundfile.write(folder / f"{name}.{suffix}", np.zeros(8000), 16000)
        lines.append(f"{name} CHAPTER {chapter} DON'T\n")
    (folder / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
    return folder


def write_corpus(root, suffix="flac"):
    """Write a corpus with 15 training speakers, ten of them women, and one test speaker."""
    for speaker in (*WOMEN, *MEN):
        write_chapter(root / "train-clean-5", speaker, 1, suffix)
    write_chapter(root / "test-clean", TEST_SPEAKER, TEST_CHAPTER, suffix)
    rows = [f"{woman}  | F | train-clean-100  | 25.19 | Ann" for woman in WOMEN]
    rows += [f"{man}  | M | train-clean-100  | 25.19 | Bob" for man in MEN]
    (root / "SPEAKERS.TXT").write_text(SPEAKERS.format(rows="\n".join(rows)))
    return root


@pytest.fixture(scope="module")
def prepare(load_prepare):
    script = load_prepare("LibriSpeech", "librispeech_prepare")

    def call(data_folder, save_folder, **arguments):
        return script.prepare_librispeech(
            data_folder, save_folder, PUBLISHED, normalize_transcript, **arguments
        )

    return call


@pytest.fixture
def root(tmp_path):
    return write_corpus(tmp_path / "LibriSpeech")


def read(paths):
    return {split: json.loads(path.read_text()) for split, path in paths.items()}


def speakers(manifest):
    return {int(entry["speaker"]) for entry in manifest.values()}


def refused(prepare, data_folder, **arguments):
    save = data_folder.parent / "save"
    with pytest.raises(InputError) as error:
        prepare(data_folder, save, **arguments)
    assert not save.exists(), "nothing may be written when there is a problem"
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("suffix", ["flac", "wav", "ogg", "FLAC"])
def test_every_utterance_has_words_and_no_emotion(prepare, tmp_path, suffix):
    root = write_corpus(tmp_path / "LibriSpeech", suffix)
    paths = prepare(root, tmp_path / "save")
    assert {split: path.name for split, path in paths.items()} == {
        "train": "librispeech_train.json",
        "valid": "librispeech_valid.json",
        "test": "librispeech_test.json",
    }
    train, valid, test = read(paths).values()
    assert test["300-7-0001"] == {
        "wav": "{data_root}/test-clean/300/7/300-7-0001." + suffix,
        "duration": pytest.approx(0.5, abs=0.02),  # FFmpeg may end Vorbis a block early
        "transcript": "CHAPTER 7 DON'T",
        "emotion": None,
        "speaker": "300",
    }
    assert len(test) == UTTERANCES
    assert len(train | valid) == UTTERANCES * (len(WOMEN) + len(MEN))
    assert {entry["emotion"] for entry in (train | valid).values()} == {None}


def test_the_folder_above_librispeech_is_fine(prepare, root, tmp_path):
    test = read(prepare(tmp_path, tmp_path / "save"))["test"]
    assert test["300-7-0000"]["wav"] == "{data_root}/LibriSpeech/test-clean/300/7/300-7-0000.flac"


def test_a_share_of_the_speakers_of_each_sex_validates(prepare, root, tmp_path):
    chosen = set()
    for seed in range(5):
        manifests = read(prepare(root, tmp_path / "save", valid_speakers=0.4, seed=seed))
        valid = speakers(manifests["valid"])
        assert Counter(speaker in WOMEN for speaker in valid) == {True: 4, False: 2}
        assert speakers(manifests["train"]) == {*WOMEN, *MEN} - valid
        again = read(prepare(root, tmp_path / "again", valid_speakers=0.4, seed=seed))
        assert again == manifests
        chosen.add(frozenset(valid))
    assert len(chosen) > 1, "another seed must choose others"


def test_without_speakers_txt_sexes_do_not_count(prepare, root, tmp_path, caplog):
    (root / "SPEAKERS.TXT").unlink()
    with caplog.at_level(logging.INFO):
        manifests = read(prepare(root, tmp_path / "save", valid_speakers=0.4))
    assert len(speakers(manifests["valid"])) == 6
    assert "SPEAKERS.TXT: validation speakers are drawn without regard" in caplog.text


def test_validation_speakers_can_be_listed(prepare, root, tmp_path):
    manifests = read(prepare(root, tmp_path / "save", valid_speakers=[101, "205"]))
    assert speakers(manifests["valid"]) == {101, 205}
    assert speakers(manifests["train"]) == {*WOMEN, *MEN} - {101, 205}


def test_splits_that_nobody_asks_for_are_left_out(prepare, root, tmp_path):
    paths = prepare(root, tmp_path / "save", test_parts=[], valid_speakers=[])
    assert list(paths) == ["train"]
    assert speakers(read(paths)["train"]) == {*WOMEN, *MEN}


def test_validation_can_have_parts_of_its_own(prepare, root, tmp_path):
    write_chapter(root / "dev-clean", 400, 1)
    manifests = read(prepare(root, tmp_path / "save", valid_parts=["dev-clean"]))
    assert speakers(manifests["valid"]) == {400}
    assert speakers(manifests["train"]) == {*WOMEN, *MEN}


def test_flac_is_preferred_and_companions_and_links_are_no_trouble(prepare, root, tmp_path):
    folder = root / "test-clean" / "300" / "7"
    for suffix in ("ogg", "wav"):
        soundfile.write(folder / f"300-7-0000.{suffix}", np.zeros(8000), 16000)
    soundfile.write(folder / "300-7-0001.ogg", np.zeros(8000), 16000)
    (folder / "300-7-0001.flac").rename(folder / "300-7-0001.WAV")
    for name in ("._300-7-0000.flac", "._300-7.trans.txt", "._300-7-0009.flac"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    elsewhere = (root / "test-clean" / "300").rename(tmp_path / "300")
    (root / "test-clean" / "300").symlink_to(elsewhere, target_is_directory=True)
    test = read(prepare(root, tmp_path / "save"))["test"]
    assert [Path(entry["wav"]).name for entry in test.values()] == [
        "300-7-0000.flac",
        "300-7-0001.WAV",
    ]


def test_the_log_says_what_is_in_each_split(prepare, root, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        prepare(root, tmp_path / "save", valid_speakers=[101])
    lines = [record.message for record in caplog.records]
    assert "train-clean-5: 30 of the 1,519 utterances of the published part" in lines
    assert "test-clean: 2 of the 2,620 utterances of the published part" in lines
    assert "train: 0.00 h, 14 speakers, 28 utterances" in lines
    assert "valid: 0.00 h, 1 speakers, 2 utterances" in lines


def test_a_missing_part_names_those_that_are_there(prepare, root):
    (root / "alignments" / "300" / "7").mkdir(parents=True)
    assert refused(prepare, root, train_parts=["train-clean-100"]) == (
        f"{root}: no part train-clean-100, only test-clean, train-clean-5: name these, or download "
        "the others"
    )


def test_a_wrong_folder_says_which_is_right(prepare, root, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "the folder LibriSpeech" in refused(prepare, tmp_path / "empty")
    assert f"{tmp_path / 'none'}: no such folder" in refused(prepare, tmp_path / "none")
    message = refused(prepare, root / "test-clean")
    assert message.endswith(f"it looks like a part itself: set data_folder to {root}")


def test_transcripts_and_audio_must_match(prepare, root):
    part = root / "train-clean-5"
    for speaker in WOMEN[:3]:
        for audio in (part / str(speaker) / "1").glob("*.flac"):
            audio.unlink()
    (part / "205" / "1" / "205-1.trans.txt").unlink()
    assert refused(prepare, root) == (
        f"2 problems: {part}: transcripts without audio: 6 (101-1-0000, 101-1-0001, 102-1-0000, "
        f"102-1-0001, 103-1-0000, ...); {part}: audio files without transcript: 2 (205-1-0000, "
        f"205-1-0001): correct {root}, or unpack the part's archive again"
    )


@pytest.mark.parametrize(
    "line, problem",
    [
        ("300-7-0001", "line 2: no text after 300-7-0001"),
        ("300-7-0001\t", "line 2: no text after 300-7-0001"),
        ("301-7-0001 HI", "line 2: '301-7-0001' is no utterance of 300-7"),
        ("300-7-0000 HI", "line 2: 300-7-0000 is there twice"),
        ("300-7-0001 ...", "300-7-0001: no word in the transcript '...'"),
    ],
)
def test_a_bad_line_of_transcripts_is_named(prepare, root, line, problem):
    path = root / "test-clean" / "300" / "7" / "300-7.trans.txt"
    path.write_text(f"300-7-0000 HI\n{line}\n")
    assert problem in refused(prepare, root)


def test_transcripts_may_have_tabs_blank_lines_and_any_line_ends(prepare, root, tmp_path):
    path = root / "test-clean" / "300" / "7" / "300-7.trans.txt"
    path.write_bytes(b"\xef\xbb\xbf300-7-0000\tHI\r\n\r\n300-7-0001 YOU  THERE")
    test = read(prepare(root, tmp_path / "save"))["test"]
    assert [entry["transcript"] for entry in test.values()] == ["HI", "YOU THERE"]


def test_files_must_be_named_after_their_folders(prepare, root):
    folder = root / "test-clean" / "300" / "7"
    (folder / "300-7-0000.flac").rename(folder / "301-7-0000.flac")
    (folder / "300-7-0001.flac").rename(folder.parent / "300-7-0001.flac")
    message = refused(prepare, root)
    assert "files not named after their folders <speaker>/<chapter>: 2 (" in message
    assert str(folder / "301-7-0000.flac") in message
    assert str(folder.parent / "300-7-0001.flac") in message


def test_an_empty_part_is_refused(prepare, root):
    (root / "dev-clean").mkdir()
    problem = f"{root / 'dev-clean'}: no utterance in it"
    assert problem in refused(prepare, root, valid_parts=["dev-clean"])


def test_no_speaker_is_in_two_parts(prepare, root):
    for speaker in (101, 300):
        write_chapter(root / "train-clean-100", speaker, 9)
    message = refused(prepare, root, train_parts=["train-clean-5", "train-clean-100"])
    assert "speaker 101 in both train-clean-5 and train-clean-100" in message
    assert "speaker 300 in both train-clean-100 and test-clean" in message


@pytest.mark.parametrize(
    "arguments, problem",
    [
        ({"train_parts": "train-clean-5"}, "train_parts train-clean-5: give a list"),
        ({"train_parts": []}, "train_parts is empty"),
        ({"valid_parts": ["test-clean"]}, "part test-clean is named 2 times"),
        ({"valid_speakers": [101, 999]}, "speaker 999 is not in train_parts"),
        ({"valid_speakers": [*WOMEN, *MEN]}, "15 are for validation and 0 for training"),
        ({"valid_speakers": 0.01}, "of 15 speakers 0 are for validation"),
        ({"valid_speakers": 2}, "valid_speakers 2: give a share"),
        ({"valid_speakers": 1.0}, "valid_speakers 1.0: give a share"),
        ({"valid_speakers": "101"}, "valid_speakers '101': give a share"),
    ],
)
def test_impossible_arguments_are_refused(prepare, root, arguments, problem):
    assert problem in refused(prepare, root, **arguments)


def test_a_share_of_the_training_utterances_is_neutral(prepare, root, tmp_path):
    manifests = read(prepare(root, tmp_path / "save", neutral_share=0.5))
    labelled = Counter(
        (entry["speaker"], entry["emotion"]) for entry in manifests["train"].values()
    )
    assert labelled and all(count == UTTERANCES / 2 for count in labelled.values())
    assert {emotion for _, emotion in labelled} == {"neutral", None}
    for split in ("valid", "test"):
        assert {entry["emotion"] for entry in manifests[split].values()} == {None}


def test_audio_that_cannot_be_read_is_named(prepare, root):
    path = root / "test-clean" / "300" / "7" / "300-7-0001.flac"
    path.write_bytes(path.read_bytes()[:40])
    assert f"unreadable audio {path}" in refused(prepare, root)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no {REAL}")
def test_real_recordings_are_as_long_as_their_aligner_says(prepare, tmp_path):
    paths = prepare(
        REAL, tmp_path / "save", train_parts=["test-speakers"], test_parts=[], valid_speakers=[8226]
    )
    train, valid = read(paths).values()
    assert (speakers(train), speakers(valid)) == ({4088}, {8226})
    assert len(train | valid) == 236
    assert train["4088-158077-0000"]["transcript"].startswith("THE WAR MESSAGE CONCLUDED WITH")
    for name, entry in (train | valid).items():
        speaker, chapter, _ = name.split("-")
        grid = (REAL / "alignments" / speaker / chapter / f"{name}.TextGrid").read_text()
        end = float(grid.split("xmax = ")[1].split()[0])
        assert entry["duration"] == pytest.approx(end, abs=0.02)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no {REAL}")
def test_real_train_clean_5_has_its_published_counts(long_mode, prepare, tmp_path):
    train, valid = read(prepare(REAL, tmp_path / "save", test_parts=[])).values()
    assert len(train | valid) == 1519
    assert (len(speakers(train)), len(speakers(valid))) == (25, 3)
    assert not speakers(train) & speakers(valid)
    seconds = sum(entry["duration"] for entry in (train | valid).values())
    assert round(seconds / 3600, 2) == 5.31
