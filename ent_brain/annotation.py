"""What a model says of one recording: words, emotions and their times."""

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
"""Who can have written the words of a recording."""


class Word(NamedTuple):
    """A word: times in seconds, the emotion that it is said with, and how probable that is."""

    text: str
    start: float
    end: float
    emotion: str | None
    probability: float | None
    speaker: str | None = None


class SpokenSegment(NamedTuple):
    """A ``Segment`` whose speaker is known, or None for nobody."""

    start: float
    end: float
    emotion: str
    speaker: str | None


class Speaker(NamedTuple):
    """How somebody speaks in a recording."""

    name: str
    seconds: tuple[float, ...]
    """[E] of each emotion."""
    frame_probabilities: tuple[tuple[float, ...], ...] = ()
    """[T][E] of a channel that was annotated alone."""


@dataclass(frozen=True)
class Annotation:
    """Words, emotions and their times in one recording.

    Times are in seconds, probabilities in the order of ``emotions``; in JSON each stands beside its
    name. A model without words leaves the words empty; one without emotions leaves those None or
    empty. So does a recording with less than 0.1 s of speech, and ``notes`` says so.

    ``emotion`` and ``probabilities`` are those of the model's pooled head, which hears a recording,
    or each window of a long one, as a whole. ``segments`` and the emotions of words come from the
    frames. If no segment has the emotion of the whole, ``notes`` says so.

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
    segments: tuple[Segment | SpokenSegment, ...]
    """Without gaps, from 0 to the duration; of each channel, if channels were annotated alone."""
    frame_duration: float
    frame_probabilities: tuple[tuple[float, ...], ...]
    """[T][E]"""
    notes: tuple[str, ...] = ()
    """What was noticed about the recording, a line each."""
    words_by: str = "model"
    """Who wrote the words: ``model``, ``transcript`` or ``whisper``."""
    speakers: tuple[Speaker, ...] = ()
    """Those that are known."""

    @property
    def label_set(self):
        """The model's labels (EmotionSet); None where the model tells no emotions."""
        return EmotionSet(self.emotions, self.neutral) if self.emotions else None

    def to_dict(self):
        """Everything, as JSON has it; ``from_dict`` gives it back."""
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
        del fields["emotions"]  # the names that the probabilities have
        return fields

    def _by_emotion(self, frames):
        """Columns of frames [T][E] by emotion (dict)."""
        columns = zip(*frames, strict=True) if frames else [()] * len(self.emotions)
        return dict(zip(self.emotions, map(list, columns), strict=True))

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
                "segments": tuple(
                    (SpokenSegment if "speaker" in segment else Segment)(**segment)
                    for segment in fields["segments"]
                ),
                "probabilities": tuple(dict(fields["probabilities"]).values()),
                "frame_probabilities": tuple(zip(*by_emotion.values(), strict=True)),
                # Older files have none of these.
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
        """Read what ``to_json`` wrote; raises as ``from_dict`` does."""
        return cls.from_dict(json.loads(text))

    def _check(self):
        """Refuse parts of other kinds (``TypeError``) or values (``ValueError``)."""
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
                self.label_set  # noqa: B018  its own check
            except InputError as error:
                raise ValueError(str(error)) from error
            if strange := named - {None, *self.emotions}:
                raise ValueError(f"no emotion: {', '.join(strange)}")
        if self.words_by not in WRITERS:
            raise ValueError(f"words_by {self.words_by!r}: not one of {', '.join(WRITERS)}")
        if not all(0 <= p <= 1 for p in probabilities):
            raise ValueError("probabilities that are none")

    def write(self, folder, formats=("json",), name=None):
        """Write to ``<folder>/<name>.<ending>`` in each of the formats, each whole or not at all.

        Arguments
        ---------
        folder : str or Path
            Created where it is missing.
        formats : sequence of str
            Names in ``formats.FORMATS``.
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
            paths.append(Path(folder) / f"{name or self.name}.{FORMATS[key].ending}")
            with whole_or_nothing(paths[-1]) as partial:
                partial.write_text(FORMATS[key].serialize(self), encoding="utf-8", newline="")
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
    notes: tuple[str, ...] = ()
    """What was noticed about the recording, a line each."""


def annotate(name, heard, frame_duration, emotions, notes=(), words_by="model"):
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
    words_by : str
        Who wrote the words: one of ``WRITERS``.

    Returns
    -------
    Annotation
        A word's emotion is the one that is most probable over its frames, on average.
    """
    words = heard.words
    # Rounded down, because no time may lie after the end of the audio.
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
            Word(text, min(_rounded(start), duration), min(_rounded(end), duration), *felt)
            for (text, start, end), felt in zip(words, of_words, strict=True)
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
    """Seconds and probabilities as people and files want them: four decimals."""
    return round(value, 4)
