"""File formats for annotations, so that other programs can read them.

A writer takes an ``Annotation`` and returns the text of a file. In every format except JSON, white
space and control characters within a word become one space, and empty words are omitted.
"""

import csv
import io
import re
from collections.abc import Callable
from datetime import datetime, timezone
from html import escape
from itertools import pairwise
from operator import methodcaller
from typing import NamedTuple
from urllib.parse import quote
from xml.etree import ElementTree

from pympi.Elan import Eaf, to_adocument

from ent_brain.errors import InputError

CAPTION_LETTERS, CAPTION_SECONDS, CAPTION_PAUSE = 74, 6.0, 0.6
"""Limits of a caption: two lines of 37 letters (EBU), 6 s, and no pause longer than 0.6 s."""

STEPS = 10_000
"""Steps per second of the times in an annotation: four decimals."""

UNPRINTABLE = re.compile(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]+")
"""White space, and the characters that XML and text files do not allow."""


def to_rttm(annotation):
    r"""Write segments in NIST's RTTM (str): one line each, the emotion in the speaker's column.

    White space separates the columns. Therefore, white space, ``"`` and ``%`` in names and emotions
    are percent-encoded; ``urllib.parse.unquote`` restores them. A known speaker and a colon precede
    the emotion. A colon in a speaker's name is also percent-encoded.

    Example
    -------
    >>> from types import SimpleNamespace
    >>> from ent_brain.segments import Segment
    >>> segment = Segment(0.0, 1.0, "very happy")
    >>> to_rttm(SimpleNamespace(name="my talk", duration=1.0, segments=[segment], speakers=()))
    'SPEAKER my%20talk 1 0.0000 1.0000 <NA> <NA> very%20happy <NA> <NA>\n'
    """
    lines = []
    for speaker in _speakers(annotation):
        before = "" if speaker is None else _column(speaker).replace(":", "%3A") + ":"
        lines += [
            (start, end, f"{before}{_column(emotion)}")
            for start, end, emotion in _segments(annotation, speaker, STEPS)
        ]
    return "".join(
        f"SPEAKER {_column(annotation.name)} 1 {start / STEPS:.4f} {(end - start) / STEPS:.4f} "
        f"<NA> <NA> {label} <NA> <NA>\n"
        for start, end, label in sorted(lines, key=lambda line: line[0])
    )


def to_textgrid(annotation):
    """Write words, their emotions and segments as tiers of a Praat TextGrid (str).

    Each known speaker has tiers, whose names begin with the speaker's.
    """
    end_of_all = whole_steps(annotation.duration, STEPS)
    tiers = _tiers(annotation, STEPS)
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        f"xmax = {end_of_all / STEPS:.4f}",
        "tiers? <exists>",
        f"size = {len(tiers)}",
        "item []:",
    ]
    for number, (name, intervals) in enumerate(tiers.items(), 1):
        cover = _without_gaps(intervals, end_of_all)
        lines += [
            f"    item [{number}]:",
            '        class = "IntervalTier"',
            '        name = "' + name.replace('"', '""') + '"',
            "        xmin = 0",
            f"        xmax = {end_of_all / STEPS:.4f}",
            f"        intervals: size = {len(cover)}",
        ]
        for index, (start, end, text) in enumerate(cover, 1):
            quoted = text.replace('"', '""')
            lines += [
                f"        intervals [{index}]:",
                f"            xmin = {start / STEPS:.4f}",
                f"            xmax = {end / STEPS:.4f}",
                f'            text = "{quoted}"',
            ]
    return "\n".join(lines) + "\n"


def to_eaf(annotation):
    """Write words, their emotions and segments as tiers of an ELAN document (str).

    Each known speaker has tiers, whose names begin with the speaker's.
    """
    document = Eaf(author="ent_brain")
    # pympi's own date is invalid in time zones that are not whole hours from UTC.
    document.adocument["DATE"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    for name, intervals in _tiers(annotation, 1000).items():
        document.add_tier(name)
        for interval in intervals:
            document.add_annotation(name, *interval)
    document.remove_tier("default")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(
        to_adocument(document), encoding="unicode"
    )


def to_webvtt(annotation):
    """Write captions in W3C's WebVTT (str). A caption has one emotion, which it names.

    A known speaker is the cue's voice; captions of two speakers may overlap.

    Example
    -------
    >>> from ent_brain.annotation import Annotation, Word
    >>> words = (Word("GOOD", 0.1, 0.3, "neutral", 0.9), Word("MORNING", 0.3, 0.9, "happy", 0.8))
    >>> said = "GOOD MORNING"
    >>> print(to_webvtt(Annotation("a", 1.0, said, (), None, None, (), words, (), 0.5, ())), end="")
    WEBVTT
    <BLANKLINE>
    00:00:00.100 --> 00:00:00.300
    <c.neutral>[neutral]</c> GOOD
    <BLANKLINE>
    00:00:00.300 --> 00:00:00.900
    <c.happy>[happy]</c> MORNING
    """
    cues = []
    for start, end, (speaker, emotion, text) in _captions(annotation):
        voice = f"<v {escape(_line(speaker), quote=False)}>" if speaker else ""
        style = re.sub(r"[^\w-]", "_", emotion or "")
        tag = f"<c.{style}>[{escape(emotion, quote=False)}]</c> " if emotion else ""
        times = f"{_clock(start, '.')} --> {_clock(end, '.')}"
        cues.append(f"{times}\n{voice}{tag}{escape(text, quote=False)}")
    return "\n\n".join(["WEBVTT", *cues]) + "\n"


def to_srt(annotation):
    """Write the captions of ``to_webvtt`` in SubRip (str), without styles and escapes."""
    return "".join(
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n"
        + (f"{_line(speaker)}: " if speaker else "")
        + (f"[{emotion}] " if emotion else "")
        + f"{text}\n\n"
        for number, (start, end, (speaker, emotion, text)) in enumerate(_captions(annotation), 1)
    )


def to_audacity(annotation):
    """Write segments and words as an Audacity label track (str)."""
    labels = []
    for speaker in _speakers(annotation):
        before = f"{_line(speaker)}: " if speaker else ""
        intervals = _segments(annotation, speaker, STEPS)
        intervals += [(a, b, word.text) for a, b, word in _words(annotation, speaker, STEPS)]
        labels += [(start, end, f"{before}{text}") for start, end, text in intervals]
    labels.sort(key=lambda label: (label[0], -label[1]))
    return "".join(
        f"{start / STEPS:.6f}\t{end / STEPS:.6f}\t{text}\n" for start, end, text in labels
    )


def to_csv(annotation):
    """Write a table (str) with a row for each word.

    The columns are ``word,start,end,emotion,probability,speaker``. Times are in seconds;
    probability is that of the emotion. Unknown values are empty.
    """
    rows = (
        (_line(text), _decimal(start), _decimal(end), *rest)
        for text, start, end, *rest in annotation.words
        if _line(text)
    )
    return _table(["word", "start", "end", "emotion", "probability", "speaker"], rows)


def to_frames_csv(annotation):
    """Write a table (str) with a row for each frame.

    The columns are ``start,end`` in seconds, and the probability of each label. All frames have the
    same duration, so the last frame may end after the recording. If channels were annotated
    separately, each channel has its own rows, and a last column names it.
    """
    duration = annotation.frame_duration
    frames = [(annotation.frame_probabilities, ())]
    frames += [(each.frame_probabilities, (each.name,)) for each in annotation.speakers]
    rows = [
        (_decimal(index * duration), _decimal((index + 1) * duration), *probabilities, *speaker)
        for rows_of_frames, speaker in frames
        for index, probabilities in enumerate(rows_of_frames)
    ]
    alone = any(speaker.frame_probabilities for speaker in annotation.speakers)
    return _table(["start", "end", *annotation.emotions, *["speaker"] * alone], rows)


class Format(NamedTuple):
    """A file format of annotations."""

    ending: str
    """End of the file's name, without the dot before it."""
    serialize: Callable
    """Function from an ``Annotation`` to the text of the file."""
    purpose: str


FORMATS = {
    "json": Format("json", methodcaller("to_json"), "everything, for Annotation.from_json"),
    "rttm": Format("rttm", to_rttm, "emotion segments, for pyannote and NIST's scorers"),
    "textgrid": Format("TextGrid", to_textgrid, "tiers of words and emotions, for Praat"),
    "webvtt": Format("vtt", to_webvtt, "captions, for video in web pages"),
    "audacity": Format("labels.txt", to_audacity, "a label track, for Audacity"),
    "srt": Format("srt", to_srt, "subtitles, for video players and editors"),
    "csv": Format("csv", to_csv, "a row for each word, for spreadsheets and pandas"),
    "frames.csv": Format("frames.csv", to_frames_csv, "a row for each frame, a column per label"),
    "eaf": Format("eaf", to_eaf, "tiers of words and emotions, for ELAN"),
}
"""Formats by their names on the command line."""


def describe_formats():
    """Describe the formats (str): one line each, with the ending of the files and the purpose.

    Example
    -------
    >>> print(describe_formats().splitlines()[2])
      textgrid    .TextGrid    tiers of words and emotions, for Praat
    """
    return "\n".join(
        f"  {name:<12}.{each.ending:<12}{each.purpose}" for name, each in FORMATS.items()
    )


def check_formats(names):
    """Check names of formats.

    Raises
    ------
    InputError
        If ``FORMATS`` has no such name.
    """
    if unknown := [name for name in names if name not in FORMATS]:
        raise InputError(f"format {', '.join(unknown)}: choose among {', '.join(FORMATS)}")


def whole_steps(seconds, per_second):
    """Count the whole steps in a duration (int), at least one.

    Example
    -------
    >>> whole_steps(1.00006, 10_000), whole_steps(0.57, 10_000), whole_steps(0.00001, 10_000)
    (10000, 5700, 1)
    """
    return max(1, int(seconds * per_second + 1e-6))  # 0.57 * 10,000 is below 5,700 in floats


def _in_steps(intervals, duration, per_second):
    """Round intervals (start, end, value) in seconds to whole steps.

    No interval is empty, overlaps the next, or ends after the recording. If two overlap, the first
    ends at the start of the second. If a recording has fewer steps than intervals, only the first
    intervals remain.
    """
    steps = whole_steps(duration, per_second)
    rounded = [
        (round(start * per_second), round(end * per_second), value)
        for start, end, value in sorted(intervals, key=lambda interval: interval[0])
    ][:steps]
    fitted, free = [], 0
    for index, ((start, end, value), (next_start, *_)) in enumerate(pairwise([*rounded, (steps,)])):
        last = steps - (len(rounded) - 1 - index)  # one step for each interval that follows
        start = min(max(start, free), last - 1)
        free = min(max(min(end, next_start), start + 1), last)
        fitted.append((start, free, value))
    return fitted


def _speakers(annotation):
    """Names of the speakers; None stands for words and segments of nobody."""
    return [None, *(speaker.name for speaker in annotation.speakers)]


def _of_speaker(intervals, speaker):
    return [each for each in intervals if getattr(each, "speaker", None) == speaker]


def _segments(annotation, speaker, per_second):
    """Segments (start, end, emotion) of a speaker in steps."""
    spans = [each[:3] for each in _of_speaker(annotation.segments, speaker)]
    return _in_steps(spans, annotation.duration, per_second)


def _lines(annotation, speaker):
    """Words of a speaker with their text on one line, without empty words."""
    words = _of_speaker(annotation.words, speaker)
    words = [word._replace(text=_line(word.text)) for word in words]
    return [word for word in words if word.text]


def _words(annotation, speaker, per_second):
    """Words (start, end, Word) of a speaker in steps."""
    spans = [(word.start, word.end, word) for word in _lines(annotation, speaker)]
    return _in_steps(spans, annotation.duration, per_second)


def _tiers(annotation, per_second):
    """Intervals (start, end, text) in steps of words, their emotions and segments, by tier."""
    tiers = {}
    for speaker in _speakers(annotation):
        words = _words(annotation, speaker, per_second)
        segments = _segments(annotation, speaker, per_second)
        if speaker is None and annotation.speakers and not (words or segments):
            continue
        before = "" if speaker is None else f"{_line(speaker)} - "
        tiers |= {
            f"{before}words": [(start, end, word.text) for start, end, word in words],
            f"{before}word emotions": [(a, b, _line(w.emotion)) for a, b, w in words if w.emotion],
            f"{before}emotions": [(start, end, _line(emotion)) for start, end, emotion in segments],
        }
    return tiers


def _captions(annotation):
    """Captions (start, end, (speaker, emotion, text)) in milliseconds.

    A recording of less than 1 ms has no captions.
    """
    captions = []
    for speaker in _speakers(annotation) if annotation.duration >= 0.001 else ():
        captions += _captions_of(annotation, speaker)
    return sorted(captions, key=lambda caption: caption[0])


def _captions_of(annotation, speaker):
    words = _lines(annotation, speaker)
    captions = [[words[0]]] if words else []
    for before, word in pairwise(words):
        shown = captions[-1]
        letters = sum(len(other.text) + 1 for other in shown) + len(word.text)
        if (
            word.emotion == before.emotion
            and letters <= CAPTION_LETTERS
            and word.end - shown[0].start <= CAPTION_SECONDS
            and word.start - before.end <= CAPTION_PAUSE
        ):
            shown.append(word)
        else:
            captions.append([word])
    spans = [
        (
            shown[0].start,
            shown[-1].end,
            (
                speaker,
                shown[0].emotion and _line(shown[0].emotion),
                " ".join(word.text for word in shown),
            ),
        )
        for shown in captions
    ]
    return _in_steps(spans, annotation.duration, 1000)


def _without_gaps(intervals, end_of_all):
    """Intervals (start, end, text), with empty texts in the gaps."""
    cover, covered = [], 0
    for start, end, text in intervals:
        if start > covered:
            cover.append((covered, start, ""))
        cover.append((start, end, text))
        covered = end
    if covered < end_of_all:
        cover.append((covered, end_of_all, ""))
    return cover


def _line(text):
    """Put a text on one line, with only the characters that every format allows."""
    return UNPRINTABLE.sub(" ", text).strip()


def _column(text):
    """Encode a text as a column of RTTM."""
    return re.sub(r'[\s"%]', lambda letter: quote(letter[0]), text) or "<NA>"


def _decimal(seconds):
    return f"{seconds:.4f}"


def _table(header, rows):
    """Text of a CSV table."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def _clock(milliseconds, point):
    """Time of a caption in hours, minutes and seconds; ``point`` precedes the milliseconds."""
    minutes, rest = divmod(milliseconds, 60_000)
    seconds, rest = divmod(rest, 1000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}{point}{rest:03d}"
