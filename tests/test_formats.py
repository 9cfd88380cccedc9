"""Each format is read with a common library, or with a separate parser."""

import csv
import dataclasses
import re
from html import unescape
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ent_brain.annotation import Annotation, Speaker, SpokenSegment, Word
from ent_brain.formats import FORMATS, describe_formats
from ent_brain.segments import Segment

LABELS = ("very happy", "überrascht", "neutral")
NAMES = ["talk", "a b.wav", "a_b.wav", "a  b.wav", "100%", "a%20b.wav", '"one" two', "\u3000é"]
SPECIAL = [
    '"',
    "<i>",
    "-->",
    "a,b",
    "O\nH",
    "\r\n1\n",
    "a\tb",
    "&amp;",
    "\x00",
    "''",
    "\u2028É",
    "=1",
]

texts = st.sampled_from(SPECIAL) | st.text("ABC'<>&\"É,;\n", min_size=1, max_size=12)
labels = st.sampled_from(LABELS)


@st.composite
def annotations(draw):
    """Times in steps of 0.1 ms; words may have no duration, share a time, or be at the end."""
    sizes = st.lists(st.sampled_from([0, 0, 1, 4, 5, 9]) | st.integers(0, 30_000), max_size=12)
    times, time = [], 0
    for size in draw(sizes):
        times.append((time, time + size))
        time += size + draw(st.sampled_from([0, 0, 0, 1, 6000, 7000]))
    # The grid of captions is ten times coarser: room for each of them, at the end too.
    end = max(time - draw(st.integers(0, 5)), 130)
    times = [(min(start, end), min(last, end)) for start, last in times]
    bounds = [0, *sorted(draw(st.sets(st.integers(1, end - 1), max_size=5))), end]
    words = tuple(
        Word(draw(texts), start / 10_000, last / 10_000, draw(labels), 0.5) for start, last in times
    )
    return Annotation(
        name=draw(st.sampled_from(NAMES)),
        duration=end / 10_000,
        text=" ".join(word.text for word in words),
        emotions=LABELS,
        neutral="neutral",
        emotion=draw(labels),
        probabilities=(0.25, 0.25, 0.5),
        words=words,
        segments=tuple(
            Segment(start / 10_000, last / 10_000, draw(labels))
            for start, last in zip(bounds[:-1], bounds[1:], strict=True)
        ),
        frame_duration=0.04,
        frame_probabilities=((0.25, 0.25, 0.5), (0.125, 0.0, 0.875)),
    )


def example(words, duration=2.0, segments=()):
    words = tuple(Word(*word) for word in words)
    return Annotation("a", duration, "", (), None, None, (), words, segments, 0.04, ())


def on_one_line(text):
    return " ".join(text.replace("\x00", " ").split())


def spoken(annotation):
    """Words with letters: their text on one line, and their emotion."""
    words = [(on_one_line(word.text), word.emotion) for word in annotation.words]
    return [word for word in words if word[0]]


def seconds(clock):
    hours, minutes, rest = re.fullmatch(r"(\d\d):(\d\d):(\d\d[.,]\d{3})", clock).groups()
    return round(3600 * int(hours) + 60 * int(minutes) + float(rest.replace(",", ".")), 3)


def assert_captions_hold(captions, annotation):
    """Check captions (start, end, text): order, times to 1 ms if there is room, and all words."""
    words = spoken(annotation)
    covered = 0.0
    for start, end, text in captions:
        assert covered <= start < end <= annotation.duration
        covered = end
        emotion, text = re.fullmatch(r"\[(.+?)\] (.*)", text).groups()
        while text:
            word, felt = words.pop(0)
            assert felt == emotion
            assert text.startswith(word)
            text = text.removeprefix(word).removeprefix(" ")
    assert not words


def read_srt(text):
    """Read the captions of a SubRip file by the grammar of players."""
    blocks = text.split("\n\n")
    assert blocks.pop() == ""
    captions = []
    for number, block in enumerate(blocks, 1):
        index, times, *lines = block.split("\n")
        assert index == str(number)
        start, end = times.split(" --> ")
        captions.append((seconds(start), seconds(end), "\n".join(lines)))
    return captions


@given(annotations())
def test_srt_by_a_parser(annotation):
    assert_captions_hold(read_srt(FORMATS["srt"].serialize(annotation)), annotation)


@given(annotation=annotations())
def test_webvtt_by_webvtt_py(annotation, tmp_path_factory):
    webvtt = pytest.importorskip("webvtt")
    [path] = annotation.write(tmp_path_factory.mktemp("webvtt"), ["webvtt"], "talk")
    captions = [(seconds(c.start), seconds(c.end), unescape(c.text)) for c in webvtt.read(path)]
    assert_captions_hold(captions, annotation)


def test_captions_are_where_their_words_are():
    words = [
        ("ONE", 0.1, 0.30049, "sad", 0.9),
        ("TWO", 0.30049, 0.3005, "neutral", 0.9),  # would end where it starts
        ("THREE", 0.3005, 1.4, "sad", 0.9),
        ("FOUR", 1.5, 2.0, "sad", 0.9),
        ("FIVE", 2.0, 2.0, "neutral", 0.9),  # would last for no time at the very end
    ]
    assert read_srt(FORMATS["srt"].serialize(example(words))) == [
        (0.1, 0.3, "[sad] ONE"),
        (0.3, 0.301, "[neutral] TWO"),
        (0.301, 1.999, "[sad] THREE FOUR"),
        (1.999, 2.0, "[neutral] FIVE"),
    ]


def test_of_two_captions_that_overlap_the_first_ends_early():
    words = [("ONE", 0.1, 1.2, "sad", 0.9), ("TWO", 1.0, 1.1, "neutral", 0.9)]
    assert read_srt(FORMATS["srt"].serialize(example(words))) == [
        (0.1, 1.0, "[sad] ONE"),
        (1.0, 1.1, "[neutral] TWO"),
    ]


def test_a_caption_is_not_too_long():
    words = [("WORDWORD", i / 2, (i + 1) / 2, "sad", 0.9) for i in range(60)]
    captions = FORMATS["webvtt"].serialize(example(words, 30.0)).rstrip("\n").split("\n\n")[1:]
    assert len(captions) == 8  # eight words of nine letters are the most that fit
    assert captions[1] == "00:00:04.000 --> 00:00:08.000\n<c.sad>[sad]</c> " + " ".join(
        ["WORDWORD"] * 8
    )
    hours = example([("LATE", 3661.5, 3662.25, None, None)], 4000.0)
    assert FORMATS["webvtt"].serialize(hours) == ("WEBVTT\n\n01:01:01.500 --> 01:01:02.250\nLATE\n")
    assert FORMATS["srt"].serialize(hours) == "1\n01:01:01,500 --> 01:01:02,250\nLATE\n\n"


def test_special_characters_of_webvtt_are_escaped():
    words = [("<b>", 0.0, 0.5, "a b.c>", 0.9), ("-->", 0.5, 1.0, "a b.c>", 0.9)]
    assert FORMATS["webvtt"].serialize(example(words)).splitlines()[3] == (
        "<c.a_b_c_>[a b.c&gt;]</c> &lt;b&gt; --&gt;"
    )


def read_textgrid(annotation, folder):
    textgrid = pytest.importorskip("praatio.textgrid")
    [path] = annotation.write(folder, ["textgrid"], "talk")
    read = textgrid.openTextgrid(str(path), includeEmptyIntervals=True)
    assert (read.minTimestamp, read.maxTimestamp) == (0, annotation.duration)
    assert read.tierNames == ("words", "word emotions", "emotions")
    return [[tuple(entry) for entry in read.getTier(name).entries] for name in read.tierNames]


@given(annotation=annotations())
def test_textgrid_by_praatio(annotation, tmp_path_factory):
    tiers = read_textgrid(annotation, tmp_path_factory.mktemp("textgrid"))
    words, word_emotions, segments = tiers
    assert [entry[2] for entry in words if entry[2]] == [text for text, _ in spoken(annotation)]
    assert [entry[2] for entry in word_emotions if entry[2]] == [e for _, e in spoken(annotation)]
    assert segments == [tuple(segment) for segment in annotation.segments]
    for entries in tiers:  # Praat needs a tier without gaps and without empty intervals
        assert [entry[0] for entry in entries] == [0.0, *(entry[1] for entry in entries[:-1])]
        assert entries[-1][1] == annotation.duration
        assert all(start < end for start, end, _ in entries)


def test_textgrid_has_the_times_of_the_words(tmp_path):
    words = [("ONE", 0.1, 0.3, "sad", 0.9), ("TWO", 0.3, 0.3, None, None)]
    assert read_textgrid(example(words, 0.3), tmp_path) == [
        [(0.0, 0.1, ""), (0.1, 0.2999, "ONE"), (0.2999, 0.3, "TWO")],
        [(0.0, 0.1, ""), (0.1, 0.2999, "sad"), (0.2999, 0.3, "")],
        [(0.0, 0.3, "")],
    ]


@given(annotation=annotations())
def test_eaf_by_pympi(annotation, tmp_path_factory):
    elan = pytest.importorskip("pympi.Elan")
    [path] = annotation.write(tmp_path_factory.mktemp("eaf"), ["eaf"], "talk")
    read = elan.Eaf(str(path))
    assert list(read.get_tier_names()) == ["words", "word emotions", "emotions"]
    tiers = [read.get_annotation_data_for_tier(name) for name in read.get_tier_names()]
    words, word_emotions, segments = tiers
    assert [text for _, _, text in words] == [text for text, _ in spoken(annotation)]
    assert [text for _, _, text in word_emotions] == [emotion for _, emotion in spoken(annotation)]
    assert [text for _, _, text in segments] == [s.emotion for s in annotation.segments]
    for entries in tiers:
        times = [time for start, end, _ in entries for time in (start, end)]
        assert times == sorted(times)
        assert all(start < end <= 1000 * annotation.duration for start, end, _ in entries)


@given(annotation=annotations())
def test_rttm_by_pyannote(annotation, tmp_path_factory):
    load_rttm = pytest.importorskip("pyannote.database.util").load_rttm
    [path] = annotation.write(tmp_path_factory.mktemp("rttm"), ["rttm"], "talk")
    [(name, read)] = load_rttm(path).items()
    assert unquote(name) == annotation.name
    tracks = [
        (round(turn.start, 4), round(turn.end, 4), unquote(label))
        for turn, _, label in read.itertracks(yield_label=True)
    ]
    assert tracks == [tuple(segment) for segment in annotation.segments]


@given(annotations())
def test_audacity_labels_tell_every_segment_and_word(annotation):
    lines = [line.split("\t") for line in FORMATS["audacity"].serialize(annotation).splitlines()]
    intervals = [(float(start), float(end), text) for start, end, text in lines]
    assert all(0 <= start < end <= annotation.duration for start, end, _ in intervals)
    said = [text for text, _ in spoken(annotation)] + [s.emotion for s in annotation.segments]
    assert sorted(text for _, _, text in intervals) == sorted(said)
    assert {tuple(segment) for segment in annotation.segments} <= set(intervals)


@given(annotation=annotations())
def test_tables_by_csv(annotation, tmp_path_factory):
    rows = []
    for path in annotation.write(tmp_path_factory.mktemp("csv"), ["csv", "frames.csv"], "talk"):
        with path.open(newline="", encoding="utf-8") as file:
            rows.append(list(csv.DictReader(file)))
    words, frames = rows
    assert words == [
        {
            "word": on_one_line(word.text),
            "start": f"{word.start:.4f}",
            "end": f"{word.end:.4f}",
            "emotion": word.emotion,
            "probability": "0.5",
            "speaker": "",
        }
        for word in annotation.words
        if on_one_line(word.text)
    ]
    assert frames == [
        {
            "start": f"{start:.4f}",
            "end": f"{start + 0.04:.4f}",
            **dict(zip(LABELS, map(str, probabilities), strict=True)),
        }
        for start, probabilities in zip((0, 0.04), annotation.frame_probabilities, strict=True)
    ]


def test_a_table_of_words_without_emotions():
    table = FORMATS["csv"].serialize(example([("OH", 0.1, 0.3, None, None)]))
    assert table == "word,start,end,emotion,probability,speaker\nOH,0.1000,0.3000,,,\n"


def two_speakers():
    """Overlapping words and segments of two speakers."""
    words = [
        ("ONE", 0.1, 1.0, "sad", 0.9, "a:b"),
        ("TWO", 0.5, 1.2, "neutral", 0.8, "<c>"),
        ("NOBODY", 1.5, 1.8, "sad", 0.9),
    ]
    segments = (SpokenSegment(0.0, 2.0, "sad", "a:b"), SpokenSegment(0.0, 2.0, "sad", "<c>"))
    speakers = (
        Speaker("a:b", (2.0, 0.0), ((0.75, 0.25),)),
        Speaker("<c>", (2.0, 0.0), ((0.5, 0.5),)),
    )
    return dataclasses.replace(
        example(words, 2.0, segments), emotions=("sad", "neutral"), speakers=speakers
    )


def test_captions_of_speakers_overlap_and_name_them():
    assert FORMATS["webvtt"].serialize(two_speakers()).split("\n\n") == [
        "WEBVTT",
        "00:00:00.100 --> 00:00:01.000\n<v a:b><c.sad>[sad]</c> ONE",
        "00:00:00.500 --> 00:00:01.200\n<v &lt;c&gt;><c.neutral>[neutral]</c> TWO",
        "00:00:01.500 --> 00:00:01.800\n<c.sad>[sad]</c> NOBODY\n",
    ]
    assert read_srt(FORMATS["srt"].serialize(two_speakers())) == [
        (0.1, 1.0, "a:b: [sad] ONE"),
        (0.5, 1.2, "<c>: [neutral] TWO"),
        (1.5, 1.8, "[sad] NOBODY"),
    ]


def test_each_speaker_has_tiers(tmp_path):
    textgrid = pytest.importorskip("praatio.textgrid")
    elan = pytest.importorskip("pympi.Elan")
    kinds = ("words", "word emotions", "emotions")
    names = [*kinds, *(f"{name} - {kind}" for name in ("a:b", "<c>") for kind in kinds)]
    paths = two_speakers().write(tmp_path, ["textgrid", "eaf"])
    grid = textgrid.openTextgrid(str(paths[0]), includeEmptyIntervals=False)
    assert list(grid.tierNames) == names
    assert [tuple(entry) for entry in grid.getTier("a:b - words").entries] == [(0.1, 1.0, "ONE")]
    assert [tuple(entry) for entry in grid.getTier("<c> - emotions").entries] == [(0, 2.0, "sad")]
    read = elan.Eaf(str(paths[1]))
    assert list(read.get_tier_names()) == names
    assert read.get_annotation_data_for_tier("<c> - words") == [(500, 1200, "TWO")]


def test_lines_and_tables_name_the_speakers():
    said = two_speakers()
    labels = [line.split()[7] for line in FORMATS["rttm"].serialize(said).splitlines()]
    assert labels == ["a%3Ab:sad", "<c>:sad"]
    table = list(csv.DictReader(FORMATS["csv"].serialize(said).splitlines()))
    assert [row["speaker"] for row in table] == ["a:b", "<c>", ""]
    assert FORMATS["frames.csv"].serialize(said) == (
        "start,end,sad,neutral,speaker\n0.0000,0.0400,0.75,0.25,a:b\n0.0000,0.0400,0.5,0.5,<c>\n"
    )
    assert "0.500000\t1.200000\t<c>: TWO\n" in FORMATS["audacity"].serialize(said)


@pytest.mark.parametrize("duration", [0.0001, 0.0009, 0.5])
def test_what_says_nothing_is_written_in_every_format(tmp_path, duration):
    silence = example([], duration)
    paths = silence.write(tmp_path, FORMATS, "silence")
    assert [path.name for path in paths] == [f"silence.{each.ending}" for each in FORMATS.values()]
    written = {name: path.read_text() for name, path in zip(FORMATS, paths, strict=True)}
    assert written["rttm"] == written["audacity"] == written["srt"] == ""
    assert written["webvtt"] == "WEBVTT\n"
    assert written["frames.csv"] == "start,end\n"
    assert read_textgrid(silence, tmp_path) == [[(0.0, duration, "")]] * 3


def test_less_than_a_millisecond_has_no_captions():
    short = example([("OH", 0.0, 0.0009, None, None)], 0.0009)
    assert FORMATS["srt"].serialize(short) == ""


@given(st.lists(st.sampled_from(NAMES), min_size=2, max_size=2, unique=True))
def test_rttm_keeps_names_apart(names):
    columns = {
        FORMATS["rttm"].serialize(
            Annotation(name, 1.0, "", (), None, None, (), (), (Segment(0, 1, "sad"),), 0.04, ())
        )
        for name in names
    }
    assert len(columns) == 2


def test_formats_are_described_by_what_they_are_for():
    lines = describe_formats().splitlines()
    assert [line.split()[0] for line in lines] == list(FORMATS)
    assert "  srt         .srt         subtitles, for video players and editors" in lines
    assert max(map(len, lines)) <= 80
