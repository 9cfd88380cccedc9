"""When each word was said: the best path through the transducer's lattice."""

import math
from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor

from ent_brain.decoding import pad_tokens
from ent_brain.losses import arc_log_probs
from ent_brain.tokens import BLANK

WORD_TAIL = 0.08
"""Seconds that a word goes on after the frame of its last token, up to the next word's start.
Chosen on validation data of the look-alikes: of 0, 0.04, 0.08 and 0.12 the smallest error."""


class BestPath(NamedTuple):
    """The most probable of all alignments of an utterance's tokens and frames."""

    frames: Tensor
    """[B, U] frame at which each token is emitted, never falling; 0 in the padding."""
    score: Tensor
    """[B] log-probability of the path, nats."""


@torch.no_grad()
def best_path(lattices, tokens, frame_lens, token_lens, blank=BLANK):
    """Align known tokens with the frames: Viterbi over the lattice, read tile by tile.

    A path leaves each frame with a blank, after any number of the tokens. All of a frame's nodes
    are one step: the best way into (t, u) is the best entry (t, u') with u' <= u, plus the tokens
    between, so that a running maximum tells it.

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
    # In double precision: a frame's entries are compared less the running sum of its tokens.
    arcs = arc_log_probs(lattices, tokens, frame_lens, token_lens, blank).double()
    stay, step = arcs.masked_fill(arcs.isinf(), 0.0)  # of the padding, which no path reaches
    sums = torch.nn.functional.pad(step[..., :-1].cumsum(-1), (1, 0))
    score = torch.full_like(stay[:, 0], -torch.inf)
    score[:, 0] = 0.0
    final = torch.zeros_like(score[:, 0])
    entries = torch.empty(stay.shape, dtype=torch.long, device=stay.device)
    for t in range(stay.size(1)):
        best, entries[:, t] = (score - sums[:, t]).cummax(-1)
        score = best + sums[:, t] + stay[:, t]
        ends = score.gather(1, token_lens[:, None])[:, 0]
        final = torch.where(frame_lens == t + 1, ends, final)

    # Backwards: the position at which each frame was left, then the one at which it was entered.
    position = token_lens[:, None]
    left = torch.empty(stay.shape[:2], dtype=torch.long, device=stay.device)
    for t in reversed(range(stay.size(1))):
        left[:, t] = position[:, 0]
        valid = t < frame_lens[:, None]
        position = torch.where(valid, entries[:, t].gather(1, position), position)
    # A token is emitted at the first frame that is left after it.
    index = torch.arange(stay.size(2) - 1, device=stay.device)
    frames = (left[:, :, None] <= index).sum(1)
    return BestPath(frames.masked_fill(index >= token_lens[:, None], 0), final)


@torch.no_grad()
def align(model, encoded, frame_lens, hypotheses):
    """Move each token of what was searched to its frame on the best path.

    A search emits a token once it is sure of it, which may be late, or before its sound. Where
    there is no token joint but a CTC head, they stay where its best path has them.

    Arguments
    ---------
    model : ENT or FENT
        In eval mode.
    encoded : Streams
        [B, T, D] each, what the hypotheses were searched in.
    frame_lens : Tensor
        [B] int
    hypotheses : list[Hypothesis]

    Returns
    -------
    list[Hypothesis]
        The same but for their ``frames``.
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


def word_times(words, frames, frame_duration, duration):
    """Times of words whose tokens are aligned.

    A word starts with the frame of its first token; it ends ``WORD_TAIL`` after the frame of its
    last one, or where the next word starts, or the recording ends. Words that start in one frame
    share it evenly.

    Arguments
    ---------
    words : list[tuple[str, int, int]]
        Text, first token and end, as ``tokens.words`` gives them.
    frames : sequence of int
        Frame of each token.
    frame_duration : float
        Seconds from one frame to the next.
    duration : float
        Seconds of the recording, which may end within the last frame.

    Returns
    -------
    list[tuple[str, float, float]]
        Text, start and end in seconds: no word is empty, and none overlaps the next.

    Example
    -------
    >>> word_times([("I", 0, 1), ("SEE", 2, 5)], [2, 4, 5, 6, 8], 0.04, 0.41)
    [('I', 0.08, 0.2), ('SEE', 0.2, 0.41)]
    """
    # A word cannot start in a last frame that the recording fills by less than half.
    last = max(0, math.ceil(duration / frame_duration - 0.5) - 1)
    first_frames = [min(frames[first], last) for _, first, _ in words]
    together = Counter(first_frames)
    seen = Counter()
    starts = []
    for frame in first_frames:
        length = min(frame_duration, duration - frame * frame_duration)
        starts.append(frame * frame_duration + length * seen[frame] / together[frame])
        seen[frame] += 1
    limits = [*starts[1:], duration]
    return [
        (text, start, min(limit, (frames[end - 1] + 1) * frame_duration + WORD_TAIL))
        for (text, _, end), start, limit in zip(words, starts, limits, strict=False)
    ]
