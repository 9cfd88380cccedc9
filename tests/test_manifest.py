import json
import logging
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ent_brain.emotions import PUBLISHED, EmotionSet
from ent_brain.errors import InputError
from ent_brain.manifest import (
    Interval,
    Utterance,
    check_intervals,
    check_utterances,
    hold_out,
    read_manifest,
    save_manifests,
)
from ent_brain.segments import Segment


def write_audio(path, seconds=1.0, rate=16000, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros((round(seconds * rate), channels)), rate)
    return path


def draft(root, name="a", **changes):
    return replace(Utterance(name, root / f"{name}.wav", "Oh, yes.", "sad", "Ann"), **changes)


def checked_one(root, name="a", **changes):
    write_audio(root / f"{name}.wav")
    return check_utterances([draft(root, name, **changes)], root)[0]


def test_checking_completes_an_utterance(tmp_path):
    utterance = checked_one(tmp_path)
    assert utterance.transcript == "OH YES"
    assert (utterance.samples, utterance.sample_rate, utterance.duration) == (16000, 16000, 1.0)
    assert utterance.segments is None


def test_segments_are_the_emotional_ones_and_end_with_the_audio(tmp_path):
    given = (Segment(0.0, 0.25, "neutral"), Segment(0.25, 1.02, "sad"))
    assert checked_one(tmp_path, segments=given).segments == (Segment(0.25, 1.0, "sad"),)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"transcript": None, "emotion": None}, "a: neither transcript nor emotion"),
        ({"start": -0.1}, "a: from -0.10 to 1.00 s: it must start at 0 or later"),
        ({"start": 1.0}, "a: from 1.00 to 1.00 s: it must start at 0 or later and stop after"),
        ({"start": 0.5, "samples": 12000}, "a: from 0.50 to 1.25 s of a file of 1.00 s"),
        ({"transcript": "--?"}, "a: no word in the transcript '--?'"),
        ({"emotion": "calm"}, "a: unknown emotion 'calm', not one of happy, angry, sad, neutral"),
        (
            {"segments": (Segment(0, 1, "glad"),)},
            "a: unknown emotion 'glad', not one of happy, angry, sad, neutral",
        ),
        ({"segments": (Segment(0.5, 1.5, "sad"),)}, "a: segment 0.50-1.50 sad must lie between"),
        ({"segments": (Segment(0.5, 0.5, "sad"),)}, "a: segment 0.50-0.50 sad must lie between"),
        ({"segments": (Segment(-0.1, 0.5, "sad"),)}, "a: segment -0.10-0.50 sad must lie between"),
        ({"segments": (Segment(float("nan"), 0.5, "sad"),)}, "a: segment nan-0.50 sad must lie"),
        ({"samples": 17601}, "a: 1.00 s of audio, but the corpus states 1.10 s"),
    ],
)
def test_what_an_utterance_may_not_say(tmp_path, changes, problem):
    with pytest.raises(InputError) as error:
        checked_one(tmp_path, **changes)
    line = str(error.value)
    assert line.startswith(problem)
    assert line.endswith(f": correct {tmp_path}, nothing was written")
    assert "\n" not in line


def test_a_duration_may_be_rounded(tmp_path):
    assert checked_one(tmp_path, samples=17599).duration == 1.0


def test_all_problems_are_reported_together(tmp_path):
    write_audio(tmp_path / "good.wav")
    write_audio(tmp_path / "empty.wav", seconds=0)
    (tmp_path / "noise.wav").write_bytes(b"no audio at all")
    drafts = [draft(tmp_path, name) for name in ("good", "gone", "empty", "noise", "good")]
    with pytest.raises(InputError) as error:
        check_utterances(drafts, tmp_path, ["no folder x"])
    assert str(error.value) == (
        "5 problems: no folder x; good: 2 utterances of this id; "
        f"gone: no audio file {tmp_path}/gone.wav; "
        f"empty: no samples in {tmp_path}/empty.wav; "
        f"noise: unreadable audio {tmp_path}/noise.wav (Format not recognised): "
        f"correct {tmp_path}, nothing was written"
    )


def test_other_rates_and_channels_are_mentioned_once(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for name, rate, channels in (("a", 48000, 2), ("b", 44100, 1), ("c", 16000, 1)):
        write_audio(tmp_path / f"{name}.wav", rate=rate, channels=channels)
    utterances = check_utterances([draft(tmp_path, name) for name in "abc"], tmp_path)
    assert [utterance.duration for utterance in utterances] == [1.0, 1.0, 1.0]
    assert caplog.messages == [
        "2 of 3 files are not at 16000 Hz and will be resampled when they are read",
        "1 of 3 files are not mono and will be mixed down when they are read",
    ]


def test_a_manifest_is_as_speechbrain_reads_it(tmp_path):
    corpus = tmp_path / "corpus"
    write_audio(corpus / "deep" / "b.wav", seconds=2)
    sad = (Segment(0.5, 1.5, "sad"),)
    drafts = [draft(corpus, "b", wav=corpus / "deep" / "b.wav", segments=sad)]
    utterances = check_utterances(drafts, corpus)
    paths = save_manifests(tmp_path / "new" / "save", {"zed": utterances}, corpus)
    assert paths == {"zed": tmp_path / "new" / "save" / "zed.json"}
    assert read_manifest(paths["zed"]) == {
        "b": {
            "wav": "{data_root}/deep/b.wav",
            "duration": 2.0,
            "transcript": "OH YES",
            "emotion": "sad",
            "speaker": "Ann",
            "segments": [{"start": 0.5, "end": 1.5, "emotion": "sad"}],
        }
    }
    from speechbrain.dataio.dataset import DynamicItemDataset

    dataset = DynamicItemDataset.from_json(paths["zed"], replacements={"data_root": str(corpus)})
    dataset.set_output_keys(["wav"])
    assert dataset[0]["wav"] == str(corpus / "deep" / "b.wav")


def test_files_do_not_depend_on_the_order_of_the_utterances(tmp_path):
    utterances = [checked_one(tmp_path, name) for name in "abc"]
    forward = save_manifests(tmp_path / "1", {"train": utterances}, tmp_path)["train"]
    backward = save_manifests(tmp_path / "2", {"train": utterances[::-1]}, tmp_path)["train"]
    assert forward.read_bytes() == backward.read_bytes()


def test_saving_says_what_changed_and_leaves_the_rest_alone(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    save = tmp_path / "save"
    a, b, c = (checked_one(tmp_path, name) for name in "abc")
    paths = save_manifests(save, {"train": [a, b], "valid": [c]}, tmp_path)
    assert caplog.messages == [
        f"{save}/train.json: 2 utterances (2 added)",
        f"{save}/valid.json: 1 utterances (1 added)",
    ]
    before = {split: path.stat().st_ino for split, path in paths.items()}

    caplog.clear()
    save_manifests(save, {"train": [b, a], "valid": [c]}, tmp_path)
    assert caplog.messages == [f"manifests in {save} are up to date"]
    assert {split: path.stat().st_ino for split, path in paths.items()} == before

    caplog.clear()
    changed = [replace(a, transcript="NO"), replace(b, id="d")]
    save_manifests(save, {"train": changed, "valid": [c]}, tmp_path)
    assert caplog.messages == [
        f"{save}/train.json: 2 utterances (1 added, 1 removed, 1 changed)",
    ]
    assert read_manifest(paths["train"])["a"]["transcript"] == "NO"
    assert paths["valid"].stat().st_ino == before["valid"]
    assert sorted(path.name for path in save.iterdir()) == ["train.json", "valid.json"]


@pytest.mark.parametrize("content", ["", "[1]", "3", '{"a": '])
def test_a_damaged_manifest_is_written_again(tmp_path, content):
    (tmp_path / "train.json").write_text(content)
    paths = save_manifests(tmp_path, {"train": [checked_one(tmp_path)]}, tmp_path)
    assert list(read_manifest(paths["train"])) == ["a"]


def test_an_empty_split_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError) as error:
        save_manifests(tmp_path / "save", {"train": [draft(tmp_path)], "valid": []}, tmp_path)
    assert str(error.value) == (
        "valid: no utterance: choose splits that have some each, nothing was written"
    )
    assert not (tmp_path / "save").exists()


def test_manifests_of_two_preparations_are_never_mixed(tmp_path, monkeypatch):
    a, b = (checked_one(tmp_path, name) for name in "ab")
    paths = save_manifests(tmp_path / "save", {"train": [a], "valid": [b]}, tmp_path)
    before = {split: path.read_bytes() for split, path in paths.items()}
    write_text = Path.write_text

    def full_disk(path, *args, **kwargs):
        if "valid" in path.name:
            raise OSError(28, "No space left on device")
        return write_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_manifests(tmp_path / "save", {"train": [b], "valid": [a]}, tmp_path)
    assert {split: path.read_bytes() for split, path in paths.items()} == before


def many_utterances():
    sizes = {("Ann", "sad"): 37, ("Ann", "happy"): 5, ("Bob", "sad"): 12, ("Bob", "angry"): 1}
    return [
        Utterance(f"{speaker}-{emotion}-{i}", Path("x.wav"), "HI", emotion, speaker)
        for (speaker, emotion), size in sizes.items()
        for i in range(size)
    ]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.25, 0.5, 0.9])
def test_every_speaker_and_emotion_gives_its_share(share):
    utterances = many_utterances()
    train, valid = hold_out(utterances, share, seed=42)
    assert sorted(u.id for u in train + valid) == sorted(u.id for u in utterances)
    assert len(valid) == pytest.approx(share * len(utterances), abs=0.5)
    of_group = Counter((u.speaker, u.emotion) for u in utterances)
    held_out = Counter((u.speaker, u.emotion) for u in valid)
    for group, size in of_group.items():
        assert abs(held_out[group] - share * size) < 1


def test_what_is_held_out_depends_on_the_seed_alone():
    utterances = many_utterances()
    shuffled = random.Random(0).sample(utterances, len(utterances))
    assert hold_out(utterances, 0.2, seed=1) == hold_out(shuffled, 0.2, seed=1)
    assert hold_out(utterances, 0.2, seed=1) != hold_out(utterances, 0.2, seed=2)


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(InputError) as error:
        hold_out(many_utterances(), share, seed=1)
    assert str(error.value) == f"valid_share {share}: choose a share above 0 and below 1"


# --- intervals


def test_entries_without_segments_need_no_neutral_label(tmp_path):
    path, emotions = tmp_path / "a.json", EmotionSet(("sad", "glad"))
    entry = {"wav": "{data_root}/a.wav", "duration": 1.0, "transcript": "OH", "emotion": "sad"}
    entry["speaker"] = "Ann"
    path.write_text(json.dumps({"a": entry}))
    assert read_manifest(path, emotions) == {"a": entry}
    entry["segments"] = [{"start": 0.5, "end": 1.0, "emotion": "sad"}]
    path.write_text(json.dumps({"a": entry}))
    with pytest.raises(InputError, match="a: the time from 0.00 to 0.50 s, in no segment, needs a"):
        read_manifest(path, emotions)


GOOD = [Interval(0, 9, "neutral", "OH"), Interval(9, 20, "sad", "NO NO")]


def test_intervals_that_fit_are_accepted():
    check_intervals(GOOD, 20, "OH NO NO", PUBLISHED)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"start": 8}, "it must begin at 9 and not be empty"),
        ({"start": 10}, "it must begin at 9 and not be empty"),
        ({"end": 9}, "it must begin at 9 and not be empty"),
        ({"end": 19}, "intervals end at sample 19, the utterance at 20"),
        ({"emotion": "calm"}, "unknown emotion"),
        ({"transcript": ""}, "no word in it"),
        ({"transcript": "NO"}, "the intervals' words 'OH NO' are not the transcript 'OH NO NO'"),
    ],
)
def test_intervals_that_do_not_fit_are_refused(changed, reason):
    with pytest.raises(InputError, match=reason):
        check_intervals([GOOD[0], GOOD[1]._replace(**changed)], 20, "OH NO NO", PUBLISHED)


def test_a_manifest_s_intervals_are_checked(tmp_path):
    entry = {
        "wav": "{data_root}/a.wav",
        "duration": 20 / 16000,
        "transcript": "OH NO NO",
        "emotion": "sad",
    }
    entry |= {"speaker": "Ann", "intervals": [interval._asdict() for interval in GOOD]}
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"a": entry}))
    assert read_manifest(path)["a"] == entry
    entry["intervals"][0]["end"] = 10
    path.write_text(json.dumps({"a": entry}))
    with pytest.raises(InputError, match="a: interval of samples 9 to 20 .sad.: it must begin"):
        read_manifest(path)
