"""The annotation of a recording: words, emotions and their times."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ent_brain.emotions import EmotionSet
from ent_brain.errors import InputError
from ent_brain.files import check_kinds, whole_or_nothing
from ent_brain.formats import FORMATS, STEPS, check_formats, whole_steps
from ent_brain.segments import Segment, end_at, segments_from_frames

WRITERS = ("model", "transcript", "whisper")
"""Possible sources of a recording's words."""


class Word(NamedTuple):
    """A word with its times in seconds, its emotion, and the probability of that emotion."""

    text: str
    start: float
    end: float
    emotion: str | None
    probability: float | None
    speaker: str | None = None


class SpokenSegment(NamedTuple):
    """A ``Segment`` with its speaker, or None if nobody speaks."""

    start: float
    end: float
    emotion: str
    speaker: str | None


class Speaker(NamedTuple):
    """Emotions of one speaker in a recording."""

    name: str
    seconds: tuple[float, ...]
    """[E] seconds of each emotion."""
    frame_probabilities: tuple[tuple[float, ...], ...] = ()
    """[T][E] frame probabilities, if the speaker's channel was annotated separately."""


@dataclass(frozen=True)
class Annotation:
    """Words, emotions and their times in one recording.

    Times are in seconds. Probabilities are in the order of ``emotions``; in JSON, the emotions are
    their keys. If the model has no words, ``words`` is empty. If it has no emotions, the fields of
    emotions are None or empty. The same holds for a recording with less than 0.1 s of speech, and
    ``notes`` mentions it.

    ``emotion`` and ``probabilities`` come from the model's pooled head, which classifies the whole
    recording, or each window of a long recording. ``segments`` and the emotions of words come from
    the frames. If no segment has the recording's emotion, ``notes`` mentions it.

    Frames in which nobody speaks are neutral in all formats, if the model has a neutral label.

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
    """

    name: str
    """Name of the recording: its file name without the extension."""
    duration: float
    text: str
    emotions: tuple[str, ...]
    """The model's labels, in the order of its probabilities."""
    neutral: str | None
    """The label in ``emotions`` that means no emotion; None if there is no such label."""
    emotion: str | None
    """Emotion of the whole recording."""
    probabilities: tuple[float, ...]
    """[E] probabilities of the whole recording."""
    words: tuple[Word, ...]
    segments: tuple[Segment | SpokenSegment, ...]
    """Segments without gaps, from 0 to the duration. If channels were annotated separately, each
    channel has its own."""
    frame_duration: float
    frame_probabilities: tuple[tuple[float, ...], ...]
    """[T][E]"""
    notes: tuple[str, ...] = ()
    """Remarks about the recording, one line each."""
    words_by: str = "model"
    """Source of the words: ``model``, ``transcript`` or ``whisper``."""
    speakers: tuple[Speaker, ...] = ()
    """The known speakers."""

    @property
    def label_set(self):
        """The model's labels (EmotionSet); None if the model has no emotions."""
        return EmotionSet(self.emotions, self.neutral) if self.emotions else None

    def to_dict(self):
        """Return all fields as values for JSON (dict); ``from_dict`` reads them."""
        fields = {
            **vars(self),
            "words": [word._asdict() for word in self.words],
            "segments": [segment._asdict() for segment in self.segments],
            "probabilities": dict(zip(self.emotions, self.probabilities, strict=False)),
            "frame_probabilities": self._by_emotion(self.frame_probabilities),
            "speakers": [
                {
                    "name": speaker.name,
                    "seconds": dict(zip(self.emotions, speaker.seconds, strict=True)),
                    "frame_probabilities": self._by_emotion(speaker.frame_probabilities),
                }
                for speaker in self.speakers
            ],
        }
        del fields["emotions"]  # the keys of the probabilities
        return fields

    def _by_emotion(self, frames):
        """Columns of frames [T][E] by emotion (dict of lists)."""
        columns = zip(*frames, strict=True) if frames else [()] * len(self.emotions)
        return dict(zip(self.emotions, map(list, columns), strict=True))

    def to_json(self):
        """Return all fields as JSON (str); ``from_json`` reads it."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_dict(cls, fields):
        """Build an annotation from the dict of ``to_dict``.

        Raises
        ------
        ValueError, TypeError, KeyError
            If the dict is not that of an annotation.
        """
        by_emotion = dict(fields["frame_probabilities"])
        annotation = cls(
            **{
                **fields,
                "emotions": tuple(by_emotion),
                "words": tuple(Word(**word) for word in fields["words"]),
                "segments": tuple(
                    (SpokenSegment if "speaker" in segment else Segment)(**segment)
                    for segment in fields["segments"]
                ),
                "probabilities": tuple(dict(fields["probabilities"]).values()),
                "frame_probabilities": tuple(zip(*by_emotion.values(), strict=True)),
                # Older files lack these two fields.
                "notes": tuple(fields.get("notes", ())),
                "speakers": tuple(
                    Speaker(
                        speaker["name"],
                        tuple(dict(speaker["seconds"]).values()),
                        tuple(zip(*speaker["frame_probabilities"].values(), strict=True)),
                    )
                    for speaker in fields.get("speakers", ())
                ),
            }
        )
        if tuple(fields["probabilities"]) not in ((), annotation.emotions):
            raise ValueError("probabilities of the recording and of its frames differ in emotions")
        annotation._check()
        return annotation

    @classmethod
    def from_json(cls, text):
        """Build an annotation from the JSON of ``to_json``; raises the errors of ``from_dict``."""
        return cls.from_dict(json.loads(text))

    def _check(self):
        """Refuse fields of the wrong type (``TypeError``) or value (``ValueError``)."""
        words, segments = self.words, self.segments
        frames = [*self.frame_probabilities]
        frames += [frame for speaker in self.speakers for frame in speaker.frame_probabilities]
        probabilities = [p for part in (self.probabilities, *frames) for p in part]
        check_kinds(
            (str, [self.name, self.text, self.words_by, *self.notes]),
            (str, [word.text for word in words] + [speaker.name for speaker in self.speakers]),
            (float | int, [second for speaker in self.speakers for second in speaker.seconds]),
            (str | None, [each.speaker for each in words]),
            (str | None, [getattr(each, "speaker", None) for each in segments]),
            (str | None, [self.emotion, self.neutral, *(word.emotion for word in words)]),
            (str, [segment.emotion for segment in segments]),
            (float | int, [self.duration, self.frame_duration, *probabilities]),
            (float | int, [t for each in (*words, *segments) for t in (each.start, each.end)]),
            (float | int | None, [word.probability for word in words]),
        )
        named = {self.emotion, *(each.emotion for each in (*words, *segments))}
        if self.emotions:
            try:
                self.label_set  # noqa: B018  the constructor checks the labels
            except InputError as error:
                raise ValueError(str(error)) from error
            if strange := named - {None, *self.emotions}:
                raise ValueError(f"no emotion: {', '.join(strange)}")
        if self.words_by not in WRITERS:
            raise ValueError(f"words_by {self.words_by!r}: not one of {', '.join(WRITERS)}")
        if not all(0 <= p <= 1 for p in probabilities):
            raise ValueError("probabilities are not from 0 to 1")

    def write(self, folder, formats=("json",), name=None):
        """Write ``<folder>/<name>.<ending>`` in each format; a failure leaves no partial file.

        Arguments
        ---------
        folder : str or Path
            Created if it does not exist.
        formats : sequence of str
            Names in ``formats.FORMATS``.
        name : str, optional
            The recording's name if None.

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
            paths.append(Path(folder) / f"{name or self.name}.{FORMATS[key].ending}")
            with whole_or_nothing(paths[-1]) as partial:
                partial.write_text(FORMATS[key].serialize(self), encoding="utf-8", newline="")
        return paths


class Heard(NamedTuple):
    """Results of a model for a recording, or for a window of it."""

    seconds: float
    """Duration of the recording or the window."""
    words: list
    """TimedWord in seconds, from ``alignment.word_times``."""
    frame_log_probs: Tensor | None
    """[T, E]; None if the model has no emotions."""
    labels: list | None
    """Class index of each frame's emotion, from ``SegmentDecoder``."""
    utterance_log_probs: Tensor | None
    """[E]"""
    notes: tuple[str, ...] = ()
    """Remarks about the recording, one line each."""


def annotate(name, heard, frame_duration, emotions, notes=(), words_by="model"):
    """Build the annotation of a recording from a model's results.

    Arguments
    ---------
    name : str
        Name of the recording.
    heard : Heard
    frame_duration : float
        Seconds from one frame to the next.
    emotions : EmotionSet
        The model's labels.
    notes : sequence of str
        Remarks about the recording.
    words_by : str
        Source of the words: one of ``WRITERS``.

    Returns
    -------
    Annotation
        A word's emotion is the one with the highest mean probability over the word's frames.
    """
    words = heard.words
    # Rounded down, so that no time lies after the end of the audio.
    duration = whole_steps(heard.seconds, STEPS) / STEPS
    if heard.utterance_log_probs is None:
        segments, emotion, of_utterance, of_frames = [], None, [], None
        of_words = [(None, None)] * len(words)
    else:
        of_frames, of_utterance = heard.frame_log_probs.exp(), heard.utterance_log_probs.exp()
        emotion = emotions.names[int(of_utterance.argmax())]
        segments = [
            Segment(_rounded(start), _rounded(end), label)
            for start, end, label in segments_from_frames(heard.labels, frame_duration, emotions)
        ]
        segments = end_at(segments, duration)
        if emotion not in {segment.emotion for segment in segments}:
            notes = *notes, f"the recording as a whole is {emotion}, but none of its segments is"
        of_utterance = of_utterance.tolist()
        of_words = []
        for _, start, end in words:
            best, probability = _word_emotion(start, end, of_frames, frame_duration)
            of_words.append((emotions.names[best], probability))
        of_frames = of_frames.tolist()
    return Annotation(
        name=name,
        duration=duration,
        text=" ".join(text for text, _, _ in words),
        emotions=emotions.names if of_utterance else (),
        neutral=emotions.neutral if of_utterance else None,
        emotion=emotion,
        probabilities=tuple(map(_rounded, of_utterance)),
        words=tuple(
            Word(text, min(_rounded(start), duration), min(_rounded(end), duration), *emotion)
            for (text, start, end), emotion in zip(words, of_words, strict=True)
        ),
        segments=tuple(segments),
        frame_duration=frame_duration,
        frame_probabilities=tuple(tuple(map(_rounded, row)) for row in of_frames or ()),
        notes=tuple(notes),
        words_by=words_by,
    )


def _word_emotion(start, end, of_frames, frame_duration):
    first = min(int(start / frame_duration), len(of_frames) - 1)
    last = max(first + 1, round(end / frame_duration))
    mean = of_frames[first:last].mean(0)
    return int(mean.argmax()), _rounded(float(mean.max()))


def _rounded(value):
    """Round seconds or a probability to four decimals."""
    return round(value, 4)
