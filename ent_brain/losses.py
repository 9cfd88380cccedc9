"""Losses on the transducer lattice: transcription, lattice pooling, known intervals.

Every function takes the lattices as they are described in ``ent_brain.lattice`` and never stores a
T x U x J hidden layer or a vocabulary-wide axis: what a pass leaves behind is two numbers a node.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
import torchaudio  # noqa: F401  registers the transducer kernel
from torch import Tensor
from torch.autograd.function import once_differentiable

from ent_brain.emotions import PUBLISHED
from ent_brain.lattice import Lattice, backpropagate, node_logits, sum_type, tile_logits, tiles

POOLING_MODES = ("one", "full_t", "full_u", "mil")
"""Modes of ``lattice_pooling_loss``."""

SUPERVISED_MODES = ("supervised", "supervised_aligned")
"""Lattice losses of known intervals: ``supervised_lattice_loss``, ``supervised_aligned_loss``."""

PROBABILITY_FLOOR = 1e-8
"""Emotion probabilities are clamped to [1e-8, 1] before their logarithm (the paper's code)."""

LARGEST_GAIN = 1e9
"""Nats that no event of an utterance has: 18 a frame, at most."""

EVIDENCE = 0.2
"""Weight of a frame among all of its utterance where they are compared with an event: neighbours
tell much the same, and an event that is sure too soon is never moved again."""

DROPPED_POSTERIOR = 1e-3
"""Share of a frame's alignment that ``aligned`` pooling may leave out, at most."""


class Alignment(NamedTuple):
    """What the sum over all alignments of an utterance's tokens and frames tells."""

    nll: Tensor
    """[B] -log P(tokens), nats, with a graph."""
    posteriors: Tensor
    """[B, T, U+1] posterior of each node's blank arc: how likely frame t ends at position u.
    Sums to 1 over u at every valid frame, 0 elsewhere; no graph."""


def ctc_loss(logits, tokens, frame_lens, token_lens, blank=0):
    """Connectionist temporal classification (Graves et al. 2006), of each utterance.

    Arguments
    ---------
    logits : Tensor
        [B, T, V] of each frame.
    tokens : Tensor
        [B, U] ids.
    frame_lens, token_lens : Tensor
        [B] int
    blank : int

    Returns
    -------
    Tensor
        [B] -log P(tokens), nats; 0, with no gradient, where the tokens have no room: each needs a
        frame, and one more where it repeats the one before.

    Example
    -------
    >>> logits = torch.zeros(1, 2, 3)  # one token in two frames: 3 of 9 equally likely paths
    >>> ctc_loss(logits, torch.tensor([[1]]), torch.tensor([2]), torch.tensor([1])).exp()
    tensor([3.])
    """
    return torch.nn.functional.ctc_loss(
        logits.float().log_softmax(-1).transpose(0, 1),
        tokens,
        frame_lens,
        token_lens,
        blank,
        reduction="none",
        zero_infinity=True,
    )


def transducer_alignment(lattices, tokens, frame_lens, token_lens, blank=0, fastemit=0.0):
    """Sum over all alignments: the transducer's likelihood and its arc posteriors in one pass.

    Only log p(blank) and log p(next token) of a node enter the sum (Graves 2012), so a tile of
    nodes is normalised over all outputs and reduced to those two numbers; the backward pass
    computes each tile again.

    Arguments
    ---------
    lattices : sequence of Lattice
        Their outputs side by side are the token distribution: one lattice for ENT, the blank and
        the vocabulary lattice for FENT.
    tokens : Tensor
        [B, U] token ids, any value in the padding.
    frame_lens, token_lens : Tensor
        [B] int, at least 1 frame and at least 0 tokens.
    blank : int
        Index of blank among the outputs.
    fastemit : float
        Weight of FastEmit (Yu et al. 2021, arXiv 2010.11148): the gradient of token arcs is this
        much larger, the value the same. 0 is the exact gradient; a little keeps alignments narrow,
        which greedy search needs.

    Returns
    -------
    Alignment

    Raises
    ------
    ValueError
        If an utterance has no frame, a length exceeds its tensor, or a token is not an output or
        is blank.
    """
    _check(lattices, tokens, frame_lens, token_lens, blank)
    tensors = [tensor for lattice in lattices for tensor in lattice]
    nll, arcs = _Transducer.apply(tokens, frame_lens, token_lens, blank, fastemit, *tensors)
    return Alignment(nll, arcs[0])


def transducer_loss(lattices, tokens, frame_lens, token_lens, blank=0, reduction="mean"):
    """Exact transducer loss (Graves 2012) of a joint network whose lattice is never stored.

    The same value and gradient as ``torchaudio.functional.rnnt_loss`` on the dense logits.

    Arguments
    ---------
    lattices, tokens, frame_lens, token_lens, blank
        As for ``transducer_alignment``.
    reduction : str
        ``mean`` over utterances (not divided by length), ``sum`` or ``none``.

    Returns
    -------
    Tensor
        Scalar, or [B] for ``none``; nats.

    Example
    -------
    >>> from torchaudio.functional import rnnt_loss
    >>> _ = torch.manual_seed(0)
    >>> enc, pred = torch.randn(1, 4, 8), torch.randn(1, 3, 8)
    >>> lattice = Lattice(enc, pred, weight=torch.randn(5, 8), bias=torch.zeros(5))
    >>> batch = torch.tensor([[2, 4]]), torch.tensor([4]), torch.tensor([2])
    >>> loss = transducer_loss([lattice], *batch)
    >>> dense = rnnt_loss(lattice.dense(), *(part.int() for part in batch), blank=0)
    >>> bool(torch.isclose(loss, dense))
    True
    """
    nll = transducer_alignment(lattices, tokens, frame_lens, token_lens, blank).nll
    return _reduce(nll, reduction)


def lattice_pooling_loss(
    lattice,
    emotions,
    frame_lens,
    token_lens,
    mode="one",
    neutral=PUBLISHED.neutral_index,
    reduction="mean",
):
    """Lattice max pooling: an utterance's label trains the node that shows it best.

    With p the softmax of the emotion joint at each valid node, y the utterance's emotion and n
    neutral:

    * ``one``: -log max p_y - log min p_n, for every utterance (the paper's code);
    * ``full_t``: for the frame of each of those two nodes, the mean over its token positions;
    * ``full_u``: for the token position of each, the mean over its frames;
    * ``mil``: emotional utterances -log max p_y, neutral ones -log min p_n.

    Arguments
    ---------
    lattice : Lattice
        Of the emotion joint.
    emotions : Tensor
        [B] class indices.
    frame_lens, token_lens : Tensor
        [B] int.
    mode : str
        ``one``, ``full_t``, ``full_u`` or ``mil``.
    neutral : int or None
        Class index of neutral. Where a label set has none, ``one``, ``full_t`` and ``full_u`` have
        no second half, and in ``mil`` every utterance is emotional.
    reduction : str
        ``mean`` over utterances, ``sum`` or ``none``.

    Returns
    -------
    Tensor
        Scalar, or [B] for ``none``.

    Raises
    ------
    ValueError
        If the mode is unknown.

    Source: Shen et al., ICASSP 2024, section 2.3.
    """
    if mode not in POOLING_MODES:
        raise ValueError(f"unknown lattice pooling mode {mode!r}: one, full_t, full_u or mil")
    # Without a neutral label the second column is not used.
    second = emotions if neutral is None else torch.full_like(emotions, neutral)
    present = torch.stack((emotions, second), 1)
    frames, positions = _extreme_nodes(lattice, present, frame_lens, token_lens)
    rows = torch.arange(len(emotions), device=emotions.device)[:, None]
    if mode in ("one", "mil"):
        nodes = lattice.at(rows, frames, positions)[:, :, None]
        valid = torch.ones_like(nodes[..., 0], dtype=torch.bool)
    elif mode == "full_t":
        line, last = torch.arange(lattice.pred.size(1), device=rows.device), token_lens[:, None]
        # In the padding the last valid node again, as NaN there times 0 would be NaN.
        nodes = lattice.at(rows[..., None], frames[..., None], line.minimum(last)[:, None])
        valid = (line <= last).unsqueeze(1)
    else:
        line, last = torch.arange(lattice.enc.size(1), device=rows.device), frame_lens[:, None] - 1
        nodes = lattice.at(rows[..., None], line.minimum(last)[:, None], positions[..., None])
        valid = (line <= last).unsqueeze(1)
    probabilities = nodes.softmax(-1).gather(
        -1, present[:, :, None, None].expand(*nodes.shape[:-1], 1)
    )
    surprise = -_log(probabilities.squeeze(-1)) * valid
    terms = surprise.sum(-1) / valid.sum(-1)
    if neutral is None:
        return _reduce(terms[:, 0], reduction)
    if mode == "mil":
        return _reduce(torch.where(emotions == neutral, terms[:, 1], terms[:, 0]), reduction)
    return _reduce(terms.sum(1), reduction)


def aligned_pooling_loss(
    token_lattices,
    emotion_lattice,
    tokens,
    emotions,
    frame_lens,
    token_lens,
    top=0.3,
    neutral=PUBLISHED.neutral_index,
    blank=0,
    reduction="mean",
    posteriors=None,
):
    """Lattice pooling where the alignment passes.

    The emotion distribution of frame t is the emotion joint's, averaged over token positions with
    the alignment's weights g(t, u), which are held constant. A neutral utterance trains all its
    frames towards neutral; an emotional one its ``top`` most emotional frames towards its emotion
    and away from the others (SPEC: multiple-instance learning with a top-k pool).

    Arguments
    ---------
    token_lattices, tokens, frame_lens, token_lens, blank
        As for ``transducer_alignment``.
    emotion_lattice : Lattice
        Of the emotion joint.
    emotions : Tensor
        [B] class indices.
    top : float
        Share of an utterance's frames, in (0, 1], that an emotion is expected to cover.
    neutral : int or None
        Class index of neutral; every utterance is emotional where a label set has none.
    reduction : str
        ``mean`` over utterances, ``sum`` or ``none``.
    posteriors : Tensor, optional
        [B, T, U+1] of ``transducer_alignment`` where a step has computed them already.

    Returns
    -------
    Tensor
        Scalar, or [B] for ``none``.
    """
    if posteriors is None:
        with torch.no_grad():
            posteriors = transducer_alignment(
                token_lattices, tokens, frame_lens, token_lens, blank
            ).posteriors
    frame_probs = aligned_emotions(emotion_lattice, posteriors, token_lens)
    valid = torch.arange(frame_probs.size(1), device=frame_probs.device) < frame_lens[:, None]
    count = (top * frame_lens).long().clamp(min=1)[:, None, None]
    ranked = frame_probs.masked_fill(~valid[..., None], -1.0).sort(dim=1, descending=True).values
    kept = torch.arange(ranked.size(1), device=ranked.device)[None, :, None] < count
    pooled = (ranked * kept).sum(1) / count[:, 0]
    classes = torch.arange(pooled.size(1), device=pooled.device)
    others = classes != emotions[:, None]
    if neutral is not None:
        others &= classes != neutral
    present = -_log(pooled.gather(1, emotions[:, None])[:, 0])
    absent = -(_log(1 - pooled) * others).sum(1)
    if neutral is None:
        return _reduce(present + absent, reduction)
    calm = (-_log(frame_probs[..., neutral]) * valid).sum(1) / frame_lens
    return _reduce(torch.where(emotions == neutral, calm, present + absent), reduction)


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
    >>> lattice = Lattice(*(torch.zeros(size) for size in [(1, 3, 2), (1, 1, 2), (4, 2), (4,)]))
    >>> lens, sad = (torch.tensor([3]), torch.tensor([0])), torch.tensor([2])
    >>> aligned_event_loss(lattice, torch.ones(1, 3, 1), sad, *lens, shortest=1)  # knows nothing
    tensor(1.3863)
    """
    probs = aligned_emotions(emotion_lattice, posteriors, token_lens)
    calm, gains = _event_gains(probs, emotions, frame_lens, neutral)
    starts, ends, latest = _event_borders(gains, frame_lens, shortest)
    gains = gains * EVIDENCE
    begun = (-gains).masked_fill(~starts, -LARGEST_GAIN).logcumsumexp(1).gather(1, latest)
    of_all = (gains + begun).masked_fill(~ends, -LARGEST_GAIN).logsumexp(1)
    count = (starts.cumsum(1).gather(1, latest) * ends).sum(1)
    event = (of_all - count.log()) / EVIDENCE + calm.sum(1)
    return _reduce(-torch.where(emotions == neutral, calm.sum(1), event) / frame_lens, reduction)


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
    list
        Intervals of each utterance without gaps, the event and what is neutral before or after it,
        as ``supervised_lattice_loss`` takes them. A token belongs to where its frame is expected.

    Example
    -------
    >>> rows = torch.tensor([[[-9.0], [9.0], [9.0]]])  # the last two frames are sad
    >>> output = torch.tensor([[0.0], [0.0], [9.0], [-9.0]]), torch.zeros(4)
    >>> lattice = Lattice(rows, torch.zeros(1, 1, 1), *output)
    >>> lens, sad = (torch.tensor([3]), torch.tensor([0])), torch.tensor([2])
    >>> aligned_events(lattice, torch.ones(1, 3, 1), sad, *lens, shortest=1)
    [[(3, 0, 1, 0, 1), (2, 1, 3, 0, 1)]]
    """
    probs = aligned_emotions(emotion_lattice, posteriors, token_lens)
    _, gains = _event_gains(probs, emotions, frame_lens, neutral)
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
            intervals[row].append((felt, a, b, c, max(c + 1, d)))
    return intervals


def aligned_emotions(emotion_lattice, posteriors, token_lens):
    """Emotion distribution of each frame, averaged over the alignment.

    Nodes of negligible posterior are not evaluated: those left out of a frame add up to at most
    ``DROPPED_POSTERIOR``, which bounds the error of each probability.

    Arguments
    ---------
    emotion_lattice : Lattice
    posteriors : Tensor
        [B, T, U+1] of ``transducer_alignment``.
    token_lens : Tensor
        [B] int.

    Returns
    -------
    Tensor
        [B, T, E]; rows of valid frames sum to 1 but for what was left out.
    """
    return _AlignedEmotions.apply(posteriors, token_lens, *emotion_lattice)


def supervised_lattice_loss(lattice, intervals, frame_lens, token_lens, reduction="mean"):
    """Cross-entropy over the lattice region of each known interval.

    The region of interval k is ((t in [a, b)) or (u in [c, d))) and t < b and u < d: an L shape.
    Its loss is the mean of -log p over the region; summed over intervals.

    Arguments
    ---------
    lattice : Lattice
        Of the emotion joint.
    intervals : list
        For each utterance a list of (emotion, frame_start, frame_end, token_start, token_end),
        ends excluded; token ends count positions, so that U+1 is the last.
    frame_lens, token_lens : Tensor
        [B] int.
    reduction : str
        ``mean`` over utterances, ``sum`` or ``none``.

    Returns
    -------
    Tensor
        Scalar, or [B] for ``none``.

    Raises
    ------
    ValueError
        If an interval is empty, leaves the utterance's lattice, or names no emotion of it.
    """
    emotions = lattice.bias.numel()
    sizes = zip(frame_lens.tolist(), token_lens.tolist(), strict=True)
    for row, (spans, (frames, tokens)) in enumerate(zip(intervals, sizes, strict=True)):
        for emotion, a, b, c, d in spans:
            if not 0 <= emotion < emotions:
                raise ValueError(f"utterance {row}: emotion {emotion} is not in 0..{emotions - 1}")
            if not (0 <= a < b <= frames and 0 <= c < d <= tokens + 1):
                raise ValueError(
                    f"utterance {row}: interval of frames [{a}, {b}) and positions [{c}, {d}) "
                    f"is empty or leaves the lattice of {frames} frames and {tokens} tokens"
                )
    most = max(len(spans) for spans in intervals)
    # An interval that ends at frame 0 has an empty region: the padding of shorter lists.
    padded = [list(spans) + [(0, 0, 0, 0, 0)] * (most - len(spans)) for spans in intervals]
    spans = torch.tensor(padded, device=lattice.enc.device).view(len(intervals), most, 5)
    return _reduce(_Regions.apply(spans, frame_lens, token_lens, *lattice), reduction)


def supervised_aligned_loss(
    emotion_lattice, posteriors, intervals, frame_lens, token_lens, reduction="mean"
):
    """Frame cross-entropy of known intervals, each frame's emotion averaged over the alignment.

    Where nothing is transcribed a frame has one node, of posterior 1: a plain frame classifier.

    Arguments
    ---------
    emotion_lattice : Lattice
        Of the emotion joint.
    posteriors : Tensor
        [B, T, U+1] of ``transducer_alignment``.
    intervals : list
        As for ``supervised_lattice_loss``; here each frame lies in one of them.
    frame_lens, token_lens : Tensor
        [B] int.
    reduction : str
        ``mean`` over utterances, ``sum`` or ``none``.

    Returns
    -------
    Tensor
        Of each utterance the mean over its frames; a scalar, or [B] for ``none``.

    Example
    -------
    >>> lattice = Lattice(*(torch.zeros(size) for size in [(1, 3, 2), (1, 1, 2), (4, 2), (4,)]))
    >>> known = [[(3, 0, 2, 0, 1), (0, 2, 3, 0, 1)]]  # two neutral frames, then a happy one
    >>> lens = torch.tensor([3]), torch.tensor([0])
    >>> supervised_aligned_loss(lattice, torch.ones(1, 3, 1), known, *lens)  # log 4: knows nothing
    tensor(1.3863)
    """
    probs = aligned_emotions(emotion_lattice, posteriors, token_lens)
    target = torch.zeros(probs.shape[:2], dtype=torch.long, device=probs.device)
    for row, spans in enumerate(intervals):
        for emotion, start, end, *_ in spans:
            target[row, start:end] = emotion
    valid = torch.arange(probs.size(1), device=probs.device) < frame_lens[:, None]
    surprise = -_log(probs.gather(-1, target[..., None])[..., 0]) * valid
    return _reduce(surprise.sum(1) / frame_lens, reduction)


def arc_log_probs(lattices, tokens, frame_lens, token_lens, blank=0):
    """What the transducer reads of each node: log p(blank) and log p(the next token).

    Arguments
    ---------
    lattices, tokens, frame_lens, token_lens, blank
        As for ``transducer_alignment``, which says what is refused, too.

    Returns
    -------
    Tensor
        [2, B, T, U+1], T and U the largest lengths; -inf at nodes that are not valid. The token arc
        of position ``token_len``, which has no next token, tells nothing.
    """
    _check(lattices, tokens, frame_lens, token_lens, blank)
    return _arc_log_probs(lattices, tokens, frame_lens, token_lens, blank)[0]


def next_token_loss(logits, tokens, token_lens):
    """Cross-entropy of the language-model head.

    Arguments
    ---------
    logits : Tensor
        [B, U+1, V]; position u predicts token u+1, the last position ``<sos/eos>``, id V-1.
    tokens : Tensor
        [B, U] ids.
    token_lens : Tensor
        [B] int.

    Returns
    -------
    Tensor
        Scalar: the mean over valid positions.
    """
    position = torch.arange(logits.size(1), device=logits.device)
    targets = torch.nn.functional.pad(tokens, (0, 1))
    targets = targets.masked_fill(position == token_lens[:, None], logits.size(2) - 1)
    valid = position <= token_lens[:, None]
    return torch.nn.functional.cross_entropy(logits[valid], targets[valid])


class _Transducer(torch.autograd.Function):
    """Transducer likelihood and blank-arc posteriors; nodes are computed again backward."""

    @staticmethod
    def forward(ctx, tokens, frame_lens, token_lens, blank, fastemit, *tensors):
        lattices = _lattices(tensors)
        arcs, following = _arc_log_probs(lattices, tokens, frame_lens, token_lens, blank)
        nll = _sum_alignments(arcs, frame_lens, token_lens)
        # Every alignment leaves a frame once: float32 sums of a thousand steps need telling.
        arcs /= arcs[0].sum(2, keepdim=True).clamp(min=PROBABILITY_FLOOR)
        ctx.save_for_backward(arcs, following, *tensors)
        ctx.blank, ctx.fastemit = blank, fastemit
        ctx.mark_non_differentiable(arcs)
        return nll, arcs

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_nll, _):
        arcs, following, *tensors = ctx.saved_tensors

        def grad_logits(nodes, logits):
            rows, frames, positions = nodes
            # d nll / d log p(arc) = -posterior of the arc, and the softmax's own derivative.
            taken = arcs[:, rows, frames, positions] * grad_nll[rows]
            taken[1] *= 1 + ctx.fastemit
            grad = logits.softmax(-1).mul_(taken.sum(0)[:, None])
            grad[:, ctx.blank] -= taken[0]
            return grad.scatter_add_(1, following[rows, positions, None], -taken[1, :, None])

        # What is left out of a frame or a position adds up to less than the rounding of its sum;
        # and numbers too small for a full mantissa would make the products many times slower.
        negligible = torch.finfo(arcs.dtype).eps / sum(arcs.shape[2:])
        nodes = (arcs.sum(0) > negligible).nonzero(as_tuple=True)
        gradients = backpropagate(_lattices(tensors), nodes, grad_logits)
        return None, None, None, None, None, *gradients


class _AlignedEmotions(torch.autograd.Function):
    """Softmax of the nodes on the alignment, summed over a frame's by posterior: [B, T, E]."""

    @staticmethod
    def forward(ctx, posteriors, token_lens, *tensors):
        threshold = DROPPED_POSTERIOR / (token_lens + 1)
        nodes = (posteriors > threshold[:, None, None]).nonzero(as_tuple=True)
        batch, frames, _ = posteriors.shape
        result = posteriors.new_zeros(batch * frames, tensors[-1].numel())
        for (rows, times, positions), logits in node_logits(_lattices(tensors), nodes):
            # Few emotions are normalised many times faster along the first dimension.
            shares = posteriors[rows, times, positions] * logits.T.softmax(0)
            result.index_add_(0, rows * frames + times, shares.T.to(result.dtype))
        ctx.save_for_backward(posteriors, *nodes, *tensors)
        return result.view(batch, frames, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_emotions):
        posteriors, *nodes = ctx.saved_tensors[:4]
        tensors = ctx.saved_tensors[4:]

        def grad_logits(run, logits):
            rows, times, _ = run
            share, grad = logits.T.softmax(0), grad_emotions[rows, times].T
            grad = share * (grad - (share * grad).sum(0))
            return grad.mul_(posteriors[run]).T

        return None, None, *backpropagate(_lattices(tensors), nodes, grad_logits)


class _Regions(torch.autograd.Function):
    """Sum over intervals of the mean cross-entropy over their regions, [B]."""

    @staticmethod
    def forward(ctx, spans, frame_lens, token_lens, *tensors):
        device = spans.device
        t = torch.arange(int(frame_lens.max()), device=device)[:, None]
        u = torch.arange(int(token_lens.max()) + 1, device=device)
        used = torch.zeros(len(spans), len(t), len(u), dtype=torch.bool, device=device)
        for span in spans.unbind(1):
            used |= _inside(span[..., None, None], t, u)
        nodes = used.nonzero(as_tuple=True)
        total = tensors[0].new_zeros(len(spans), dtype=sum_type(tensors[0]))
        for run, logits in node_logits(_lattices(tensors), nodes):
            surprise = logits.log_softmax(-1).mul_(_class_weights(spans, run, logits))
            total.index_add_(0, run[0], surprise.sum(-1), alpha=-1)
        ctx.save_for_backward(spans, *nodes, *tensors)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_total):
        spans, *nodes = ctx.saved_tensors[:4]
        tensors = ctx.saved_tensors[4:]

        def grad_logits(run, logits):
            weights = _class_weights(spans, run, logits)
            grad = logits.softmax(-1).mul_(weights.sum(-1, keepdim=True)).sub_(weights)
            return grad.mul_(grad_total[run[0], None])

        return None, None, None, *backpropagate(_lattices(tensors), nodes, grad_logits)


def _inside(span, t, u):
    """Whether nodes lie in the region of a span [B, 5, ...] (emotion, a, b, c, d)."""
    _, a, b, c, d = span.unbind(1)
    return (t < b) & (u < d) & ((t >= a) | (u >= c))


def _class_weights(spans, nodes, logits):
    """Weight of each class at each of a run of nodes, [n, E]."""
    rows, frames, positions = nodes
    weights = torch.zeros_like(logits)
    for span in spans[rows].unbind(1):
        emotion, a, b, c, d = span.unbind(1)
        share = _inside(span, frames, positions).to(weights.dtype) / (b * d - a * c).clamp(min=1)
        weights.scatter_add_(1, emotion[:, None], share[:, None])
    return weights


def _event_gains(probs, emotions, frame_lens, neutral):
    """Of frames [B, T]: log p(neutral), 0 in the padding. And what an event adds, [B, T+1].

    An event from frame a to b adds gains[b] - gains[a] to what an utterance without it has.
    """
    valid = torch.arange(probs.size(1), device=probs.device) < frame_lens[:, None]
    calm = _log(probs[..., neutral]) * valid
    felt = _log(probs.gather(-1, emotions[:, None, None].expand(-1, probs.size(1), 1))[..., 0])
    return calm, torch.nn.functional.pad(((felt * valid) - calm).cumsum(1), (1, 0))


def _event_borders(gains, frame_lens, shortest):
    """Where events may start and end, and the latest start of an event of each end, [B, T+1]."""
    last = frame_lens[:, None]
    border = torch.arange(gains.size(1), device=gains.device)
    inner = (border >= shortest) & (border <= last - shortest)
    latest = torch.where(last < shortest, 0, border - shortest)
    ends = (inner | (border == last)) & (latest >= 0)
    return inner | (border == 0), ends, latest.clamp(min=0)


@torch.no_grad()
def _extreme_nodes(lattice, classes, frame_lens, token_lens):
    """Nodes of the largest p of the first class and the smallest p of the second.

    Returns
    -------
    (Tensor, Tensor)
        Frames and positions, [B, 2].
    """
    best = lattice.enc.new_full((2, len(classes)), -torch.inf, dtype=sum_type(lattice.enc))
    nodes = torch.zeros_like(classes.T)
    columns = lattice.pred.size(1)
    sign = torch.tensor([[1], [-1]], device=classes.device)
    for tile in tiles([lattice], frame_lens, token_lens):
        logits = tile_logits([lattice], tile)
        t, u = tile.grid(classes.device)
        frames, tokens = frame_lens[tile.rows, None, None], token_lens[tile.rows, None, None]
        valid = ((t < frames) & (u <= tokens)).flatten(1)
        wanted = classes.T[:, tile.rows, None].expand(2, *valid.shape).flatten(1)
        # Few emotions are normalised many times faster along the first dimension.
        log_probs = logits.flatten(0, 2).T.log_softmax(0).gather(0, wanted).mul_(sign)
        value, index = log_probs.view(2, *valid.shape).where(valid, -torch.inf).max(-1)
        width = tile.positions.stop
        node = (tile.frames.start + index // width) * columns + index % width
        better = value > best[:, tile.rows]
        nodes[:, tile.rows] = torch.where(better, node, nodes[:, tile.rows])
        best[:, tile.rows] = torch.where(better, value, best[:, tile.rows])
    nodes = nodes.T
    return nodes // columns, nodes % columns


def _arc_log_probs(lattices, tokens, frame_lens, token_lens, blank):
    """``arc_log_probs``, and the next token of each position [B, U+1]."""
    frames, positions = int(frame_lens.max()), int(token_lens.max()) + 1
    # Position u's next token; the last position has none, and any valid index serves there.
    ended = torch.arange(positions, device=tokens.device) >= token_lens[:, None]
    padded = torch.nn.functional.pad(tokens[:, : positions - 1], (0, 1))
    following = padded.long().masked_fill(ended, blank)
    first = lattices[0].enc
    arcs = first.new_full((2, len(first), frames, positions), -torch.inf, dtype=sum_type(first))
    for tile in tiles(lattices, frame_lens, token_lens):
        log_probs = tile_logits(lattices, tile).log_softmax(-1)
        arcs[0][tile] = log_probs[..., blank]
        arcs[1][tile] = _gather(log_probs, following, tile)
    return arcs, following


def _sum_alignments(arcs, frame_lens, token_lens):
    """Sum over alignments; the arcs' log-probabilities become their posteriors in place.

    Arguments
    ---------
    arcs : Tensor
        [2, B, T, U+1] log-probability of blank and of the next token, T and U the largest lengths;
        any value at nodes that are not valid and for the token of the last position.

    Returns
    -------
    Tensor
        -log P [B].
    """
    if arcs.is_cuda and arcs.dtype == torch.float32 and arcs.size(3) > 1:
        return _kernel(arcs, frame_lens, token_lens)  # faster than a launch a diagonal
    return _sweep(arcs, frame_lens, token_lens)


def _kernel(arcs, frame_lens, token_lens):
    """``_sum_alignments`` by torchaudio: float32, at least one token.

    The kernel's class 1 is "the next token", whichever it is. The operator under
    ``torchaudio.functional.rnnt_loss`` returns the gradient beside the loss.
    """
    lengths = [n.to(arcs.device, torch.int32) for n in (frame_lens, token_lens)]
    targets = torch.ones(arcs[0, :, 0, 1:].shape, dtype=torch.int32, device=arcs.device)
    nll, grad = torch.ops.torchaudio.rnnt_loss_forward(
        arcs.movedim(0, -1).contiguous(),
        targets,
        *lengths,
        blank=0,
        clamp=-1.0,
        fused_log_softmax=False,
    )
    torch.neg(grad.movedim(-1, 0), out=arcs)
    return nll


def _sweep(arcs, frame_lens, token_lens):
    """``_sum_alignments`` along the lattice's anti-diagonals, in plain tensor operations.

    Node (t, u) lies on diagonal t + u and both of its predecessors on the one before, so that a
    diagonal is one step for the whole batch. The sums over the ways from a node to the end are
    those to the node in the lattice turned by half a circle, and take the same steps.
    """
    _, batch, frames, positions = arcs.shape
    t = torch.arange(frames + 1, device=arcs.device)[:, None]
    u = torch.arange(positions, device=arcs.device)
    frame_lens, token_lens = frame_lens[:, None, None], token_lens[:, None, None]
    outside = (t >= frame_lens) | (u > token_lens)
    arcs.masked_fill_(outside[:, :-1], -torch.inf)
    arcs[1].masked_fill_(u == token_lens, -torch.inf)
    # Behind its last blank an utterance goes on at no cost, to the corner where all have ended.
    arcs[0].masked_fill_(((t >= frame_lens) & (u == positions - 1))[:, :-1], 0.0)
    blank, token = arcs[0], torch.nn.functional.pad(arcs[1], (0, 0, 0, 1), value=-torch.inf)
    token.masked_fill_((t == frame_lens) & (u >= token_lens), 0.0)

    # [diagonals, 2 x B x (U+1)]: the arc into each node from the frame before, which the sum over
    # the ways to the node replaces, and the arc from the position before.
    width = 2 * batch * positions
    ways = arcs.new_full((frames + positions, width), -torch.inf)
    steps = ways.clone()

    def nodes(diagonals):
        """The places of the nodes and of the turned nodes: [B, T+1, U+1] each."""
        size, strides = (batch, frames + 1, positions), (positions, width, width + 1)
        return [diagonals.as_strided(size, strides, half) for half in (0, width // 2)]

    for places, arriving in zip(nodes(ways), (blank, blank.flip(1, 2)), strict=True):
        places[:, 1:] = arriving
    for places, arriving in zip(
        nodes(steps), (token[..., :-1], token[..., :-1].flip(1, 2)), strict=True
    ):
        places[..., 1:] = arriving
    del token, arriving
    ways[0, ::positions] = 0.0
    for before, here, from_left in zip(ways[:-1], ways[1:], steps[1:], strict=True):
        here.add_(before)
        # No arc leads into a row's first position: whatever is added to it there has no effect.
        from_left[1:].add_(before[:-1])
        torch.logaddexp(here, from_left, out=here)

    before, turned = nodes(ways)
    after = turned.flip(1, 2)
    arcs += before[:, :-1]
    arcs[0] += after[:, 1:]
    arcs[1, ..., :-1] += after[:, :-1, 1:]
    log_likelihood = after[:, 0, 0]
    arcs.sub_(log_likelihood[:, None, None]).masked_fill_(outside[:, :-1], -torch.inf)
    # Infinities make exp, and subnormal numbers all that reads them, many times slower on a CPU.
    least = 1e3 * torch.finfo(arcs.dtype).tiny
    torch.nn.functional.threshold_(arcs.clamp_(min=math.log(least)).exp_(), 2 * least, 0.0)
    return -log_likelihood


def _gather(logits, following, tile):
    return logits.gather(-1, _next(following, tile, logits)).squeeze(-1)


def _next(following, tile, logits):
    """Index of each node's next token among the outputs, [N, frames, positions, 1]."""
    index = following[tile.rows, tile.positions]
    return index[:, None, :, None].expand(*logits.shape[:-1], 1)


def _log(probabilities):
    return probabilities.clamp(PROBABILITY_FLOOR, 1.0).log()


def _lattices(tensors):
    return [Lattice(*tensors[i : i + 4]) for i in range(0, len(tensors), 4)]


def _reduce(losses, reduction):
    if reduction == "none":
        return losses
    if reduction not in ("mean", "sum"):
        raise ValueError(f"unknown reduction {reduction!r}: mean, sum or none")
    return losses.mean() if reduction == "mean" else losses.sum()


def _check(lattices, tokens, frame_lens, token_lens, blank):
    outputs = sum(lattice.bias.numel() for lattice in lattices)
    batch, frames = lattices[0].enc.shape[:2]
    positions = lattices[0].pred.size(1)
    if not 0 <= blank < outputs:
        raise ValueError(f"blank {blank} is not one of {outputs} outputs")
    if len(frame_lens) != batch or len(token_lens) != batch or len(tokens) != batch:
        raise ValueError(f"{batch} utterances in the lattice, other counts of lengths or tokens")
    if frame_lens.min() < 1 or frame_lens.max() > frames:
        raise ValueError(f"frame lengths must lie in 1..{frames}: {frame_lens.tolist()}")
    if token_lens.min() < 0 or token_lens.max() > min(positions - 1, tokens.size(1)):
        raise ValueError(
            f"token lengths must lie in 0..{min(positions - 1, tokens.size(1))}: "
            f"{token_lens.tolist()}"
        )
    used = torch.arange(tokens.size(1), device=tokens.device) < token_lens[:, None]
    ids = tokens[used]
    if len(ids) and (ids.min() < 0 or ids.max() >= outputs or (ids == blank).any()):
        raise ValueError(f"token ids must lie in 0..{outputs - 1} and not be blank ({blank})")
