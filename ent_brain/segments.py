"""Time: intervals of one emotion in seconds, and how frames become intervals."""

from itertools import groupby
from typing import NamedTuple

from ent_brain.emotions import EMOTIONS, NEUTRAL
from ent_brain.errors import InputError

ROUNDING = 0.05  # seconds by which an annotation may end after its recording: annotators round


class Segment(NamedTuple):
    """An interval of one emotion: times in seconds, emotion by name."""

    start: float
    end: float
    emotion: str

    def __str__(self):
        return f"{self.start:.2f}-{self.end:.2f} {self.emotion}"


def segments_from_frames(labels, frame_duration):
    """Merge runs of equal frame labels to segments.

    Frame ``i`` covers ``[i * frame_duration, (i + 1) * frame_duration)``.

    Arguments
    ---------
    labels : iterable of int
        Class index of each frame.
    frame_duration : float
        Seconds from one frame to the next.

    Returns
    -------
    list[Segment]
        A gapless cover of the frames; neighbours differ in emotion.

    Example
    -------
    >>> [str(segment) for segment in segments_from_frames([3, 3, 0, 0, 0], 0.5)]
    ['0.00-1.00 neutral', '1.00-2.50 happy']
    """
    segments = []
    first = 0
    for label, run in groupby(labels, key=int):
        last = first + sum(1 for _ in run)
        # Times are products of whole frame counts: sums would drift over a long recording.
        segments.append(Segment(first * frame_duration, last * frame_duration, EMOTIONS[label]))
        first = last
    return segments


def fill_neutral(segments, duration):
    """Cover a recording without gaps: neutral wherever no segment says otherwise.

    Arguments
    ---------
    segments : sequence of Segment
        Sorted, not overlapping; usually the emotional ones only, or none at all.
    duration : float
        Seconds of the recording. A segment that ends up to ``ROUNDING`` later is cut there.

    Returns
    -------
    list[Segment]
        From 0 to ``duration``, each starting where the one before ends.

    Raises
    ------
    InputError
        If a segment is empty, overlaps another, lies outside or has an unknown emotion.

    Example
    -------
    >>> [str(segment) for segment in fill_neutral([Segment(1.0, 2.5, "sad")], 4.0)]
    ['0.00-1.00 neutral', '1.00-2.50 sad', '2.50-4.00 neutral']
    """
    if not duration > 0:
        raise InputError(f"duration {duration} s: it must be positive")
    cover = []
    covered = 0.0
    for segment in segments:
        end = min(segment.end, duration)
        if not covered <= segment.start < end or segment.end > duration + ROUNDING:
            raise InputError(
                f"segment {segment} must lie between {covered:.2f} and {duration:.2f} s: "
                "sort the segments and remove empty ones and overlaps"
            )
        if segment.emotion not in EMOTIONS:
            raise InputError(f"segment {segment}: use one of {', '.join(EMOTIONS)}")
        if covered < segment.start:
            cover.append(Segment(covered, segment.start, EMOTIONS[NEUTRAL]))
        cover.append(segment._replace(end=end))
        covered = end
    if covered < duration:
        cover.append(Segment(covered, duration, EMOTIONS[NEUTRAL]))
    return cover
