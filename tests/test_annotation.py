import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ent_brain.annotation import Annotation, Heard, Speaker, SpokenSegment, Word, annotate
from ent_brain.emotions import PUBLISHED
from ent_brain.errors import InputError
from ent_brain.segments import Segment
from ent_brain.speakers import Turn, join_channels, name_speakers, read_rttm, turns_of

emotions = st.sampled_from(PUBLISHED.names)
texts = st.text("ABC'<>&\"É", min_size=1, max_size=12)


@st.composite
def annotations(draw):
    """Words with some gaps, segments without gaps, times in hundredths of a second."""
    steps = draw(st.lists(st.integers(1, 300), min_size=1, max_size=12))
    ends = [sum(steps[: i + 1]) / 100 for i in range(len(steps))]
    intervals = list(zip([0.0, *ends[:-1]], ends, strict=True))
    spoken = [span for span in intervals if draw(st.booleans())]
    words = [Word(draw(texts), *span, draw(emotions), 0.5) for span in spoken]
    return Annotation(
        name=draw(st.sampled_from(["talk", "a talk", "Ses01F_impro01"])),
        duration=ends[-1],
        text=" ".join(word.text for word in words),
        emotions=PUBLISHED.names,
        neutral="neutral",
        emotion=draw(emotions),
        probabilities=(0.25, 0.25, 0.1, 0.4),
        words=tuple(words),
        segments=tuple(Segment(*span, draw(emotions)) for span in intervals),
        frame_duration=0.04,
        frame_probabilities=((0.25, 0.25, 0.1, 0.4),) * 3,
    )


SILENCE = Annotation("silence", 0.5, "", (), None, None, (), (), (), 0.04, ())
"""Annotation of a model without words and emotions."""


@given(annotations())
def test_json_gives_everything_back(annotation):
    assert Annotation.from_json(annotation.to_json()) == annotation
    assert json.loads(annotation.to_json())["segments"][0].keys() == {"start", "end", "emotion"}


def test_words_and_segments_have_the_emotions_of_their_frames():
    """Frames of 0.5 s; the recording ends within the last one."""
    frames = torch.tensor([[0.1, 0.0, 0.2, 0.7], [0.6, 0.1, 0.1, 0.2], [0.8, 0.0, 0.0, 0.2]])
    utterance = torch.tensor([0.3, 0.1, 0.1, 0.5])
    words = [("OH", 0.1, 0.5), ("YES", 0.5, 1.4)]
    annotation = annotate(
        "answer", Heard(1.4, words, frames.log(), [3, 0, 0], utterance.log()), 0.5, PUBLISHED
    )
    assert (annotation.text, annotation.emotion, annotation.duration) == ("OH YES", "neutral", 1.4)
    assert annotation.words == (
        Word("OH", 0.1, 0.5, "neutral", 0.7),
        Word("YES", 0.5, 1.4, "happy", 0.7),
    )
    assert annotation.segments == (Segment(0.0, 0.5, "neutral"), Segment(0.5, 1.4, "happy"))
    assert annotation.frame_probabilities == tuple(
        tuple(round(p, 4) for p in row) for row in frames.tolist()
    )


def test_without_emotions_words_remain():
    annotation = annotate(
        "answer", Heard(1.0, [("YES", 0.2, 0.6)], None, None, None), 0.02, PUBLISHED
    )
    assert annotation.words == (Word("YES", 0.2, 0.6, None, None),)
    assert (annotation.emotion, annotation.segments, annotation.frame_probabilities) == (
        None,
        (),
        (),
    )


def test_an_annotation_is_not_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SILENCE.text = "WORDS"


def test_no_time_lies_after_the_audio():
    """At 16 kHz, a recording can end at 1.00006 s, within a frame and a word."""
    frames = torch.tensor([[0.1, 0.0, 0.2, 0.7], [0.6, 0.1, 0.1, 0.2]]).log()
    heard = Heard(1.00006, [("OH", 0.2, 1.00006)], frames, [3, 0], frames[0])
    annotation = annotate("answer", heard, 1.00001, PUBLISHED)
    assert annotation.duration == annotation.words[0].end == 1.0
    assert annotation.segments == (Segment(0.0, 1.0, "neutral"),)
    heard = Heard(1 / 16000, [], frames[:1], [3], frames[0])
    assert annotate("click", heard, 0.02, PUBLISHED).segments == (Segment(0.0, 0.0001, "neutral"),)


def test_turns_give_words_and_segments_their_speakers():
    said = dataclasses.replace(
        SILENCE,
        emotions=("sad", "neutral"),
        duration=4.0,
        words=tuple(Word("W", *span, "sad", 0.9) for span in ((0.1, 0.9), (0.9, 2.0), (3.2, 3.4))),
        segments=(Segment(0.0, 1.5, "sad"), Segment(1.5, 3.0, "neutral"), Segment(3.0, 4.0, "sad")),
    )
    turns = [Turn(0.0, 1.2, "bo"), Turn(1.0, 2.5, "anna"), Turn(2.6, 2.8, "bo")]
    named = name_speakers(said, turns)
    assert [word.speaker for word in named.words] == ["bo", "anna", None]
    assert named.segments == (
        SpokenSegment(0.0, 1.5, "sad", "bo"),
        SpokenSegment(1.5, 3.0, "neutral", "anna"),
        SpokenSegment(3.0, 4.0, "sad", None),
    )
    assert named.speakers == (Speaker("anna", (0.5, 1.0)), Speaker("bo", (1.2, 0.2)))
    assert named.to_dict()["speakers"][1]["seconds"] == {"sad": 1.2, "neutral": 0.2}
    assert Annotation.from_json(named.to_json()) == named


def test_channels_become_the_speakers_of_one_recording():
    left = Annotation(
        name="call.1",
        duration=1.0,
        text="ONE THREE",
        emotions=("sad", "neutral"),
        neutral="neutral",
        emotion="neutral",
        probabilities=(0.3, 0.7),
        words=(Word("ONE", 0.0, 0.3, "sad", 0.9), Word("THREE", 0.5, 0.9, "sad", 0.9)),
        segments=(Segment(0.0, 0.4, "sad"), Segment(0.4, 1.0, "neutral")),
        frame_duration=0.5,
        frame_probabilities=((0.9, 0.1), (0.2, 0.8)),
        notes=("noise",),
    )
    right = dataclasses.replace(
        left,
        words=(Word("TWO", 0.2, 0.6, "sad", 0.9),),
        probabilities=(0.9, 0.1),
        segments=(Segment(0.0, 1.0, "sad"),),
        frame_probabilities=((0.8, 0.2), (0.7, 0.3)),
    )
    call = join_channels("call", [left, right])
    assert (call.name, call.text, call.notes) == ("call", "ONE TWO THREE", ("noise",))
    assert [word.speaker for word in call.words] == ["channel1", "channel2", "channel1"]
    assert (call.emotion, call.probabilities) == ("sad", (0.6, 0.4))
    assert call.speakers == (
        Speaker("channel1", (0.4, 0.6), left.frame_probabilities),
        Speaker("channel2", (1.0, 0.0), right.frame_probabilities),
    )
    assert [segment.speaker for segment in call.segments] == ["channel1", "channel2", "channel1"]
    assert Annotation.from_json(call.to_json()) == call


def test_turns_are_read_from_rttm(tmp_path):
    path = tmp_path / "a.rttm"
    path.write_text(
        "SPKR-INFO a 1 <NA> <NA> <NA> unknown bo <NA>\n"
        "SPEAKER a 1 2.5 0.5 <NA> <NA> bo <NA> <NA>\n"
        "SPEAKER b%20c 1 0 1 <NA> <NA> SPEAKER_00 <NA> <NA>\n"
        "SPEAKER a 1 0.25 0.5 <NA> <NA> anna <NA> <NA>\n"
    )
    turns = read_rttm(path)
    assert turns == {
        "a": (Turn(0.25, 0.75, "anna"), Turn(2.5, 3.0, "bo")),
        "b c": (Turn(0.0, 1.0, "SPEAKER_00"),),
    }
    assert turns_of("folder/b c", turns, path) == turns["b c"]
    with pytest.raises(InputError, match=r"d: no turns in .*a\.rttm\. Add them"):
        turns_of("d", turns, path)
    for line in ("SPEAKER a 1 x 0.5 <NA> <NA> bo", "SPEAKER a 1 -1 2 <NA> <NA> bo", "SPEAKER a"):
        path.write_text(f"SPEAKER a 1 0 1 <NA> <NA> bo <NA> <NA>\n{line}\n")
        with pytest.raises(InputError, match=r"a\.rttm: line 2: not SPEAKER NAME"):
            read_rttm(path)
    path.write_text("\n")
    with pytest.raises(InputError, match="has no turn of a speaker"):
        read_rttm(path)


def test_files_are_written_beside_one_another(tmp_path):
    paths = SILENCE.write(tmp_path / "new", ["json", "webvtt"])
    assert [path.name for path in paths] == ["silence.json", "silence.vtt"]
    assert Annotation.from_json(paths[0].read_text()) == SILENCE
    [path] = SILENCE.write(tmp_path, ["csv"], "talk")
    assert path.read_bytes() == b"word,start,end,emotion,probability,speaker\n"


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(InputError, match="format docx: choose among json, rttm"):
        SILENCE.write(tmp_path, ["json", "docx"])
    assert not list(tmp_path.iterdir())
