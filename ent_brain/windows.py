"""Recordings of any length: heard in windows no longer than what a model was trained on."""

from difflib import SequenceMatcher
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ent_brain.annotation import Heard
from ent_brain.audio import open_audio, read_samples, resample
from ent_brain.errors import InputError

OVERLAP = 0.3
"""Share of a window that the next one hears, too, where there is no pause between them."""

PAUSE, SHORTEST_WINDOW = 0.2, 1.0
"""Seconds that are quiet where a window may end, and after which it may."""

QUIET = -25.0
"""dB under the loudest 20 ms of a window: quiet enough for a pause."""

SAME_WORD = 0.3
"""Seconds by which two windows may differ on the start of a word that both have heard."""

BLOCK = 10
"""Whole seconds that are read and resampled at once."""


class Window(NamedTuple):
    """A stretch of a recording."""

    start: int
    """Sample of the recording, the first of a frame."""
    wav: Tensor
    """[S], mono."""


def count_seconds(path):
    """Seconds of a sound file (float), as its header has it."""
    with open_audio(path) as file:
        return file.frames / file.samplerate


def read_windows(path, sample_rate, longest, frame_samples):
    """Read a sound file window by window, with little more than one in memory.

    A recording that is no longer than a window is one. Another is cut in the longest pause of each
    window, so that a model hears utterances, as in its training; where speech has no pause,
    windows overlap.

    Arguments
    ---------
    path : str or Path
        Any format, rate and number of channels that soundfile reads.
    sample_rate : int
        Hz, of what is given.
    longest : float
        Seconds of a window, at most.
    frame_samples : int
        Every window starts with a frame.

    Yields
    ------
    Window

    Raises
    ------
    InputError
        If the file cannot be read, or holds no sample or one that is not a number.
    """
    most = round(longest * sample_rate) // frame_samples * frame_samples
    kept, start = torch.zeros(0), 0
    blocks = _read_blocks(path, sample_rate)
    ended = False
    while not ended:
        while len(kept) <= most and (block := next(blocks, None)) is not None:
            kept = torch.cat((kept, block))
        ended = len(kept) <= most
        end = following = len(kept)
        if not ended:
            end = _find_pause(kept[:most], sample_rate)
            following = end if end is not None else round(most * (1 - OVERLAP))
            following -= following % frame_samples
            end = most if end is None else following
        yield Window(start, kept[:end])
        kept, start = kept[following:].clone(), start + following


def _find_pause(wav, sample_rate):
    """Middle of the longest pause of a window, a sample; None where it has none."""
    step = sample_rate // 50
    power = wav[: len(wav) // step * step].view(-1, step).square().mean(1)
    quiet = (power <= power.max() * 10 ** (QUIET / 10)).tolist()
    quiet[: round(SHORTEST_WINDOW * 50)] = [False] * round(SHORTEST_WINDOW * 50)
    edges = np.flatnonzero(np.diff([False, *quiet, False])).reshape(-1, 2)
    if not len(edges):
        return None
    first, last = max(edges.tolist(), key=lambda edge: edge[1] - edge[0])
    return (first + last) * step // 2 if (last - first) * step >= PAUSE * sample_rate else None


def _read_blocks(path, sample_rate):
    """Mono audio of a sound file at another rate, ``BLOCK`` seconds after another."""
    with open_audio(path) as file:
        rate = file.samplerate
        kept, before, start = np.zeros(0, dtype=np.float32), 0, 0
        ended = False
        while not ended:
            # A second more at both ends, where resampling would hear an edge.
            missing = (start + BLOCK + 1 - before) * rate - len(kept)
            kept = np.concatenate((kept, read_samples(file, missing, path)))
            ended = before * rate + len(kept) <= (start + BLOCK) * rate
            if not len(kept):
                raise InputError(f"{path}: holds no audio: replace or remove it")
            wav = torch.from_numpy(resample(kept, rate, sample_rate))
            first = (start - before) * sample_rate
            yield wav[first : first + BLOCK * sample_rate]
            start += BLOCK
            kept, before = kept[(start - 1 - before) * rate :], start - 1


def join(starts, windows, frame_duration):
    """Join what was heard in windows: no word is lost or doubled where two agree.

    Two windows that overlap are joined at the word that both have heard, the nearest to the middle
    of what they share; where they have none in common, in the longest stretch that is free of
    words' middles. Each window is so heard where it has most context.

    Arguments
    ---------
    starts : sequence of float
        Seconds at which each window starts.
    windows : sequence of Heard
        Times within the window.
    frame_duration : float
        Seconds from one frame to the next; windows start with a frame.

    Returns
    -------
    Heard
        The utterance's emotion is the windows' mean, weighted by what each contributes.
    """
    if len(windows) == 1:
        return windows[0]
    words, frames, labels, utterances, joints = [], [], [], [], [0.0]
    for index, (start, heard) in enumerate(zip(starts, windows, strict=True)):
        own = [(text, a + start, b + start) for text, a, b in heard.words]
        if index == 0:
            words = own
        else:
            left_end = starts[index - 1] + windows[index - 1].seconds
            keep, skip, joint = _joint(words, own, start, left_end)
            words = words[:keep] + own[skip:]
            joints.append(joint)
    joints.append(starts[-1] + windows[-1].seconds)
    for start, heard, (begin, end) in zip(starts, windows, pairwise(joints), strict=True):
        if heard.frame_log_probs is not None:
            last = None if end == joints[-1] else round((end - start) / frame_duration)
            own = slice(round((begin - start) / frame_duration), last)
            frames.append(heard.frame_log_probs[own])
            labels += heard.labels[own]
        if heard.utterance_log_probs is not None:
            utterances.append(heard.utterance_log_probs.exp() * (end - begin))
    return Heard(
        joints[-1],
        _parted(words),
        torch.cat(frames) if frames else None,
        labels if frames else None,
        (sum(utterances) / joints[-1]).log() if utterances else None,
    )


def _joint(left, right, low, high):
    """Where two lists of words that share the seconds from ``low`` to ``high`` are joined.

    Returns
    -------
    (int, int, float)
        Words of the left that stay, words of the right that go, and the second between them.
    """
    if high <= low:
        return len(left), 0, low
    first = next((i for i in reversed(range(len(left))) if _middle(left[i]) < low), -1) + 1
    count = sum(_middle(word) < high for word in right)
    texts = [[word[0] for word in words] for words in (left[first:], right[:count])]
    blocks = SequenceMatcher(None, *texts, autojunk=False).get_matching_blocks()
    center = (low + high) / 2
    pairs = [(first + a + i, b + i) for a, b, size in blocks for i in range(size)]
    common = [
        (abs(left[a][2] - center), a + 1, b + 1)
        for a, b in pairs
        if abs(left[a][1] - right[b][1]) <= SAME_WORD
        and (b + 1 == len(right) or _middle(left[a]) < _middle(right[b + 1]))
    ]
    if common:
        _, keep, skip = min(common)
        return keep, skip, min(max(left[keep - 1][2], low), high)
    middles = [_middle(word) for word in (*left[first:], *right[:count])]
    marks = sorted({low, high, *(middle for middle in middles if low < middle < high)})
    _, joint = max((b - a, (a + b) / 2) for a, b in pairwise(marks))
    keep = first + sum(_middle(word) < joint for word in left[first:])
    return keep, sum(_middle(word) < joint for word in right), joint


def _middle(word):
    return (word[1] + word[2]) / 2


def _parted(words):
    """Words in order of which none overlaps the next: those of two windows may."""
    parted = [list(word) for word in words]
    for a, b in pairwise(parted):
        if a[2] > b[1]:
            edge = min(max((a[2] + b[1]) / 2, _middle(a)), _middle(b))
            a[2] = b[1] = edge
    return [tuple(word) for word in parted]
