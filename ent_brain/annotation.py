"""What a model says of one recording, and the file formats in which others read it."""

import json
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ent_brain.emotions import EmotionSet
from ent_brain.errors import InputError
from ent_brain.files import check_kinds, whole_or_nothing
from ent_brain.segments import Segment, end_at, segments_from_frames

CAPTION_LETTERS, CAPTION_SECONDS, CAPTION_PAUSE = 74, 6.0, 0.6
"""A caption holds two lines of 37 letters (EBU), stands 6 s at most, and ends at a pause."""


class Word(NamedTuple):
    """A word: times in seconds, the emotion that it is said with, and how probable that is."""

    text: str
    start: float
    end: float
    emotion: str | None
    probability: float | None


@dataclass(frozen=True)
class Annotation:
    """Words, emotions and their times in one recording.

    Times are in seconds, probabilities in the order of ``emotions``; in JSON each stands beside its
    name. A model without words leaves the words empty; one without emotions leaves those None or
    empty.

    Example
    -------
    >>> annotation = Annotation(
    ...     name="greeting",
    ...     duration=1.0,
    ...     text="GOOD MORNING",
    ...     emotions=("happy", "sad", "neutral"),
    ...     neutral="neutral",
    ...     emotion="happy",
    ...     probabilities=(0.8, 0.0, 0.2),
    ...     words=(Word("GOOD", 0.1, 0.3, "neutral", 0.9), Word("MORNING", 0.3, 0.9, "happy", 0.8)),
    ...     segments=(Segment(0.0, 0.3, "neutral"), Segment(0.3, 1.0, "happy")),
    ...     frame_duration=0.5,
    ...     frame_probabilities=((0.1, 0.0, 0.9), (0.8, 0.0, 0.2)),
    ... )
    >>> annotation.to_dict()["probabilities"]
    {'happy': 0.8, 'sad': 0.0, 'neutral': 0.2}
    >>> Annotation.from_json(annotation.to_json()) == annotation
    True
    >>> print(annotation.to_webvtt(), end="")
    WEBVTT
    <BLANKLINE>
    00:00:00.100 --> 00:00:00.300
    <c.neutral>[neutral]</c> GOOD
    <BLANKLINE>
    00:00:00.300 --> 00:00:00.900
    <c.happy>[happy]</c> MORNING
    """

    name: str
    """Of the recording: its file's name without the ending."""
    duration: float
    text: str
    emotions: tuple[str, ...]
    """The model's labels, in the order of its probabilities."""
    neutral: str | None
    """The one of ``emotions`` that stands for no emotion; None where none does."""
    emotion: str | None
    """Of the whole recording."""
    probabilities: tuple[float, ...]
    """[E] of the whole recording."""
    words: tuple[Word, ...]
    segments: tuple[Segment, ...]
    """Without gaps, from 0 to the duration."""
    frame_duration: float
    frame_probabilities: tuple[tuple[float, ...], ...]
    """[T][E]"""
    notes: tuple[str, ...] = ()
    """What was noticed about the recording, a line each."""

    @property
    def label_set(self):
        """The model's labels (EmotionSet); None where the model tells no emotions."""
        return EmotionSet(self.emotions, self.neutral) if self.emotions else None

    def to_dict(self):
        """Everything, as JSON has it; ``from_dict`` gives it back."""
        by_emotion = zip(*self.frame_probabilities, strict=True)
        by_emotion = by_emotion if self.frame_probabilities else [()] * len(self.emotions)
        fields = {
            **vars(self),
            "words": [word._asdict() for word in self.words],
            "segments": [segment._asdict() for segment in self.segments],
            "probabilities": dict(zip(self.emotions, self.probabilities, strict=False)),
            "frame_probabilities": dict(zip(self.emotions, map(list, by_emotion), strict=True)),
        }
        del fields["emotions"]  # the names that the probabilities have
        return fields

    def to_json(self):
        """Everything, as JSON (str); ``from_json`` gives it back."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_dict(cls, fields):
        """Take back what ``to_dict`` gave.

        Raises
        ------
        ValueError, TypeError, KeyError
            If it is something else.
        """
        by_emotion = dict(fields["frame_probabilities"])
        annotation = cls(
            **{
                **fields,
                "emotions": tuple(by_emotion),
                "words": tuple(Word(**word) for word in fields["words"]),
                "segments": tuple(Segment(**segment) for segment in fields["segments"]),
                "probabilities": tuple(dict(fields["probabilities"]).values()),
                "frame_probabilities": tuple(zip(*by_emotion.values(), strict=True)),
                "notes": tuple(fields.get("notes", ())),  # older files have none
            }
        )
        if tuple(fields["probabilities"]) not in ((), annotation.emotions):
            raise ValueError("probabilities of the recording and of its frames differ in emotions")
        annotation._check()
        return annotation

    @classmethod
    def from_json(cls, text):
        """Read what ``to_json`` wrote; raises as ``from_dict`` does."""
        return cls.from_dict(json.loads(text))

    def _check(self):
        """Refuse parts of other kinds (``TypeError``) or values (``ValueError``)."""
        words, segments, frames = self.words, self.segments, self.frame_probabilities
        probabilities = [p for part in (self.probabilities, *frames) for p in part]
        check_kinds(
            (str, [self.name, self.text, *(word.text for word in words), *self.notes]),
            (str | None, [self.emotion, self.neutral, *(word.emotion for word in words)]),
            (str, [segment.emotion for segment in segments]),
            (float | int, [self.duration, self.frame_duration, *probabilities]),
            (float | int, [t for each in (*words, *segments) for t in (each.start, each.end)]),
            (float | int | None, [word.probability for word in words]),
        )
        named = {self.emotion, *(each.emotion for each in (*words, *segments))}
        if self.emotions:
            try:
                self.label_set  # noqa: B018  its own check
            except InputError as error:
                raise ValueError(str(error)) from error
            if strange := named - {None, *self.emotions}:
                raise ValueError(f"no emotion: {', '.join(strange)}")
        if not all(0 <= p <= 1 for p in probabilities):
            raise ValueError("probabilities that are none")

    def to_rttm(self):
        """Segments in NIST's RTTM (str): a line each, the emotion in the speaker's place."""
        name = _without_spaces(self.name)
        return "".join(
            f"SPEAKER {name} 1 {start:.4f} {end - start:.4f} <NA> <NA> {_without_spaces(emotion)} "
            "<NA> <NA>\n"
            for start, end, emotion in self.segments
        )

    def to_textgrid(self):
        """Tiers of words, of their emotions and of segments, as a Praat TextGrid (str)."""
        tiers = {
            "words": [(word.start, word.end, word.text) for word in self.words],
            "word emotions": [(w.start, w.end, w.emotion) for w in self.words if w.emotion],
            "emotions": self.segments,
        }
        lines = [
            'File type = "ooTextFile"',
            'Object class = "TextGrid"',
            "",
            "xmin = 0",
            f"xmax = {self.duration}",
            "tiers? <exists>",
            f"size = {len(tiers)}",
            "item []:",
        ]
        for number, (name, intervals) in enumerate(tiers.items(), 1):
            cover = _without_gaps(intervals, self.duration)
            lines += [
                f"    item [{number}]:",
                '        class = "IntervalTier"',
                f'        name = "{name}"',
                "        xmin = 0",
                f"        xmax = {self.duration}",
                f"        intervals: size = {len(cover)}",
            ]
            for index, (start, end, text) in enumerate(cover, 1):
                quoted = text.replace('"', '""')
                lines += [
                    f"        intervals [{index}]:",
                    f"            xmin = {start}",
                    f"            xmax = {end}",
                    f'            text = "{quoted}"',
                ]
        return "\n".join(lines) + "\n"

    def to_webvtt(self):
        """Captions (str), W3C's WebVTT: a new one wherever the emotion changes, which it names."""
        cues = [
            f"{_clock(words[0].start)} --> {_clock(words[-1].end)}\n"
            + _emotion_tag(words[0].emotion)
            + escape(" ".join(word.text for word in words), quote=False)
            for words in self._captions()
        ]
        return "\n\n".join(["WEBVTT", *cues]) + "\n"

    def _captions(self):
        """Words in runs that are shown together."""
        captions = [[self.words[0]]] if self.words else []
        for before, word in pairwise(self.words):
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
        return captions

    def to_audacity(self):
        """Segments and words as an Audacity label track (str)."""
        labels = [(s.start, s.end, s.emotion) for s in self.segments]
        labels += [(word.start, word.end, word.text) for word in self.words]
        labels.sort(key=lambda label: (label[0], -label[1]))
        return "".join(f"{start:.6f}\t{end:.6f}\t{text}\n" for start, end, text in labels)

    def write(self, folder, formats=("json",), name=None):
        """Write to ``<folder>/<name>.<ending>`` in each of the formats, each whole or not at all.

        Arguments
        ---------
        folder : str or Path
            Created where it is missing.
        formats : sequence of str
            Of ``FORMATS``.
        name : str, optional
            The recording's own where it is not given.

        Returns
        -------
        list[Path]

        Raises
        ------
        InputError
            If a format is unknown.
        """
        check_formats(formats)
        Path(folder).mkdir(parents=True, exist_ok=True)
        paths = []
        for key in formats:
            ending, serialize = FORMATS[key]
            paths.append(Path(folder) / f"{name or self.name}.{ending}")
            with whole_or_nothing(paths[-1]) as partial:
                partial.write_text(serialize(self), encoding="utf-8")
        return paths


class Heard(NamedTuple):
    """What a model makes of a recording, or of a window of it."""

    seconds: float
    """That it lasts."""
    words: list
    """(text, start, end) in seconds, as ``alignment.word_times`` gives them."""
    frame_log_probs: Tensor | None
    """[T, E]; None where the model tells no emotion."""
    labels: list | None
    """Emotion of each frame, as ``SegmentDecoder`` tells them: class indices."""
    utterance_log_probs: Tensor | None
    """[E]"""


def annotate(name, heard, frame_duration, emotions, notes=()):
    """Say what a model has heard.

    Arguments
    ---------
    name : str
        Of the recording.
    heard : Heard
    frame_duration : float
        Seconds from one frame to the next.
    emotions : EmotionSet
        The model's.
    notes : sequence of str
        What was noticed about the recording.

    Returns
    -------
    Annotation
        A word's emotion is the one that is most probable over its frames, on average.
    """
    seconds, words = heard.seconds, heard.words
    if heard.utterance_log_probs is None:
        segments, emotion, of_utterance, of_frames = [], None, [], None
        of_words = [(None, None)] * len(words)
    else:
        of_frames, of_utterance = heard.frame_log_probs.exp(), heard.utterance_log_probs.exp()
        emotion = emotions.names[int(of_utterance.argmax())]
        segments = end_at(segments_from_frames(heard.labels, frame_duration, emotions), seconds)
        of_utterance = of_utterance.tolist()
        of_words = []
        for _, start, end in words:
            best, probability = _word_emotion(start, end, of_frames, frame_duration)
            of_words.append((emotions.names[best], probability))
        of_frames = of_frames.tolist()
    return Annotation(
        name=name,
        duration=_rounded(seconds),
        text=" ".join(text for text, _, _ in words),
        emotions=emotions.names if of_utterance else (),
        neutral=emotions.neutral if of_utterance else None,
        emotion=emotion,
        probabilities=tuple(map(_rounded, of_utterance)),
        words=tuple(
            Word(text, _rounded(start), _rounded(end), *felt)
            for (text, start, end), felt in zip(words, of_words, strict=True)
        ),
        segments=tuple(Segment(_rounded(s.start), _rounded(s.end), s.emotion) for s in segments),
        frame_duration=frame_duration,
        frame_probabilities=tuple(tuple(map(_rounded, row)) for row in of_frames or ()),
        notes=tuple(notes),
    )


def _word_emotion(start, end, of_frames, frame_duration):
    first = min(int(start / frame_duration), len(of_frames) - 1)
    last = max(first + 1, round(end / frame_duration))
    mean = of_frames[first:last].mean(0)
    return int(mean.argmax()), _rounded(float(mean.max()))


def _rounded(value):
    """Seconds and probabilities as people and files want them: four decimals."""
    return round(value, 4)


FORMATS = {
    "json": ("json", Annotation.to_json),
    "rttm": ("rttm", Annotation.to_rttm),
    "textgrid": ("TextGrid", Annotation.to_textgrid),
    "webvtt": ("vtt", Annotation.to_webvtt),
    "audacity": ("labels.txt", Annotation.to_audacity),
}
"""Ending and writer of each format."""


def check_formats(formats):
    """Refuse what is no format.

    Raises
    ------
    InputError
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        raise InputError(f"format {', '.join(unknown)}: choose among {', '.join(FORMATS)}")


def _without_spaces(name):
    """A name as a column of RTTM, which spaces part."""
    return "_".join(name.split()) or "_"


def _emotion_tag(emotion):
    """An emotion at the start of a WebVTT caption, its class for style sheets without spaces."""
    return f"<c.{_without_spaces(emotion)}>[{emotion}]</c> " if emotion else ""


def _without_gaps(intervals, duration):
    """Intervals (start, end, text), with empty ones wherever there is none."""
    cover, covered = [], 0.0
    for start, end, text in intervals:
        if start > covered:
            cover.append((covered, start, ""))
        cover.append((start, end, text))
        covered = end
    if covered < duration:
        cover.append((covered, duration, ""))
    return cover


def _clock(seconds):
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}.{rest % 1000:03d}"
