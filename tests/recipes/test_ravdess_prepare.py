import hashlib
import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ent_brain.emotions import PUBLISHED, EmotionSet
from ent_brain.errors import InputError
from ent_brain.tokens import normalize_transcript

# Lent beside the repository, never part of it.
REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "ravdess"

LABEL_MAP = {"neutral": "neutral", "calm": "neutral"} | {n: n for n in ("happy", "sad", "angry")}
EIGHT = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
KEPT = {"01": "neutral", "02": "neutral", "03": "happy", "04": "sad", "05": "angry"}


def write_recording(data_folder, name, actor=None):
    folder = data_folder / f"Actor_{actor or Path(name).stem[-2:]}"
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / name, np.zeros(16000), 16000)
    return folder / name


def write_corpus(data_folder, suffix="wav", actors=range(1, 25)):
    for actor in actors:
        for emotion in range(1, 9):
            statement = 1 + emotion % 2
            name = f"03-01-{emotion:02}-01-{statement:02}-01-{actor:02}.{suffix}"
            write_recording(data_folder, name)
    return data_folder


@pytest.fixture(scope="module")
def prepare_ravdess(load_prepare):
    """``prepare_ravdess`` with the published labels, unless a test gives others."""
    prepare = load_prepare("RAVDESS", "ravdess_prepare").prepare_ravdess

    def call(data_folder, save, emotions=PUBLISHED, label_map=LABEL_MAP, **kwargs):
        return prepare(data_folder, save, emotions, label_map, normalize_transcript, **kwargs)

    return call


def read(paths):
    return {split: json.loads(path.read_text()) for split, path in paths.items()}


def speakers(manifest):
    return {entry["speaker"] for entry in manifest.values()}


def actors(*numbers):
    return {f"Actor_{number:02}" for number in numbers}


def refused(prepare_ravdess, data_folder, **arguments):
    save = data_folder.parent / "save"
    with pytest.raises(InputError) as error:
        prepare_ravdess(data_folder, save, **arguments)
    assert not save.exists(), "nothing may be written when there is a problem"
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("suffix", ["wav", "flac", "WAV", "mp3"])
def test_no_voice_is_in_two_splits(prepare_ravdess, tmp_path, suffix):
    data_folder = write_corpus(tmp_path / "RAVDESS", suffix)
    train, valid, test = read(prepare_ravdess(data_folder, tmp_path / "save")).values()
    assert speakers(train) == actors(*range(1, 17))
    assert speakers(valid) == actors(17, 18)
    assert speakers(test) == actors(*range(19, 25))
    for name, entry in (train | valid | test).items():
        assert entry["emotion"] == KEPT[name[6:8]]
    assert len(train | valid | test) == 24 * len(KEPT)
    assert test["03-01-05-01-02-01-19"] == {
        "wav": "{data_root}/Actor_19/03-01-05-01-02-01-19." + suffix,
        "duration": 1.0,
        "transcript": "DOGS ARE SITTING BY THE DOOR",
        "emotion": "angry",
        "speaker": "Actor_19",
    }
    assert test["03-01-04-01-01-01-19"]["transcript"] == "KIDS ARE TALKING BY THE DOOR"


def test_calm_speech_can_be_left_out(prepare_ravdess, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    data_folder = write_corpus(tmp_path / "RAVDESS")
    label_map = LABEL_MAP | {"calm": None}
    manifests = read(prepare_ravdess(data_folder, tmp_path / "save", label_map=label_map))
    names = [name for manifest in manifests.values() for name in manifest]
    assert {name[6:8] for name in names} == {"01", "03", "04", "05"}
    assert caplog.messages[:2] == [
        "RAVDESS's labels: happy from happy; angry from angry; sad from sad; "
        "neutral from neutral; left out: 24 calm, 24 fearful, 24 disgust, 24 surprised",
        "train: 64 of the full release's 448 utterances (16 happy, 16 angry, 16 sad, 16 neutral)",
    ]


def test_eight_classes_are_a_label_map(prepare_ravdess, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    data_folder = write_corpus(tmp_path / "RAVDESS")
    manifests = read(
        prepare_ravdess(
            data_folder, tmp_path / "save", EmotionSet(EIGHT, "neutral"), {n: n for n in EIGHT}
        )
    )
    for manifest in manifests.values():
        for name, entry in manifest.items():
            assert entry["emotion"] == EIGHT[int(name[6:8]) - 1]
    assert [len(manifest) for manifest in manifests.values()] == [16 * 8, 2 * 8, 6 * 8]
    assert caplog.messages[0].endswith("surprised from surprised; left out: none")
    # 60 speech recordings of each actor in the full release: 4 neutral, 8 of each other emotion.
    assert caplog.messages[1].startswith("train: 128 of the full release's 960 utterances (16 neu")


def test_an_unknown_label_is_refused(prepare_ravdess, tmp_path):
    line = refused(prepare_ravdess, tmp_path / "RAVDESS", label_map={"06": "sad", "sad": "gloomy"})
    assert line == (
        "2 problems: label_map: RAVDESS has no label '06', its labels are neutral, calm, happy, "
        "sad, angry, fearful, disgust, surprised; label_map: sad becomes 'gloomy', which is not "
        "one of happy, angry, sad, neutral: correct label_map"
    )


def unpadded(data_folder, actor):
    return data_folder / f"Actor_{actor}"


def lower_case(data_folder, actor):
    return data_folder / f"actor_{actor:02}"


def deeper(data_folder, actor):
    return data_folder / "Audio_Speech_Actors_01-24" / f"Actor_{actor:02}"


def flat(data_folder, actor):
    return data_folder


def flat_and_deeper(data_folder, actor):
    return data_folder / "Audio_Speech_Actors_01-24"


@pytest.mark.parametrize("place", [unpadded, lower_case, deeper, flat, flat_and_deeper])
def test_other_layouts_give_the_same_utterances(prepare_ravdess, tmp_path, place):
    released = write_corpus(tmp_path / "released")
    expected = read(prepare_ravdess(released, tmp_path / "expected"))
    data_folder = tmp_path / "RAVDESS"
    for path in released.glob("Actor_*/*"):
        copied = place(data_folder, int(path.stem[-2:])) / path.name
        copied.parent.mkdir(parents=True, exist_ok=True)
        path.rename(copied)
    found = read(prepare_ravdess(data_folder, tmp_path / "found"))
    for split, manifest in expected.items():
        for name, entry in manifest.items():
            wav = place(data_folder, int(name[-2:])) / f"{name}.wav"
            entry["wav"] = "{data_root}/" + wav.relative_to(data_folder).as_posix()
        assert found[split] == manifest


def test_copies_beside_the_actors_folders_are_passed_over(prepare_ravdess, tmp_path):
    data_folder = write_corpus(tmp_path / "RAVDESS")
    write_corpus(data_folder / "audio_speech_actors_01-24")
    test = read(prepare_ravdess(data_folder, tmp_path / "save"))["test"]
    assert all(entry["wav"].startswith("{data_root}/Actor_") for entry in test.values())


def test_recordings_in_no_known_format_are_refused(prepare_ravdess, tmp_path):
    data_folder = write_corpus(tmp_path / "RAVDESS")
    for path in data_folder.glob("Actor_*/*"):
        path.rename(path.with_suffix(".zip"))
    assert refused(prepare_ravdess, data_folder) == (
        f"{data_folder}: no speech in it: set data_folder to the folder of "
        "Audio_Speech_Actors_01-24.zip, unpacked, or of its recordings, with their names, in "
        "any format of sound"
    )


def test_actors_can_be_chosen(prepare_ravdess, tmp_path):
    data_folder = write_corpus(tmp_path / "RAVDESS")
    manifests = read(
        prepare_ravdess(data_folder, tmp_path / "save", test_actors=[1], valid_actors=[2, 3])
    )
    assert speakers(manifests["test"]) == actors(1)
    assert speakers(manifests["valid"]) == actors(2, 3)
    assert speakers(manifests["train"]) == actors(*range(4, 25))


def test_songs_videos_and_stray_files_are_passed_over(prepare_ravdess, tmp_path):
    data_folder = write_corpus(tmp_path / "RAVDESS")
    write_recording(data_folder, "03-02-05-01-01-01-19.wav")
    write_recording(data_folder, "01-01-05-01-01-01-19.wav")
    (data_folder / "Actor_19" / "._03-01-05-01-01-02-19.wav").write_bytes(b"\x00\x05\x16\x07")
    (data_folder / "Actor_19" / "notes.txt").write_text("hello")
    test = read(prepare_ravdess(data_folder, tmp_path / "save"))["test"]
    assert len(test) == 6 * len(KEPT)


def test_a_smaller_copy_is_enough_for_training(prepare_ravdess, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    data_folder = write_corpus(tmp_path / "RAVDESS", actors=range(15, 25))
    train = read(prepare_ravdess(data_folder, tmp_path / "save"))["train"]
    assert speakers(train) == actors(15, 16)
    assert caplog.record_tuples[0][1:] == (
        logging.WARNING,
        f"{data_folder}: no recordings of "
        + ", ".join(f"Actor_{actor:02}" for actor in range(1, 15))
        + ". Training continues without.",
    )
    assert caplog.messages[2] == (
        "train: 10 of the full release's 576 utterances (2 happy, 2 angry, 2 sad, 4 neutral)"
    )


def test_missing_actors_and_audio_are_reported_together(prepare_ravdess, tmp_path):
    data_folder = write_corpus(tmp_path / "RAVDESS", actors=range(1, 23))
    empty = data_folder / "Actor_01" / "03-01-01-01-02-01-01.wav"
    soundfile.write(empty, np.zeros(0), 16000)
    assert refused(prepare_ravdess, data_folder) == (
        f"3 problems: {data_folder}: no recordings of Actor_23, whom test_actors names; "
        f"{data_folder}: no recordings of Actor_24, whom test_actors names; "
        f"03-01-01-01-02-01-01: no samples in {empty}: "
        f"correct {data_folder}, nothing was written"
    )


@pytest.mark.parametrize(
    ("name", "actor"),
    [
        ("03-01-05-01-01-01-20.wav", "19"),
        ("03-01-09-01-01-01-19.wav", "19"),
        ("03-01-05-01-03-01-19.wav", "19"),
        ("angry.flac", "19"),
    ],
)
def test_a_recording_named_otherwise_is_refused(prepare_ravdess, tmp_path, name, actor):
    data_folder = write_corpus(tmp_path / "RAVDESS")
    path = write_recording(data_folder, name, actor)
    assert refused(prepare_ravdess, data_folder) == (
        f"{path}: not named as a recording of Actor_{actor}: "
        f"correct {data_folder}, nothing was written"
    )


def test_a_recording_in_two_formats_is_refused(prepare_ravdess, tmp_path):
    data_folder = write_corpus(tmp_path / "RAVDESS")
    write_recording(data_folder, "03-01-05-01-02-01-19.flac")
    assert refused(prepare_ravdess, data_folder).startswith(
        "03-01-05-01-02-01-19: 2 utterances of this id: "
    )


def test_a_folder_without_actors_is_refused(prepare_ravdess, tmp_path):
    (tmp_path / "RAVDESS").mkdir()
    assert refused(prepare_ravdess, tmp_path / "RAVDESS") == (
        f"{tmp_path}/RAVDESS: no folders Actor_01 to Actor_24 in it: set data_folder to the folder "
        "of Audio_Speech_Actors_01-24.zip, unpacked, or of its recordings, with their names, in "
        "any format of sound"
    )


def test_impossible_actors_are_refused(prepare_ravdess, tmp_path):
    line = refused(prepare_ravdess, tmp_path / "RAVDESS", test_actors=[0, 7], valid_actors=[7, 8])
    assert line == (
        "2 problems: actor 0 is not one of 1 to 24; actor 7 is named 2 times: "
        "correct test_actors and valid_actors"
    )


def test_a_split_without_actors_is_refused(prepare_ravdess, tmp_path):
    data_folder = write_corpus(tmp_path / "RAVDESS")
    assert refused(prepare_ravdess, data_folder, valid_actors=[]).startswith("valid: no utterance")


@pytest.mark.skipif(not REAL.is_dir(), reason="no RAVDESS beside the repository")
def test_real_recordings(prepare_ravdess, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    manifests = read(prepare_ravdess(REAL, tmp_path / "save"))
    assert {split: len(manifest) for split, manifest in manifests.items()} == {
        "train": 576,
        "valid": 72,
        "test": 216,
    }
    entries = [entry for manifest in manifests.values() for entry in manifest.values()]
    assert Counter(entry["emotion"] for entry in entries) == {
        "neutral": 288,
        "happy": 192,
        "sad": 192,
        "angry": 192,
    }
    assert sum(entry["duration"] for entry in entries) / 60 == pytest.approx(53.6, abs=0.05)
    assert caplog.messages[0] == (
        "RAVDESS's labels: happy from happy; angry from angry; sad from sad; "
        "neutral from neutral, calm; left out: none"
    )
    assert len(caplog.messages) == 7, "16 kHz mono: nothing to say but counts and files"


@pytest.mark.skipif(not REAL.is_dir(), reason="no RAVDESS beside the repository")
def test_published_manifests_are_what_they_were(prepare_ravdess, tmp_path):
    """The reference predates the setting of labels."""
    paths = prepare_ravdess(REAL, tmp_path)
    recorded = Path(__file__).with_name("published.json").read_text()
    assert json.loads(recorded)["RAVDESS ent_fbank"]["manifests"] == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in paths.values()
    }
