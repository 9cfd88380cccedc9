"""Lattice pooling over emotional events: one stretch of emotional frames an utterance."""

from itertools import pairwise

import torch

from ent_brain.emotions import PUBLISHED
from ent_brain.lattice import Span
from ent_brain.pooling import aligned_emotions, log_probability
from ent_brain.transducer import reduce_losses

LARGEST_GAIN = 1e9
"""Nats that no event of an utterance has: 18 a frame, at most."""

EVIDENCE = 0.2
"""Weight of a frame among all of its utterance where they are compared with an event: neighbours
tell much the same, and an event that is sure too soon is never moved again."""


def aligned_event_loss(
    emotion_lattice,
    posteriors,
    emotions,
    frame_lens,
    token_lens,
    shortest,
    neutral=PUBLISHED.neutral_index,
    reduction="mean",
):
    """Lattice pooling over all that an emotional event can be.

    With q the emotions of frames as in ``aligned_pooling_loss``, a neutral utterance trains all its
    frames towards neutral. An emotional one has one event somewhere: frames of its emotion, all
    others neutral. Its loss is that of all events together, -log mean(P(event) ** w) / w with
    w = ``EVIDENCE``, by frame: the events that the frames speak for are trained most, as in
    expectation maximisation.

    Arguments
    ---------
    emotion_lattice : Lattice
        Of the emotion joint.
    posteriors : Tensor
        [B, T, U+1] of ``transducer_alignment``.
    emotions : Tensor
        [B] class indices.
    frame_lens, token_lens : Tensor
        [B] int.
    shortest : int
        Frames that an event, and what is neutral before or after it, has at least. In an utterance
        of less than two times as many all is event.
    neutral : int
        Class index of neutral.
    reduction : str
        ``mean`` over utterances, ``sum`` or ``none``.

    Returns
    -------
    Tensor
        Scalar, or [B] for ``none``.

    Example
    -------
    >>> from ent_brain.lattice import Lattice
    >>> lattice = Lattice(*(torch.zeros(size) for size in [(1, 3, 2), (1, 1, 2), (4, 2), (4,)]))
    >>> lens, sad = (torch.tensor([3]), torch.tensor([0])), torch.tensor([2])
    >>> aligned_event_loss(lattice, torch.ones(1, 3, 1), sad, *lens, shortest=1)  # knows nothing
    tensor(1.3863)
    """
    frame_probs = aligned_emotions(emotion_lattice, posteriors, token_lens)
    return event_loss(frame_probs, emotions, frame_lens, shortest, neutral, reduction)


def event_loss(frame_probs, emotions, frame_lens, shortest, neutral, reduction="mean"):
    """Compute ``aligned_event_loss`` from the emotions [B, T, E] of ``aligned_emotions``."""
    calm, gains = _event_gains(frame_probs, emotions, frame_lens, neutral)
    starts, ends, latest = _event_borders(gains, frame_lens, shortest)
    gains = gains * EVIDENCE
    begun = (-gains).masked_fill(~starts, -LARGEST_GAIN).logcumsumexp(1).gather(1, latest)
    of_all = (gains + begun).masked_fill(~ends, -LARGEST_GAIN).logsumexp(1)
    count = (starts.cumsum(1).gather(1, latest) * ends).sum(1)
    event = (of_all - count.log()) / EVIDENCE + calm.sum(1)
    return reduce_losses(
        -torch.where(emotions == neutral, calm.sum(1), event) / frame_lens, reduction
    )


@torch.no_grad()
def aligned_events(
    emotion_lattice,
    posteriors,
    emotions,
    frame_lens,
    token_lens,
    shortest,
    neutral=PUBLISHED.neutral_index,
):
    """The most probable event of each utterance, of those that ``aligned_event_loss`` weighs.

    Arguments
    ---------
    emotion_lattice, posteriors, emotions, frame_lens, token_lens, shortest, neutral
        As for ``aligned_event_loss``.

    Returns
    -------
    list[list[Span]]
        Of each utterance without gaps: the event and what is neutral before or after it. A token
        belongs to where its frame is expected.

    Example
    -------
    >>> from ent_brain.lattice import Lattice
    >>> rows = torch.tensor([[[-9.0], [9.0], [9.0]]])  # the last two frames are sad
    >>> output = torch.tensor([[0.0], [0.0], [9.0], [-9.0]]), torch.zeros(4)
    >>> lattice = Lattice(rows, torch.zeros(1, 1, 1), *output)
    >>> lens, sad = (torch.tensor([3]), torch.tensor([0])), torch.tensor([2])
    >>> [(calm, event)] = aligned_events(lattice, torch.ones(1, 3, 1), sad, *lens, shortest=1)
    >>> event
    Span(emotion=2, frame_start=1, frame_end=3, token_start=0, token_end=1)
    """
    frame_probs = aligned_emotions(emotion_lattice, posteriors, token_lens)
    known = emotions, frame_lens, token_lens
    return most_probable_events(frame_probs, posteriors, *known, shortest, neutral)


@torch.no_grad()
def most_probable_events(
    frame_probs, posteriors, emotions, frame_lens, token_lens, shortest, neutral
):
    """Find ``aligned_events`` in the emotions [B, T, E] of ``aligned_emotions``."""
    _, gains = _event_gains(frame_probs, emotions, frame_lens, neutral)
    starts, ends, latest = _event_borders(gains, frame_lens, shortest)
    begun, start = (-gains).masked_fill(~starts, -LARGEST_GAIN).cummax(1)
    best = (gains + begun.gather(1, latest)).masked_fill(~ends, -LARGEST_GAIN).argmax(1)
    first = start.gather(1, latest.gather(1, best[:, None]))[:, 0]
    position = torch.arange(posteriors.size(2), device=posteriors.device, dtype=posteriors.dtype)
    passed = torch.nn.functional.pad((posteriors @ position).round().long(), (1, 0)).tolist()
    columns = emotions, first, best, frame_lens, token_lens
    intervals = []
    for row, (emotion, *event, frames, tokens) in enumerate(
        zip(*(column.tolist() for column in columns), strict=True)
    ):
        borders = sorted({0, frames, *event})
        intervals.append([])
        for a, b in pairwise(borders):
            c, d = passed[row][a], passed[row][b] if b < frames else tokens + 1
            felt = emotion if [a, b] == event else neutral
            intervals[row].append(Span(felt, a, b, c, max(c + 1, d)))
    return intervals


def _event_gains(probs, emotions, frame_lens, neutral):
    """Of frames [B, T]: log p(neutral), 0 in the padding. And what an event adds, [B, T+1].

    An event from frame a to b adds gains[b] - gains[a] to what an utterance without it has.
    """
    valid = torch.arange(probs.size(1), device=probs.device) < frame_lens[:, None]
    calm = log_probability(probs[..., neutral]) * valid
    felt = log_probability(
        probs.gather(-1, emotions[:, None, None].expand(-1, probs.size(1), 1))[..., 0]
    )
    return calm, torch.nn.functional.pad(((felt * valid) - calm).cumsum(1), (1, 0))


def _event_borders(gains, frame_lens, shortest):
    """Where events may start and end, and the latest start of an event of each end, [B, T+1]."""
    last = frame_lens[:, None]
    border = torch.arange(gains.size(1), device=gains.device)
    inner = (border >= shortest) & (border <= last - shortest)
    latest = torch.where(last < shortest, 0, border - shortest)
    ends = (inner | (border == last)) & (latest >= 0)
    return inner | (border == 0), ends, latest.clamp(min=0)
