"""Windows: long recordings are processed in windows no longer than the training utterances."""

import math
from difflib import SequenceMatcher
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ent_brain.annotation import Heard
from ent_brain.audio import read_blocks, scan_audio
from ent_brain.segments import TimedWord

OVERLAP = 0.3
"""Share of a window that overlaps with the next one if there is no pause between them."""

PAUSE, SHORTEST_WINDOW = 0.2, 1.0
"""Shortest pause in seconds in which a window may end, and shortest window in seconds."""

QUIET = -25.0
"""Threshold of a pause in dB, relative to the loudest 20 ms of a window."""

SAME_WORD = 0.3
"""Largest difference in seconds between the starts of the same word in two windows."""


class Window(NamedTuple):
    """A window of a recording."""

    start: int
    """Sample of the recording at which the window starts, the first of a frame."""
    wav: Tensor
    """[S], mono."""


def read_windows(path, sample_rate, longest, frame_samples):
    """Read a sound file window by window, with little more than one window in memory.

    A short recording is one window. A longer one is cut in the longest pause of each window, so
    that the windows resemble training utterances. If a window contains no pause, consecutive
    windows overlap.

    Arguments
    ---------
    path : str, Path or Audio
        An argument or a result of ``scan_audio``.
    sample_rate : int
        Sample rate of the windows in Hz.
    longest : float
        Longest window in seconds.
    frame_samples : int
        Samples per frame. Every window starts at the start of a frame.

    Yields
    ------
    Window

    Raises
    ------
    InputError
        If the file cannot be read, is empty, or has NaN or absurd samples.
    """
    blocks = read_blocks(scan_audio(path), sample_rate)
    yield from cut(blocks, [(0, math.inf)], sample_rate, longest, frame_samples)


def cut(blocks, stretches, sample_rate, longest, frame_samples):
    """Cut parts of a recording into windows, as ``read_windows`` cuts a whole recording.

    Arguments
    ---------
    blocks : iterable of Tensor
        [S] samples of the recording, in order.
    stretches : sequence of (int, int)
        First sample, and sample after the last, of each part; in order, without overlaps.
    sample_rate, longest, frame_samples
        As for ``read_windows``.

    Yields
    ------
    Window
    """
    most = round(longest * sample_rate) // frame_samples * frame_samples
    blocks, kept, start = iter(blocks), torch.zeros(0), 0
    for first, last in stretches:
        first -= first % frame_samples
        if first < start:  # the stretch before ends within this frame
            first += frame_samples
        overlap, ended = 0, first >= last
        while not ended:
            while start + len(kept) < min(last, first + most + 1):
                if (block := next(blocks, None)) is None:
                    break
                kept = torch.cat((kept, block))
                dropped = min(first - start, len(kept))  # before the stretch
                kept, start = kept[dropped:], start + dropped
            kept, start = kept[first - start :], first
            wav = kept[: min(last - first, len(kept))]
            ended = len(wav) <= most
            end = following = len(wav)
            if not ended:
                end = _find_pause(wav[:most], sample_rate, overlap)
                following = end if end is not None else round(most * (1 - OVERLAP))
                following -= following % frame_samples
                end = most if end is None else following
            yield Window(first, wav[:end])
            overlap, first = end - following, first + following
            kept, start = kept[following:].clone(), first


def in_batches(windows, samples):
    """Collect windows, in order, while a padded batch of them has at most so many samples.

    A long window is a batch of its own, and short ones share one: all batches need about as much
    memory.

    Yields
    ------
    list[Window]
    """
    batch, longest = [], 0
    for window in windows:
        longest = max(longest, len(window.wav))
        if batch and (len(batch) + 1) * longest > samples:
            yield batch
            batch, longest = [], len(window.wav)
        batch.append(window)
    if batch:
        yield batch


def _find_pause(wav, sample_rate, overlap):
    """Find the middle of a window's longest pause (int, sample); None without a pause.

    The first ``overlap`` samples, which the window before also contains, are excluded: a window
    that ended there would add nothing.
    """
    step = sample_rate // 50
    power = wav[: len(wav) // step * step].view(-1, step).square().mean(1)
    quiet = (power <= power.max() * 10 ** (QUIET / 10)).tolist()
    taken = max(round(SHORTEST_WINDOW * 50), -(-overlap // step))
    quiet[:taken] = [False] * taken
    edges = np.flatnonzero(np.diff([False, *quiet, False])).reshape(-1, 2)
    if not len(edges):
        return None
    first, last = max(edges.tolist(), key=lambda edge: edge[1] - edge[0])
    return (first + last) * step // 2 if (last - first) * step >= PAUSE * sample_rate else None


def join(spans, results, sample_rate, frame_samples, frame_count, spoken=None):
    """Join the results of windows so that no frame or word is lost or repeated.

    The result has one row per frame of the recording. Two overlapping windows are joined at one
    frame, and each frame takes its row from one window. SSL models give a window fewer rows than it
    has frames; the row before fills the gap.

    Two windows are joined at the common word nearest to the middle of their overlap. Without a
    common word, they are joined in the longest interval that contains no middle of a word.

    Arguments
    ---------
    spans : sequence of (int, int)
        First sample of each window, which starts a frame, and the sample after its last.
    results : sequence of Heard
        Results of each window, with times relative to its start.
    sample_rate : int
        Sample rate in Hz.
    frame_samples : int
        Samples from one frame to the next.
    frame_count : int
        Number of the recording's frames, from the front end's ``count_frames``.
    spoken : array, optional
        [frame_count] bool, True for frames with speech; all frames if None.

    Returns
    -------
    Heard
        The utterance's probabilities are the mean over the windows, weighted by the number of
        frames with speech that each window contributes.

    Example
    -------
    >>> parts = [Heard(0.1, [TimedWord("OH", 0.0, 0.1)], None, None, None)] * 2
    >>> join([(0, 1600), (1600, 3200)], parts, 16000, 320, 10).words[1]
    TimedWord(text='OH', start=0.1, end=0.2)
    """
    words, joints = [], []
    left_end = 0
    for (start, end), result in zip(spans, results, strict=True):
        own = [
            TimedWord(text, round(a * sample_rate), round(b * sample_rate)).moved(start)
            for text, a, b in result.words
        ]
        # A window that ends inside the one before contributes nothing after its own end.
        low, high = max(start, joints[-1] if joints else 0), min(left_end, end)
        keep, skip, joint = _joint(words, own, low, high, SAME_WORD * sample_rate)
        words = words[:keep] + own[skip:]
        joints.append(joint)
        left_end = end
    firsts = [start // frame_samples for start, _ in spans]
    ends = [joint // frame_samples for joint in joints[1:]]
    rows = labels = utterance = None
    if results[0].frame_log_probs is not None:
        counts = [len(result.frame_log_probs) for result in results]
        parts = _parts(firsts, ends, counts, frame_count)
        source = _source_rows(firsts, counts, parts)
        rows = torch.cat([result.frame_log_probs for result in results])[source]
        labels = [label for result in results for label in result.labels]
        labels = [labels[index] for index in source]
    if results[0].utterance_log_probs is not None:
        counted = np.ones(frame_count) if spoken is None else spoken
        utterance = sum(
            result.utterance_log_probs.exp() * float(counted[begin:end].sum() / counted.sum())
            for result, (begin, end) in zip(results, parts, strict=True)
        ).log()
    words = [TimedWord(text, a / sample_rate, b / sample_rate) for text, a, b in _parted(words)]
    return Heard(spans[-1][1] / sample_rate, words, rows, labels, utterance)


def join_rows(spans, counts, frame_samples, frame_count):
    """Choose one row of the windows for each frame of a recording.

    Overlapping windows are joined in the middle of their overlap.

    Arguments
    ---------
    spans, frame_samples, frame_count
        As for ``join``.
    counts : sequence of int
        Number of rows of each window.

    Returns
    -------
    (list[int], list[tuple[int, int]])
        For each frame, the index of its row among the rows of all windows. For each window, the
        first frame that it contributes, and the frame after the last.

    Example
    -------
    >>> join_rows([(0, 1600), (960, 2560)], [5, 5], 320, 8)
    ([0, 1, 2, 3, 6, 7, 8, 9], [(0, 4), (4, 8)])
    """
    firsts = [start // frame_samples for start, _ in spans]
    ends = [
        (max(start, before) + min(left_end, end)) // 2 // frame_samples
        for (before, left_end), (start, end) in pairwise(spans)
    ]
    parts = _parts(firsts, ends, counts, frame_count)
    return _source_rows(firsts, counts, parts), parts


def _parts(firsts, ends, counts, frame_count):
    """Frames (first, end) that each window contributes, if its part should end at ``ends``."""
    # The left window may lack a row for its last frame; the right window then has one.
    ends = [
        max(min(end, left + count), right)
        for end, left, count, right in zip(ends, firsts, counts, firsts[1:], strict=False)
    ]
    return list(
        pairwise(np.maximum.accumulate([0, *ends, frame_count]).clip(max=frame_count).tolist())
    )


def _source_rows(firsts, counts, parts):
    """Index of each frame's row in the concatenated rows of the windows (list[int]).

    A window has ``counts`` rows from frame ``firsts`` on. It contributes the frames in ``parts``.
    """
    source, offset = np.zeros(parts[-1][1], dtype=np.int64), 0
    for first, count, (begin, end) in zip(firsts, counts, parts, strict=True):
        frames = np.arange(max(begin, first), min(end, first + count))
        source[frames] = offset + frames - first
        offset += count
    return np.maximum.accumulate(source).tolist()  # the row before fills a gap


def _joint(left, right, low, high, same_word):
    """Choose where to join the words of two windows that overlap from ``low`` to ``high``.

    The words (TimedWord) have their times in samples.

    Returns
    -------
    (int, int, int)
        Number of left words to keep, number of right words to skip, and the sample between them.
    """
    if high <= low:
        return len(left), sum(_middle(word) < low for word in right), low
    first = next((i for i in reversed(range(len(left))) if _middle(left[i]) < low), -1) + 1
    count = sum(_middle(word) < high for word in right)
    texts = [[word.text for word in words] for words in (left[first:], right[:count])]
    blocks = SequenceMatcher(None, *texts, autojunk=False).get_matching_blocks()
    center = (low + high) // 2
    pairs = [(first + a + i, b + i) for a, b, size in blocks for i in range(size)]
    common = [
        (abs(left[a].end - center), a + 1, b + 1)
        for a, b in pairs
        if abs(left[a].start - right[b].start) <= same_word
        and (b + 1 == len(right) or _middle(left[a]) < _middle(right[b + 1]))
    ]
    if common:
        _, keep, skip = min(common)
        return keep, skip, min(max(left[keep - 1].end, low), high)
    middles = [_middle(word) for word in (*left[first:], *right[:count])]
    marks = sorted({low, high, *(middle for middle in middles if low < middle < high)})
    _, joint = max((b - a, (a + b) // 2) for a, b in pairwise(marks))
    keep = first + sum(_middle(word) < joint for word in left[first:])
    return keep, sum(_middle(word) < joint for word in right), joint


def _middle(word):
    return (word.start + word.end) // 2


def _parted(words):
    """Shorten words so that none overlaps the next, because words of two windows may."""
    parted = []
    for word in words:
        if parted and (before := parted[-1]).end > word.start:
            edge = min(max((before.end + word.start) // 2, _middle(before)), _middle(word))
            parted[-1], word = before._replace(end=edge), word._replace(start=edge)
        parted.append(word)
    return parted
