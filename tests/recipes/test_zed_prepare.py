import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ent_brain.emotions import PUBLISHED, EmotionSet
from ent_brain.errors import InputError
from ent_brain.tokens import normalize_transcript

LABEL_MAP = {"happy": "happy", "angry": "angry", "sad": "sad"}
REMEDY = "correct {zed}, nothing was written"


def entry(wav="datafolder/wav/a.wav", emotion="happy", start=0.5, end=1.5, **changes):
    interval = {"emo": emotion, "start": start, "end": end}
    whole = {"wav": wav, "duration": 2.0, "emotion": [interval], "transcription": "Oh, great!"}
    return whole | changes


def write_zed(folder, entries):
    (folder / "wav").mkdir(parents=True)
    soundfile.write(folder / "wav" / "a.wav", np.zeros(32000), 16000)
    (folder / "ZED.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture(scope="module")
def prepare_zed(load_prepare):
    """``prepare_zed`` with the published labels, unless a test gives others."""
    prepare = load_prepare("ZED", "zed_prepare").prepare_zed

    def call(zed, save, emotions=PUBLISHED, label_map=LABEL_MAP):
        return prepare(zed, save, emotions, label_map, normalize_transcript)

    return call


def refused(prepare_zed, zed, *args, **kwargs):
    save = zed.parent / "save"
    with pytest.raises(InputError) as error:
        prepare_zed(zed, save, *args, **kwargs)
    assert not save.exists(), "nothing may be written when there is a problem"
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_manifest_says_when_the_emotion_is(prepare_zed, tmp_path):
    zed = write_zed(tmp_path / "ZED", {"u1": entry(), "spk07_2": entry(emotion="sad", start=0)})
    paths = prepare_zed(zed, tmp_path / "save")
    assert paths == {"zed": tmp_path / "save" / "zed.json"}
    assert json.loads(paths["zed"].read_text()) == {
        "u1": {
            "wav": "{data_root}/wav/a.wav",
            "duration": 2.0,
            "transcript": "OH GREAT",
            "emotion": "happy",
            "speaker": "unknown",
            "segments": [{"start": 0.5, "end": 1.5, "emotion": "happy"}],
        },
        "spk07_2": {
            "wav": "{data_root}/wav/a.wav",
            "duration": 2.0,
            "transcript": "OH GREAT",
            "emotion": "sad",
            "speaker": "spk07",
            "segments": [{"start": 0, "end": 1.5, "emotion": "sad"}],
        },
    }


def test_the_duration_is_the_audio_s(prepare_zed, tmp_path):
    zed = write_zed(tmp_path / "ZED", {"u1": entry(duration=2.03, end=2.03)})
    written = json.loads(prepare_zed(zed, tmp_path / "save")["zed"].read_text())["u1"]
    assert written["duration"] == written["segments"][0]["end"] == 2.0


def test_counts_stand_beside_the_full_release(prepare_zed, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    zed = write_zed(tmp_path / "ZED", {"u1": entry(), "spk07_2": entry(emotion="sad")})
    prepare_zed(zed, tmp_path / "save")
    assert caplog.messages[0] == (
        "ZED's labels: happy from happy; angry from angry; sad from sad; neutral from the rest; "
        "left out: none"
    )
    assert caplog.messages[1] == (
        "ZED: 2 utterances (1 happy, 0 angry, 1 sad, 0 neutral), the full release has 180; "
        "1 speakers named, it has 73"
    )
    prepare_zed(zed, tmp_path / "save")
    assert caplog.messages[-1] == f"manifests in {tmp_path}/save are up to date"


def without(*keys):
    return {key: value for key, value in entry().items() if key not in keys}


@pytest.mark.parametrize(
    ("spoilt", "problem"),
    [
        (without("wav"), "no wav in ZED.json"),
        (without("duration"), "no duration in ZED.json"),
        (without("emotion", "transcription"), "no emotion and no transcription in ZED.json"),
        (entry(emotion="glad"), "unknown emotion 'glad', not one of happy, angry, sad"),
        (entry(emotion=["sad"]), "unknown emotion ['sad'], not one of happy, angry, sad"),
        (entry() | {"emotion": []}, "emotion is not a list of one interval"),
        (
            entry() | {"emotion": entry()["emotion"] * 2},
            "emotion is not a list of one interval",
        ),
        (entry() | {"emotion": "sad"}, "emotion is not a list of one interval"),
        (entry() | {"emotion": [{"emo": "sad"}]}, "no start and no end in the interval"),
        (entry(start="0"), "interval from '0' to 1.5 is not in seconds"),
        (entry(end=float("nan")), "interval from 0.5 to nan is not in seconds"),
        (entry(end=True), "interval from 0.5 to True is not in seconds"),
        (entry(duration="2 s"), "duration '2 s' is not in seconds"),
        (entry(duration=0), "duration 0 is not in seconds"),
        (entry(duration=2.2), "2.00 s of audio, but the corpus states 2.20 s"),
        (entry(transcription=None), "transcription None is no text"),
        (entry(transcription="..."), "no word in the transcript '...'"),
        (entry(wav="wav/a.wav"), "wav 'wav/a.wav' is not a path inside datafolder/"),
        (entry(wav="datafolder"), "wav 'datafolder' is not a path inside datafolder/"),
        (entry(wav=3), "wav 3 is not a path inside datafolder/"),
        (entry(wav="/wav/a.wav"), "wav '/wav/a.wav' is not a path inside datafolder/"),
        (
            entry(wav="datafolder/wav/../../a.wav"),
            "wav 'datafolder/wav/../../a.wav' is not a path inside datafolder/",
        ),
    ],
)
def test_what_an_entry_may_not_say(prepare_zed, tmp_path, spoilt, problem):
    zed = write_zed(tmp_path / "ZED", {"good": entry(), "bad": spoilt})
    assert refused(prepare_zed, zed) == f"bad: {problem}: {REMEDY}".format(zed=zed)


@pytest.mark.parametrize(("start", "end"), [(1.5, 0.5), (1.0, 1.0), (-0.5, 1.0), (0.5, 3.0)])
def test_an_interval_lies_inside_the_audio(prepare_zed, tmp_path, start, end):
    zed = write_zed(tmp_path / "ZED", {"bad": entry(start=start, end=end)})
    line = refused(prepare_zed, zed)
    assert line.startswith(f"bad: segment {start:.2f}-{end:.2f} happy must lie between ")


def test_problems_are_reported_together(prepare_zed, tmp_path):
    entries = {"u1": without("wav"), "u2": entry(emotion="glad"), "u3": entry(duration=9)}
    line = refused(prepare_zed, write_zed(tmp_path / "ZED", entries))
    assert line.startswith("3 problems: u1: no wav in ZED.json; u2: unknown emotion 'glad'")
    assert "u3: 2.00 s of audio, but the corpus states 9.00 s" in line


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "No such file or directory"),
        ("[]", "not a JSON object of utterances by id"),
        ("{", "not JSON (Expecting property name enclosed in double quotes: line 1 column 2"),
        ('{"a": {}, "a": {}}', "a is there more than once"),
    ],
)
def test_a_file_that_is_not_zed_s(prepare_zed, tmp_path, content, problem):
    zed = tmp_path / "ZED"
    if content is not None:
        zed.mkdir()
        (zed / "ZED.json").write_text(content)
    line = refused(prepare_zed, zed)
    assert line.startswith(f"{zed}/ZED.json: {problem}")
    assert line.endswith(": set zed_folder to the folder that ZED.json lies in, unchanged")


def test_other_label_sets_are_a_label_map(prepare_zed, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    entries = {"u1": entry(), "u2": entry(emotion="sad"), "u3": entry(emotion="angry")}
    zed = write_zed(tmp_path / "ZED", entries)
    emotions = EmotionSet(["calm", "upset"], "calm")
    label_map = {"happy": None, "angry": "upset", "sad": "upset"}
    manifest = json.loads(
        prepare_zed(zed, tmp_path / "save", emotions, label_map)["zed"].read_text()
    )
    interval = {"start": 0.5, "end": 1.5, "emotion": "upset"}
    assert {name: (e["emotion"], e["segments"]) for name, e in manifest.items()} == {
        "u2": ("upset", [interval]),
        "u3": ("upset", [interval]),
    }
    assert caplog.messages[0] == (
        "ZED's labels: calm from the rest; upset from angry, sad; left out: 1 happy"
    )


def test_impossible_labels_are_refused(prepare_zed, tmp_path):
    zed = write_zed(tmp_path / "ZED", {"u1": entry()})
    assert refused(prepare_zed, zed, label_map={"neutral": "neutral"}) == (
        "label_map: ZED has no label 'neutral', its labels are happy, angry, sad: correct label_map"
    )
    line = refused(prepare_zed, zed, EmotionSet(["happy", "sad"]), {"sad": "sad"})
    assert line.startswith("ZED needs a neutral label, but emotions (happy, sad) have none")


@pytest.mark.parametrize("name", ["a.WAV", "A.wav", "a.flac"])
def test_recordings_with_another_case_or_format_are_found(prepare_zed, tmp_path, name):
    zed = write_zed(tmp_path / "ZED", {"u1": entry()})
    (zed / "wav" / "a.wav").unlink()
    soundfile.write(zed / "wav" / name, np.zeros(32000), 16000)
    manifest = json.loads(prepare_zed(zed, tmp_path / "save")["zed"].read_text())
    assert manifest["u1"]["wav"] == "{data_root}/wav/" + name


def test_missing_recordings_are_counted(prepare_zed, tmp_path):
    entries = {f"u{i:03}": entry(wav=f"datafolder/wav/{i}.wav") for i in range(180)}
    zed = write_zed(tmp_path / "ZED", entries | {"there": entry()})
    (zed / "wav" / "7.zip").touch()
    paths = [f"{zed}/wav/{i}.wav" for i in range(5)]
    assert refused(prepare_zed, zed) == (
        f"2 problems: u007: no audio file {zed}/wav/7.wav, only 7.zip; "
        f"179 of 181 recordings missing: {', '.join(paths)} and 174 more: "
        f"correct {zed}, nothing was written"
    )


def test_the_published_manifest_is_what_it_was(prepare_zed, zed, tmp_path):
    """The reference predates the setting of labels; the corpus is the synthetic look-alike."""
    path = prepare_zed(zed, tmp_path)["zed"]
    recorded = json.loads(Path(__file__).with_name("published.json").read_text())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    assert digest == recorded["ZED ent_demo"]["manifests"]["zed.json"]
