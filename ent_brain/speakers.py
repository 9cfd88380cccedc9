"""Speakers: turns of speakers, and annotations with speakers."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np

from ent_brain.annotation import Speaker, SpokenSegment
from ent_brain.errors import InputError
from ent_brain.files import read_text
from ent_brain.manifest import is_seconds


class Turn(NamedTuple):
    """A part of a recording in which one speaker talks; times in seconds."""

    start: float
    end: float
    speaker: str


def read_rttm(path):
    """Read the turns of speakers from an RTTM file, for example from pyannote.

    Arguments
    ---------
    path : str or Path

    Returns
    -------
    dict[str, tuple[Turn]]
        Turns by the name of the recording.

    Raises
    ------
    InputError
        If the file cannot be read, has no turn, or has a wrong line.
    """
    turns = {}
    for number, line in enumerate(read_text(path, "name an RTTM file").splitlines(), 1):
        columns = line.split()
        if columns[:1] != ["SPEAKER"]:
            continue
        try:
            start, duration = map(float, columns[3:5])
            if not (is_seconds(start) and start >= 0 and is_seconds(duration) and duration >= 0):
                raise ValueError
            turn = Turn(start, start + duration, unquote(columns[7]))
        except (ValueError, IndexError):
            raise InputError(
                f"{path}: line {number}: not SPEAKER NAME 1 START DURATION <NA> <NA> SPEAKER. "
                "Correct it."
            ) from None
        turns.setdefault(unquote(columns[1]), []).append(turn)
    if not turns:
        raise InputError(f"{path}: has no turn of a speaker. Name an RTTM file.")
    return {name: tuple(sorted(own_turns)) for name, own_turns in turns.items()}


def turns_of(recording, turns, path):
    """Look up the turns of a recording.

    Arguments
    ---------
    recording : str
        Name of the recording, with or without folders.
    turns : dict[str, tuple[Turn]]
        Turns by recording, from ``read_rttm``.
    path : str or Path
        File of the turns, for the error message.

    Raises
    ------
    InputError
        If the recording has no turns.
    """
    for name in (recording, Path(recording).name):
        if name in turns:
            return turns[name]
    raise InputError(f"{recording}: no turns in {path}. Add them under this name.")


def name_speakers(annotation, turns):
    """Give each word and segment the speaker whose turns overlap it most.

    Arguments
    ---------
    annotation : Annotation
    turns : sequence of Turn
        Turns of different speakers may overlap.

    Returns
    -------
    Annotation
        Words and segments outside all turns have no speaker. ``speakers`` has the seconds of each
        emotion within the turns of each speaker.

    Example
    -------
    >>> from ent_brain.annotation import Annotation, Word
    >>> word = Word("OH", 0.2, 0.6, None, None)
    >>> said = Annotation("a", 1.0, "OH", (), None, None, (), (word,), (), 0.04, ())
    >>> name_speakers(said, [Turn(0.0, 0.3, "bo"), Turn(0.3, 1.0, "anna")]).words[0].speaker
    'anna'
    """
    names = sorted({turn.speaker for turn in turns})
    starts, ends = (np.array([turn[side] for turn in turns]) for side in (0, 1))
    indices = np.array([names.index(turn.speaker) for turn in turns])

    def overlaps(each):
        """Overlap in seconds of a word or segment with each speaker's turns."""
        shared = (np.minimum(ends, each.end) - np.maximum(starts, each.start)).clip(0)
        return np.bincount(indices, shared, len(names))

    def speaker_of(each):
        shared = overlaps(each)
        return names[shared.argmax()] if shared.any() else None

    seconds = {name: Counter() for name in names}
    for segment in annotation.segments:
        for name, shared in zip(names, overlaps(segment), strict=True):
            seconds[name][segment.emotion] += shared
    return replace(
        annotation,
        words=tuple(word._replace(speaker=speaker_of(word)) for word in annotation.words),
        segments=tuple(SpokenSegment(*each[:3], speaker_of(each)) for each in annotation.segments),
        speakers=tuple(
            Speaker(name, tuple(round(float(seconds[name][e]), 4) for e in annotation.emotions))
            for name in names
        ),
    )


def join_channels(name, annotations):
    """Join the annotations of a recording's channels; each channel becomes a speaker.

    Arguments
    ---------
    name : str
        Name of the recording.
    annotations : sequence of Annotation
        Annotations of its channels in order.

    Returns
    -------
    Annotation
        Words and segments of different channels may overlap. The emotion of the recording has the
        highest mean probability over the channels. ``speakers`` has the frame probabilities.
    """
    words, segments, speakers = [], [], []
    for number, each in enumerate(annotations, 1):
        speaker = f"channel{number}"
        words += [word._replace(speaker=speaker) for word in each.words]
        segments += [SpokenSegment(*segment[:3], speaker) for segment in each.segments]
        seconds = Counter()
        for start, end, emotion in each.segments:
            seconds[emotion] += end - start
        of_emotions = tuple(round(seconds[emotion], 4) for emotion in each.emotions)
        speakers.append(Speaker(speaker, of_emotions, each.frame_probabilities))
    words.sort(key=lambda word: word.start)
    first = annotations[0]
    means = np.mean([each.probabilities for each in annotations], 0).tolist()
    return replace(
        first,
        name=name,
        text=" ".join(word.text for word in words),
        words=tuple(words),
        segments=tuple(sorted(segments, key=lambda segment: segment.start)),
        speakers=tuple(speakers),
        emotion=first.emotions[int(np.argmax(means))] if means else None,
        probabilities=tuple(round(mean, 4) for mean in means),
        frame_probabilities=(),
        notes=tuple(dict.fromkeys(note for each in annotations for note in each.notes)),
    )
