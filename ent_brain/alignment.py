"""Times of words from the best path through the transducer's lattice."""

import math
from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor

from ent_brain.decoding import pad_tokens
from ent_brain.losses import arc_log_probs
from ent_brain.segments import TimedWord
from ent_brain.tokens import BLANK

MOST_NODES = 2**27
"""Upper limit of a lattice's nodes (frames times tokens). The limit corresponds to 0.5 GB, or 10
minutes of speech in characters at 40 ms."""

NODES_AT_ONCE = 2**22
"""Number of nodes whose arcs are in memory at the same time."""

WORD_TAIL = 0.14
"""Seconds added to a word after the frame of its last token, up to the next word's start. On three
validation speakers of LibriSpeech, the sound of a word before a pause falls to 10 dB above the
pause's noise after this time (the median, from ``benchmarks/word_tail.py``)."""


class BestPath(NamedTuple):
    """The most probable alignment of an utterance's tokens with its frames."""

    frames: Tensor
    """[B, U] frame at which each token is emitted, non-decreasing; 0 in the padding."""
    score: Tensor
    """[B] log-probability of the path, nats."""


@torch.no_grad()
def best_path(lattices, tokens, frame_lens, token_lens, blank=BLANK):
    """Align known tokens with the frames by Viterbi search over the lattice, block by block.

    A path leaves each frame with a blank, after any number of tokens. One step handles all nodes of
    a frame. The best way into (t, u) is the best entry (t, u') with u' <= u plus the tokens between
    them, which a running maximum finds.

    Arguments
    ---------
    lattices, tokens, frame_lens, token_lens, blank
        As for ``losses.transducer_alignment``.

    Returns
    -------
    BestPath

    Raises
    ------
    ValueError
        As ``losses.transducer_alignment`` does.

    Example
    -------
    >>> from ent_brain.lattice import Lattice
    >>> _ = torch.manual_seed(0)
    >>> enc, pred = torch.randn(1, 4, 8), torch.randn(1, 3, 8)
    >>> lattice = Lattice(enc, pred, weight=torch.randn(5, 8), bias=torch.zeros(5))
    >>> batch = torch.tensor([[2, 4]]), torch.tensor([4]), torch.tensor([2])
    >>> best_path([lattice], *batch).frames
    tensor([[2, 2]])
    """
    device, frame_count = frame_lens.device, int(frame_lens.max())
    token_count = int(token_lens.max())
    # Double precision, because each entry is compared after the running sum is subtracted.
    score = torch.full((len(tokens), token_count + 1), -torch.inf, dtype=torch.double)
    score[:, 0] = 0.0
    score = score.to(device)
    final = torch.zeros_like(score[:, 0])
    entries = torch.empty(
        (len(tokens), frame_count, token_count + 1), dtype=torch.int32, device=device
    )
    step_size = max(1, NODES_AT_ONCE // score.numel())
    for start in range(0, frame_count, step_size):
        block = [each._replace(enc=each.enc[:, start : start + step_size]) for each in lattices]
        # An utterance that has ended keeps one frame, which no path reads.
        lens = (frame_lens - start).clamp(1, min(step_size, frame_count - start))
        arcs = arc_log_probs(block, tokens, lens, token_lens, blank).double()
        stay, step = arcs.masked_fill(arcs.isinf(), 0.0)  # no path reaches the padding
        sums = torch.nn.functional.pad(step[..., :-1].cumsum(-1), (1, 0))
        for t in range(start, start + stay.size(1)):
            best, entries[:, t] = (score - sums[:, t - start]).cummax(-1)
            score = best + sums[:, t - start] + stay[:, t - start]
            ends = score.gather(1, token_lens[:, None])[:, 0]
            final = torch.where(frame_lens == t + 1, ends, final)

    # Backtrace: each frame emits the tokens between the position where the path enters it and the
    # position where the path leaves it.
    position = token_lens[:, None]
    index = torch.arange(token_count, device=device)
    frames = torch.zeros_like(index).repeat(len(tokens), 1)
    for t in reversed(range(frame_count)):
        entry = entries[:, t].gather(1, position).long()
        entry = torch.where(t < frame_lens[:, None], entry, position)
        frames = torch.where((index >= entry) & (index < position), t, frames)
        position = entry
    return BestPath(frames, final)


@torch.no_grad()
def align(model, encoded, frame_lens, hypotheses):
    """Move each token of the hypotheses to its frame on the best path.

    The search may emit a token before its sound or long after it. If the model has a CTC head and
    no token joint, the tokens keep the frames of the CTC path.

    Arguments
    ---------
    model : ENT or FENT
        In eval mode.
    encoded : Streams
        [B, T, D] each, the encoder streams that the search used.
    frame_lens : Tensor
        [B] int
    hypotheses : list[Hypothesis]

    Returns
    -------
    list[Hypothesis]
        The same hypotheses with new ``frames``.
    """
    if not model.token_joints or not any(hypothesis.tokens for hypothesis in hypotheses):
        return hypotheses
    tokens, token_lens = pad_tokens(hypotheses, frame_lens.device)
    lattices = model.token_lattices(encoded, model.predict(tokens, token_lens))
    frames = best_path(lattices, tokens, frame_lens, token_lens).frames.cpu()
    return [
        hypothesis._replace(frames=row[: len(hypothesis.tokens)].tolist())
        for hypothesis, row in zip(hypotheses, frames, strict=True)
    ]


@torch.no_grad()
def align_tokens(model, encoded, tokens):
    """Align the known tokens of one recording.

    Arguments
    ---------
    model : ENT or FENT
        In eval mode, with token joints.
    encoded : Streams
        [1, T, D] each.
    tokens : list[int]

    Returns
    -------
    (list[int], list[float])
        Frame of each token, and the token's log-probability (nats) at that frame, given the tokens
        before it.
    """
    if not tokens:
        return [], []
    device = encoded.emotion.device
    ids = torch.tensor([tokens], device=device)
    frame_lens = torch.tensor([encoded.emotion.size(1)], device=device)
    token_lens = torch.tensor([len(tokens)], device=device)
    lattices = model.token_lattices(encoded, model.predict(ids, token_lens))
    frames = best_path(lattices, ids, frame_lens, token_lens).frames
    positions = torch.arange(len(tokens), device=device)[None]
    nodes = [lattice.at(torch.zeros_like(positions), frames, positions) for lattice in lattices]
    scores = torch.cat(nodes, -1).log_softmax(-1).gather(-1, ids[..., None])[0, :, 0]
    return frames[0].tolist(), scores.tolist()


def word_times(words, frames, frame_duration, duration, offset=0.0):
    """Compute the times of words from the frames of their tokens.

    A word starts with the frame of its first token. It ends ``WORD_TAIL`` after the frame of its
    last token, or earlier, when the next word starts or the recording ends. Words that start in the
    same frame share it evenly. A word without tokens starts after the token before it. ``offset``
    shifts all frames, within the recording.

    Arguments
    ---------
    words : list[tuple[str, int, int]]
        Text, index of the first token, and index after the last token, from ``tokens.words``.
    frames : sequence of int
        Frame of each token.
    frame_duration : float
        Seconds from one frame to the next.
    duration : float
        Duration of the recording in seconds. It may end within the last frame.
    offset : float
        Seconds, less than half a frame: ``Frontend.frame_offset``.

    Returns
    -------
    list[TimedWord]
        In seconds. Every word has a duration, and no two words overlap.

    Example
    -------
    >>> word_times([("I", 0, 1), ("SEE", 2, 5)], [2, 4, 5, 6, 8], 0.04, 0.41)
    [TimedWord(text='I', start=0.08, end=0.2), TimedWord(text='SEE', start=0.2, end=0.41)]
    """
    # A word cannot start in a last frame that the recording fills by less than half.
    last = max(0, math.ceil(duration / frame_duration - 0.5) - 1)
    offset = min(max(offset, -duration / 2), duration / 2)
    until = min(duration, duration + offset)
    spans = [_frames_of(frames, first, end) for _, first, end in words]
    first_frames = [min(first, last) for first, _ in spans]
    together = Counter(first_frames)
    seen = Counter()
    starts = []
    for frame in first_frames:
        start = max(0.0, frame * frame_duration + offset)
        end = min((frame + 1) * frame_duration + offset, until)
        starts.append(start + (end - start) * seen[frame] / together[frame])
        seen[frame] += 1
    limits = [*starts[1:], until]
    return [
        TimedWord(text, start, min(limit, (final + 1) * frame_duration + WORD_TAIL + offset))
        for (text, _, _), (_, final), start, limit in zip(
            words, spans, starts, limits, strict=False
        )
    ]


def _frames_of(frames, first, end):
    """First and last frame of the word whose tokens are ``first`` to ``end`` (excluded)."""
    if first < end:
        return frames[first], frames[end - 1]
    after = frames[first - 1] + 1 if first else 0
    frame = min([after, *frames[first : first + 1]])
    return frame, frame
