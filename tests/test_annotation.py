import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ent_brain.annotation import FORMATS, Annotation, Heard, Word, annotate
from ent_brain.emotions import PUBLISHED
from ent_brain.errors import InputError
from ent_brain.segments import Segment

emotions = st.sampled_from(PUBLISHED.names)
texts = st.text("ABC'<>&\"É", min_size=1, max_size=12)


@st.composite
def annotations(draw):
    """Words with gaps between some of them, segments without, times in hundredths of a second."""
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
"""What a model without words and emotions says."""


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


@given(annotation=annotations())
def test_rttm_by_pyannote(annotation, tmp_path_factory):
    load_rttm = pytest.importorskip("pyannote.database.util").load_rttm
    [path] = annotation.write(tmp_path_factory.mktemp("rttm"), ["rttm"], "talk")
    [(name, read)] = load_rttm(path).items()
    assert name == annotation.name.replace(" ", "_")
    tracks = [
        (round(turn.start, 4), round(turn.end, 4), label)
        for turn, _, label in read.itertracks(yield_label=True)
    ]
    assert tracks == [tuple(segment) for segment in annotation.segments]


@given(annotation=annotations())
def test_textgrid_by_praatio(annotation, tmp_path_factory):
    textgrid = pytest.importorskip("praatio.textgrid")
    [path] = annotation.write(tmp_path_factory.mktemp("textgrid"), ["textgrid"], "talk")
    read = textgrid.openTextgrid(str(path), includeEmptyIntervals=True)
    assert (read.minTimestamp, read.maxTimestamp) == (0, annotation.duration)
    assert read.tierNames == ("words", "word emotions", "emotions")
    words, word_emotions, segments = (
        [tuple(entry) for entry in read.getTier(name).entries] for name in read.tierNames
    )
    assert [entry for entry in words if entry[2]] == [
        (word.start, word.end, word.text) for word in annotation.words
    ]
    assert [entry[2] for entry in word_emotions if entry[2]] == [w[3] for w in annotation.words]
    assert segments == [tuple(segment) for segment in annotation.segments]
    for entries in (words, word_emotions):  # Praat wants a tier without gaps
        assert [entry[0] for entry in entries] == [0.0, *(entry[1] for entry in entries[:-1])]
        assert entries[-1][1] == annotation.duration


@given(annotation=annotations())
def test_webvtt_by_webvtt_py(annotation, tmp_path_factory):
    webvtt = pytest.importorskip("webvtt")
    [path] = annotation.write(tmp_path_factory.mktemp("webvtt"), ["webvtt"], "talk")
    captions = list(webvtt.read(str(path)))
    words = list(annotation.words)
    for caption in captions:
        emotion, _, text = caption.text.partition("] ")
        shown = [words.pop(0) for _ in text.split()]
        unescaped = text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        assert unescaped.split() == [word.text for word in shown]
        assert {word.emotion for word in shown} == {emotion.removeprefix("[")}
        assert caption.start_in_seconds == pytest.approx(shown[0].start, abs=1)
        assert caption.end.endswith(f"{round(shown[-1].end * 1000) % 1000:03d}")
    assert not words


def test_a_caption_is_not_too_long():
    words = tuple(Word("WORDWORD", i / 2, (i + 1) / 2, "sad", 0.9) for i in range(60))
    annotation = dataclasses.replace(SILENCE, duration=30.0, words=words)
    captions = annotation.to_webvtt().split("\n\n")[1:]
    assert len(captions) == 8  # eight words of nine letters are the most that fit
    assert captions[1] == "00:00:04.000 --> 00:00:08.000\n<c.sad>[sad]</c> " + " ".join(
        ["WORDWORD"] * 8
    )
    hours = dataclasses.replace(SILENCE, words=(Word("LATE", 3661.5, 3662.25, None, None),))
    assert hours.to_webvtt() == "WEBVTT\n\n01:01:01.500 --> 01:01:02.250\nLATE\n"


@given(annotations())
def test_audacity_labels_tell_every_segment_and_word(annotation):
    lines = [line.split("\t") for line in annotation.to_audacity().splitlines()]
    labels = sorted((float(start), float(end), text) for start, end, text in lines)
    words = [(word.start, word.end, word.text) for word in annotation.words]
    assert labels == sorted([*map(tuple, annotation.segments), *words])


def test_what_says_nothing_is_written_in_every_format(tmp_path):
    paths = SILENCE.write(tmp_path / "new", FORMATS)
    assert [path.name for path in paths] == [f"silence.{ending}" for ending, _ in FORMATS.values()]
    assert [paths[index].read_text() for index in (1, 3, 4)] == ["", "WEBVTT\n", ""]
    textgrid = pytest.importorskip("praatio.textgrid")
    assert textgrid.openTextgrid(str(paths[2]), includeEmptyIntervals=True).maxTimestamp == 0.5


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(InputError, match="format srt: choose among json, rttm"):
        SILENCE.write(tmp_path, ["json", "srt"])
