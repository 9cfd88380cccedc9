"""Segments of one emotion in seconds, and their decoding from frame probabilities."""

from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
from scipy.ndimage import median_filter

from ent_brain.emotions import EmotionSet
from ent_brain.errors import InputError

ROUNDING = 0.05
"""Time in seconds by which a segment may end after its recording, because annotators round."""


class TimedWord(NamedTuple):
    """A word with its times: seconds, or samples where a function says so."""

    text: str
    start: float
    end: float

    def moved(self, time):
        """The word so much later, or earlier if it is below 0."""
        return self._replace(start=self.start + time, end=self.end + time)


class Segment(NamedTuple):
    """An interval of one emotion: times in seconds, emotion by name."""

    start: float
    end: float
    emotion: str

    def __str__(self):
        return f"{self.start:.2f}-{self.end:.2f} {self.emotion}"


@dataclass(frozen=True)
class SegmentDecoder:
    """Chooses the emotion of every frame from the probabilities of all frames.

    Arguments
    ---------
    emotions : EmotionSet
    frame_duration : float
        Seconds from one frame to the next.
    method : str
        ``argmax``: the most probable emotion of each frame separately. ``median``: the same after a
        median filter of ``seconds`` over the probabilities. ``min_duration``: the most probable
        sequence in which every emotion lasts at least ``seconds``, or the whole of a shorter
        recording. ``single_event``: the most probable sequence of neutral, one emotion, and neutral
        again, each possibly empty; for corpora with at most one emotional event per utterance.
        ``lasting_event``: the same with exactly one event of at least ``seconds``; its emotion may
        come from ``decoding.judge_events`` instead of the frames. The last two need a neutral
        label. Another name raises ``ValueError``.
    seconds : float
        Length of the median's window, or the shortest duration.

    Example
    -------
    >>> import torch
    >>> from ent_brain.emotions import PUBLISHED
    >>> happy = torch.tensor([0.1, 0.6, 0.2, 0.6, 0.6, 0.1])
    >>> other = torch.full_like(happy, 0.01)
    >>> log_probs = torch.stack((happy, other, other, 0.98 - happy), 1).log()
    >>> SegmentDecoder(PUBLISHED, 0.1).labels(log_probs)
    [3, 0, 3, 0, 0, 3]
    >>> SegmentDecoder(PUBLISHED, 0.1, "single_event").labels(log_probs)
    [3, 3, 3, 0, 0, 3]
    """

    emotions: EmotionSet
    frame_duration: float
    method: str = "argmax"
    seconds: float = 0.3

    def __post_init__(self):
        if self.method not in SEGMENT_DECODINGS:
            known = ", ".join(SEGMENT_DECODINGS)
            raise ValueError(f"segment_decoding {self.method!r}: use one of {known}")
        if self.method in EVENT_DECODINGS:
            self.emotions.need_neutral(f"segment_decoding {self.method}")

    @property
    def frames(self):
        """Number of frames in ``seconds``, at least 1."""
        return max(1, round(self.seconds / self.frame_duration))

    def labels(self, log_probs, event_log_probs=None):
        """Decode the emotion of each frame.

        Arguments
        ---------
        log_probs : Tensor
            [T, E] on the CPU.
        event_log_probs : Tensor, optional
            [E] on the CPU: log-probability of each emotion during its own event (``events``), for
            ``lasting_event``. If None, the frame probabilities choose the emotion.

        Returns
        -------
        list[int]
            Class indices.
        """
        if not len(log_probs):
            return []
        events = () if event_log_probs is None else (event_log_probs.double().numpy(),)
        return SEGMENT_DECODINGS[self.method](
            log_probs.double().numpy(), self.frames, self.emotions.neutral_index, *events
        ).tolist()

    def events(self, log_probs):
        """Find the most probable ``lasting_event`` of each emotion.

        Arguments
        ---------
        log_probs : Tensor
            [T, E] on the CPU.

        Returns
        -------
        dict[int, tuple[int, int]]
            First frame, and frame after the last, by class index, without neutral.
        """
        starts, ends, _ = _lasting_events(
            log_probs.double().numpy(), self.frames, self.emotions.neutral_index
        )
        spans = enumerate(zip(starts.tolist(), ends.tolist(), strict=True))
        return {emotion: span for emotion, span in spans if emotion != self.emotions.neutral_index}

    def segments(self, log_probs):
        """Decode segments (list[Segment]) from log-probabilities [T, E] on the CPU."""
        return segments_from_frames(self.labels(log_probs), self.frame_duration, self.emotions)


def _most_probable(log_probs, *_):
    return log_probs.argmax(1)


def _most_probable_median(log_probs, frames, *_):
    window = frames + 1 - frames % 2  # odd, so that it has a middle
    return median_filter(np.exp(log_probs), size=(window, 1), mode="nearest").argmax(1)


def _lasting(log_probs, shortest, *_):
    """The most probable labels in which every run has at least ``shortest`` frames, or all."""
    count = len(log_probs)
    if count < 2 * shortest:
        return np.full(count, log_probs.sum(0).argmax())
    # sums[t]: sum of the first t frames. best[t]: score of the best labels of these frames, by the
    # last label. starts[t]: whether the last run has exactly the shortest length.
    sums = np.concatenate((np.zeros((1, log_probs.shape[1])), log_probs.cumsum(0)))
    best = np.full_like(sums, -np.inf)
    starts = np.zeros(sums.shape, dtype=bool)
    best[shortest], starts[shortest] = sums[shortest], True
    for t in range(shortest + 1, count + 1):
        longer = best[t - 1] + log_probs[t - 1]
        changed = best[t - shortest].max() + sums[t] - sums[t - shortest]
        starts[t] = changed > longer
        best[t] = np.maximum(longer, changed)
    labels = np.empty(count, dtype=int)
    t, label = count, best[count].argmax()
    while t:
        first = t - shortest if starts[t, label] else t - 1
        labels[first:t] = label
        if starts[t, label]:
            label = best[first].argmax()
        t = first
    return labels


def _single_event(log_probs, _, neutral):
    """The most probable labels of the form neutral, one emotion, neutral."""
    gains = log_probs - log_probs[:, [neutral]]
    sums = np.concatenate((np.zeros((1, gains.shape[1])), gains.cumsum(0)))
    # For each end, the best start is the lowest sum before it; then the best end of each emotion.
    lows = np.minimum.accumulate(sums)
    ends = (sums - lows).argmax(0)
    emotion = (sums - lows).max(0).argmax()
    end = ends[emotion]
    labels = np.full(len(log_probs), neutral)
    labels[sums[: end + 1, emotion].argmin() : end] = emotion
    return labels


def _lasting_event(log_probs, shortest, neutral, event_log_probs=None):
    """The most probable labels with one emotion for at least ``shortest`` frames, or for all."""
    starts, ends, gains = _lasting_events(log_probs, shortest, neutral)
    gains = gains if event_log_probs is None else event_log_probs.copy()
    gains[neutral] = -np.inf
    emotion = gains.argmax()
    labels = np.full(len(log_probs), neutral)
    labels[starts[emotion] : ends[emotion]] = emotion
    return labels


def _lasting_events(log_probs, shortest, neutral):
    """The most probable event of each emotion: its start, end and gain over neutral, [E] each."""
    count = len(log_probs)
    shortest = min(shortest, count)
    gains = log_probs - log_probs[:, [neutral]]
    sums = np.concatenate((np.zeros((1, gains.shape[1])), gains.cumsum(0)))
    # As in ``_single_event``, but each start lies at least ``shortest`` frames before the end.
    rises = sums[shortest:] - np.minimum.accumulate(sums[: count - shortest + 1])
    latest = rises.argmax(0)
    starts = [sums[: last + 1, emotion].argmin() for emotion, last in enumerate(latest)]
    return np.array(starts), latest + shortest, rises.max(0)


SEGMENT_DECODINGS = {
    "argmax": _most_probable,
    "median": _most_probable_median,
    "min_duration": _lasting,
    "single_event": _single_event,
    "lasting_event": _lasting_event,
}
"""Functions by name that decode frame emotions from their probabilities."""

EVENT_DECODINGS = ("single_event", "lasting_event")
"""Decodings that find an emotion in neutral speech. They need a neutral label."""


def segments_from_frames(labels, frame_duration, emotions):
    """Merge runs of equal frame labels into segments.

    Frame ``i`` covers ``[i * frame_duration, (i + 1) * frame_duration)``.

    Arguments
    ---------
    labels : iterable of int
        Class index of each frame.
    frame_duration : float
        Seconds from one frame to the next.
    emotions : EmotionSet

    Returns
    -------
    list[Segment]
        A gapless cover of the frames; neighbours differ in emotion.

    Example
    -------
    >>> from ent_brain.emotions import PUBLISHED
    >>> [str(segment) for segment in segments_from_frames([3, 3, 0, 0, 0], 0.5, PUBLISHED)]
    ['0.00-1.00 neutral', '1.00-2.50 happy']
    """
    segments = []
    first = 0
    for label, run in groupby(labels, key=int):
        last = first + sum(1 for _ in run)
        # Times are products of frame counts, because sums would drift in a long recording.
        start, end = first * frame_duration, last * frame_duration
        segments.append(Segment(start, end, emotions.names[label]))
        first = last
    return segments


def end_at(segments, duration):
    """Move the end of the last segment from a frame's end to the recording's end.

    Arguments
    ---------
    segments : list[Segment]
        Segments without gaps from 0.
    duration : float
        Duration in seconds. The last segment that starts before it is cut or extended.

    Returns
    -------
    list[Segment]

    Example
    -------
    >>> [str(segment) for segment in end_at([Segment(0.0, 0.5, "sad")], 0.4)]
    ['0.00-0.40 sad']
    """
    inside = [segment for segment in segments if segment.start < duration]
    return [*inside[:-1], *(last._replace(end=duration) for last in inside[-1:])]


def fill_neutral(segments, duration, emotions):
    """Fill the gaps between segments with neutral ones.

    Arguments
    ---------
    segments : sequence of Segment
        Sorted segments without overlaps; usually only the emotional ones, or none.
    duration : float
        Duration of the recording in seconds. A segment that ends up to ``ROUNDING`` later is cut.
    emotions : EmotionSet

    Returns
    -------
    list[Segment]
        Segments without gaps, from 0 to ``duration``.

    Raises
    ------
    InputError
        If a segment is empty, overlaps another, lies outside the recording or has an unknown
        emotion. If there are gaps and the set has no neutral label.

    Example
    -------
    >>> from ent_brain.emotions import PUBLISHED
    >>> [str(segment) for segment in fill_neutral([Segment(1.0, 2.5, "sad")], 4.0, PUBLISHED)]
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
        if segment.emotion not in emotions.names:
            raise InputError(f"segment {segment}: use one of {', '.join(emotions)}")
        cover += _gap(covered, segment.start, emotions)
        cover.append(segment._replace(end=end))
        covered = end
    return cover + _gap(covered, duration, emotions)


def _gap(start, end, emotions):
    """Neutral segment between two others, in a list; an empty list if there is no gap."""
    if not start < end:
        return []
    if emotions.neutral is None:
        emotions.need_neutral(f"the time from {start:.2f} to {end:.2f} s, in no segment,")
    return [Segment(start, end, emotions.neutral)]
