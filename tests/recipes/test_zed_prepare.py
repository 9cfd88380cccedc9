import json
import logging

import numpy as np
import pytest
import soundfile

from ent_brain.errors import InputError

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
    return load_prepare("ZED", "zed_prepare").prepare_zed


def refused(prepare_zed, zed):
    save = zed.parent / "save"
    with pytest.raises(InputError) as error:
        prepare_zed(zed, save)
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
        (entry(emotion="glad"), "unknown emotion 'glad', not one of happy, angry, sad, neutral"),
        (entry(emotion=["sad"]), "unknown emotion ['sad'], not one of happy, angry, sad, neutral"),
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
        (entry(duration=2.2), "2.00 s of audio, 2.20 s by the corpus's own account"),
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
        (entry(wav="datafolder/b.wav"), "no audio file {zed}/b.wav"),
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
    assert "u3: 2.00 s of audio, 9.00 s by the corpus's own account" in line


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
